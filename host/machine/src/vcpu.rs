//! A vCPU that starts at CPL 3.

use kvm_bindings::{
    CpuId, KVM_SYNC_X86_REGS, kvm_cpuid_entry2, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs,
    kvm_xsave,
};
use kvm_ioctls::{SyncReg, VcpuFd, VmFd};

use crate::Error;
use crate::descriptors::{SystemPage, TSS, Table, USER_CODE, USER_DATA};
use crate::exit::RawExit;
use crate::ioctl;
use crate::memory::Gpa;

/// PE, MP, ET, NE, WP, PG (Intel SDM vol. 3 §2.5).
const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
/// AM: a program may have its alignment checked.
const CR0_AM: u64 = 1 << 18;
/// PAE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10;
/// Descriptor-table addresses are then not for CPL 3 to read.
const CR4_UMIP: u64 = 1 << 11;
/// LME, LMA, NXE. No SCE: `syscall` is an invalid opcode. (KVM-PVM goes to
/// LSTAR all the same, which is 0: the null page.)
const EFER: u64 = 1 << 8 | 1 << 10 | 1 << 11;
/// The bit that is always set.
const RFLAGS: u64 = 1 << 1;
/// IF, as any user program has it; nothing interrupts.
const RFLAGS_IF: u64 = 1 << 9;

/// What a guest may have set in RFLAGS: CF, PF, AF, ZF, SF, DF, OF, AC and ID (SDM
/// vol. 1 §3.4.3). TF would have ended it before.
const RFLAGS_FREE: u64 =
    1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 11 | 1 << 18 | 1 << 21;

/// Words of the legacy region of an XSAVE area: x87 and SSE state (SDM vol. 1
/// §13.4.1). Guests have no other: CR4.OSXSAVE is clear.
pub(crate) const FPU_WORDS: usize = 128;

/// Where a vCPU starts.
pub(crate) struct Start {
    pub(crate) registers: kvm_regs,
    /// Whether the guest believes that it is at CPL 0. It then starts without
    /// interrupts, has no alignment checked, which the CPU does at CPL 3 only, and its
    /// system registers are shared as well, for they change with every exception.
    pub(crate) is_supervisor: bool,
}

/// The registers of a guest that has not begun.
pub(crate) fn first_registers(
    entry: u64,
    stack_pointer: u64,
    boot_page: u64,
    is_supervisor: bool,
) -> kvm_regs {
    kvm_regs {
        rip: entry,
        rsp: stack_pointer,
        rdi: boot_page,
        rflags: if is_supervisor {
            RFLAGS
        } else {
            RFLAGS | RFLAGS_IF
        },
        ..Default::default()
    }
}

/// RFLAGS with nothing in them but what a guest may have.
pub(crate) const fn user_rflags(rflags: u64) -> u64 {
    rflags & RFLAGS_FREE | RFLAGS | RFLAGS_IF
}

/// RFLAGS with nothing in them but what a guest may hold that believes to be at CPL 0: it
/// may run without interrupts, and step by step.
pub(crate) const fn held_rflags(rflags: u64) -> u64 {
    const RFLAGS_TF: u64 = 1 << 8;
    rflags & (RFLAGS_FREE | RFLAGS_IF | RFLAGS_TF) | RFLAGS
}

/// One vCPU. Its registers are those of the last exit until the next entry.
#[derive(Debug)]
pub(crate) struct Vcpu {
    fd: VcpuFd,
}

