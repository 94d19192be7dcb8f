//! Memory of an hvt guest's, for tests without a CPU.

use kvm_bindings::kvm_regs;

use super::cpu::{Cpu, Table};
use super::emulate::Context;
use crate::device::UserMemory;
use crate::image::Access;
use crate::memory::{Gpa, GuestMemory, PAGE};
use crate::space::{AddressSpace, Mapping, Owner};

pub(super) const CODE: u64 = 0x10_0000;
/// Four pages that can be written.
pub(super) const DATA: u64 = 0x10_1000;
pub(super) const DATA_END: u64 = DATA + 4 * PAGE;
/// A page that can only be read.
pub(super) const READ_ONLY: u64 = DATA_END;
/// Where nothing is.
pub(super) const NOWHERE: u64 = 0x20_0000;

/// Where the tests put descriptor tables, stacks and operands.
pub(super) const GDT: u64 = DATA;
pub(super) const TSS: u64 = DATA + 0x100;
pub(super) const IDT: u64 = DATA + 0x200;
pub(super) const STACK: u64 = DATA + 2 * PAGE;
pub(super) const IST: u64 = DATA + 3 * PAGE;
pub(super) const OPERAND: u64 = DATA + 3 * PAGE;

/// Descriptors as Solo5's bindings have them: 64-bit code, data, and the task state.
pub(super) const CODE_64: u64 = 0x00AF_9900_0000_FFFF;
pub(super) const DATA_32: u64 = 0x00CF_9300_0000_FFFF;
pub(super) const TASK: u64 = 0x0000_8900_0000_0067 | (TSS & 0xFF_FFFF) << 16;

pub(super) struct Guest {
    memory: GuestMemory,
    space: AddressSpace,
    pub(super) cpu: Cpu,
    pub(super) context: Context,
}

impl Guest {
    /// With a GDT, a task with a stack for exceptions, and an IDT without a gate.
    pub(super) fn new() -> Self {
        let mapping = |addr, pages, access| Mapping {
            addr,
            len: pages * PAGE,
            gpa: Gpa(addr - CODE),
            access,
            owner: Owner::Guest,
        };
        let space = AddressSpace::new(&[
            mapping(CODE, 1, Access::ReadExecute),
            mapping(DATA, 4, Access::ReadWrite),
            mapping(READ_ONLY, 1, Access::Read),
        ]);
        let mut guest = Self {
            memory: GuestMemory::new(6 * PAGE, 0..0, false).unwrap(),
            space,
            cpu: Cpu::new(),
            context: Context {
                regs: kvm_regs {
                    rip: CODE,
                    rsp: STACK,
                    rflags: 2,
                    ..Default::default()
                },
                fs_base: 0,
                gs_base: 0,
            },
        };
        guest.cpu.gdt = Some(table(GDT, 0x2F));
        guest.cpu.tss = Some(table(TSS, 0x67));
        guest.cpu.idt = Some(table(IDT, 0x1FF));
        guest.put_words(GDT, &[0, CODE_64, DATA_32, TASK, 0, 0]);
        guest.put_words(TSS + 0x24, &[IST]);
        guest
    }

    pub(super) fn put(&self, addr: u64, bytes: &[u8]) {
        self.memory.write(Gpa(addr - CODE), bytes).unwrap();
    }

    pub(super) fn put_words(&self, addr: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.put(addr, &bytes);
    }

    pub(super) fn words<const N: usize>(&self, addr: u64) -> [u64; N] {
        let mut words = [0; N];
        for (word, n) in words.iter_mut().zip(0..) {
            let bytes = self.user().read(addr + n * 8).unwrap();
            *word = u64::from_le_bytes(bytes);
        }
        words
    }

    pub(super) fn user(&self) -> UserMemory<'_> {
        UserMemory::new(self.memory.mmap(), &self.space)
    }

    /// The guest's memory beside what else is to be changed.
    pub(super) fn parts(&mut self) -> (&mut Cpu, &Context, UserMemory<'_>) {
        let user = UserMemory::new(self.memory.mmap(), &self.space);
        (&mut self.cpu, &self.context, user)
    }
}

pub(super) fn table(base: u64, limit: u32) -> Table {
    Table { base, limit }
}