impl Vcpu {
    /// Makes a vCPU of `vm` that will begin at `start`.
    pub(crate) fn new(
        vm: &VmFd,
        cpuid: &CpuId,
        root: Gpa,
        system: &SystemPage,
        start: &Start,
    ) -> Result<Self, Error> {
        let mut fd = vm.create_vcpu(0).map_err(Error::kvm("create a vCPU"))?;
        fd.set_cpuid2(cpuid)
            .map_err(Error::kvm("set the guest's CPUID"))?;
        ioctl::unblock_signals_in_guest(&fd)
            .map_err(|e| Error::kvm("set the signal mask")(kvm_ioctls::Error::from(e)))?;
        // Without it guest and host would mean different times by one deadline.
        ioctl::zero_tsc_offset(&fd).map_err(Error::TscOffset)?;

        let mut sregs = fd
            .get_sregs()
            .map_err(Error::kvm("read system registers"))?;
        set_up(&mut sregs, root, system);
        if !start.is_supervisor {
            sregs.cr0 |= CR0_AM;
        }
        if has_umip(cpuid) {
            sregs.cr4 |= CR4_UMIP;
        }
        fd.set_sregs(&sregs)
            .map_err(Error::kvm("set system registers"))?;
        fd.set_regs(&start.registers)
            .map_err(Error::kvm("set registers"))?;
        fd.set_sync_valid_reg(SyncReg::Register);
        if start.is_supervisor {
            fd.set_sync_valid_reg(SyncReg::SystemRegister);
        }
        Ok(Self { fd })
    }

    /// Runs the guest until it exits; `None` when a signal or kick ended it.
    pub(crate) fn run(&mut self) -> Result<Option<RawExit>, Error> {
        match self.fd.run() {
            Ok(exit) => Ok(Some(RawExit::of(exit))),
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => Ok(None),
            Err(e) => Err(Error::kvm("run the guest")(e)),
        }
    }

    /// Has the guest be interrupted whenever it is entered, or not any more.
    #[cfg(test)]
    pub(crate) fn set_interrupted(&mut self, is_interrupted: bool) {
        self.fd.set_kvm_immediate_exit(is_interrupted.into());
    }

    /// Has KVM finish what an exit left half done, without entering the guest: only
    /// then is RIP behind the instruction (KVM api.rst §5, `immediate_exit`).
    ///
    /// # Errors
    ///
    /// As `KVM_RUN`.
    pub(crate) fn retire(&mut self) -> Result<(), Error> {
        self.fd.set_kvm_immediate_exit(1);
        let exit = self.run();
        self.fd.set_kvm_immediate_exit(0);
        match exit? {
            None => Ok(()),
            Some(_) => Err(Error::Missing("KVM_CAP_IMMEDIATE_EXIT")),
        }
    }

    /// x87 and SSE state.
    ///
    /// # Errors
    ///
    /// As `KVM_GET_XSAVE` (KVM api.rst §4.42).
    pub(crate) fn fpu(&self) -> Result<Vec<u32>, Error> {
        let area = self.fd.get_xsave().map_err(Error::kvm("read the FPU"))?;
        Ok(area.region.iter().take(FPU_WORDS).copied().collect())
    }

    /// Sets it.
    ///
    /// # Errors
    ///
    /// As `KVM_SET_XSAVE`, which also refuses an MXCSR that this CPU has not.
    pub(crate) fn set_fpu(&self, words: &[u32]) -> Result<(), Error> {
        let mut area = kvm_xsave::default();
        for (to, from) in area.region.iter_mut().zip(words.iter().take(FPU_WORDS)) {
            *to = *from;
        }
        // XSTATE_BV: x87 and SSE (SDM vol. 1 §13.4.2).
        if let Some(components) = area.region.get_mut(FPU_WORDS) {
            *components = 0b11;
        }
        ioctl::set_xsave(&self.fd, &area).map_err(Error::kvm("set the FPU"))
    }

    /// Has the guest go on with these registers, and these bases of FS and GS where it has
    /// any.
    ///
    /// # Errors
    ///
    /// When KVM does not take them.
    pub(crate) fn continue_at(
        &mut self,
        registers: &kvm_regs,
        bases: Option<(u64, u64)>,
    ) -> Result<(), Error> {
        if let Some((fs, gs)) = bases {
            let sregs = self.fd.get_sregs();
            let mut sregs = sregs.map_err(Error::kvm("read system registers"))?;
            (sregs.fs.base, sregs.gs.base) = (fs, gs);
            let set = self.fd.set_sregs(&sregs);
            set.map_err(Error::kvm("set system registers"))?;
            self.fd.sync_regs_mut().sregs = sregs;
        }
        let set = self.fd.set_regs(registers);
        set.map_err(Error::kvm("set registers"))?;
        // KVM fills this when the guest is left; it may be answered before.
        self.fd.sync_regs_mut().regs = *registers;
        Ok(())
    }

    /// The registers at the last exit.
    pub(crate) fn registers(&self) -> kvm_regs {
        self.fd.sync_regs().regs
    }

    /// Sets what two registers will hold at the next entry.
    pub(crate) fn set_rax_rdx(&mut self, rax: u64, rdx: u64) {
        let regs = &mut self.fd.sync_regs_mut().regs;
        regs.rax = rax;
        regs.rdx = rdx;
        self.fd.set_sync_dirty_reg(SyncReg::Register);
    }

    /// The system registers at the last exit, of a vCPU that shares them.
    pub(crate) fn system_registers(&self) -> kvm_sregs {
        self.fd.sync_regs().sregs
    }

    /// Has the guest go on at CPL 3, where an exception had it leave it, with these
    /// registers and bases. They must be ones that the CPU can have.
    pub(crate) fn resume(&mut self, regs: kvm_regs, fs_base: u64, gs_base: u64) {
        let shared = self.fd.sync_regs_mut();
        shared.regs = regs;
        let sregs = &mut shared.sregs;
        sregs.cs = user_code();
        sregs.ss = user_segment(USER_DATA, 0x3);
        sregs.fs.base = fs_base;
        sregs.gs.base = gs_base;
        self.fd.set_sync_dirty_reg(SyncReg::Register);
        self.fd.set_sync_dirty_reg(SyncReg::SystemRegister);
    }

    /// The address of the last page fault.
    pub(crate) fn cr2(&self) -> Result<u64, Error> {
        let sregs = self
            .fd
            .get_sregs()
            .map_err(Error::kvm("read system registers"))?;
        Ok(sregs.cr2)
    }

    /// Frequency of the guest's TSC.
    pub(crate) fn tsc_khz(&self) -> Result<u32, Error> {
        self.fd
            .get_tsc_khz()
            .map_err(Error::kvm("tell the TSC's frequency"))
    }
}

/// Register sets that KVM must be able to share through the run structure.
pub(crate) const SYNC_REGS_NEEDED: i32 = KVM_SYNC_X86_REGS.cast_signed();

/// CPUID leaf 7, ECX bit 2 (SDM vol. 2, CPUID).
fn has_umip(cpuid: &CpuId) -> bool {
    let leaf = |entry: &&kvm_cpuid_entry2| entry.function == 7 && entry.index == 0;
    let features = cpuid.as_slice().iter().find(leaf);
    features.is_some_and(|entry| entry.ecx & 1 << 2 != 0)
}

fn set_up(sregs: &mut kvm_sregs, root: Gpa, system: &SystemPage) {
    sregs.cr0 = CR0;
    sregs.cr3 = root.0;
    sregs.cr4 = CR4;
    sregs.efer = EFER;
    sregs.cs = user_code();
    let data = user_segment(USER_DATA, 0x3);
    sregs.ss = data;
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.tr = kvm_segment {
        base: system.tss.base,
        limit: u32::from(system.tss.limit),
        selector: TSS,
        type_: 0xB, // 64-bit TSS, busy
        present: 1,
        ..Default::default()
    };
    sregs.ldt = kvm_segment {
        unusable: 1,
        type_: 0x2,
        ..Default::default()
    };
    sregs.gdt = table(system.gdt);
    sregs.idt = table(system.idt);
}

fn user_code() -> kvm_segment {
    kvm_segment {
        l: 1,
        db: 0,
        ..user_segment(USER_CODE, 0xB)
    }
}

/// A flat segment at DPL 3; type as in SDM vol. 3 table 3-1, accessed.
fn user_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 3,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    }
}

fn table(table: Table) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        ..Default::default()
    }
}
