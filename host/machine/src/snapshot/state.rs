//! What a snapshot says of a guest beside its image and its memory.

use std::fmt;

use kvm_bindings::{CpuId, kvm_regs};
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes;

use super::Unusable;
use crate::device::{CONNECTIONS_MAX, DeviceState};
use crate::image::{Contract, Image};
use crate::layout::Layout;
use crate::machine::Origin;
use crate::vcpu::{FPU_WORDS, user_rflags};

/// The guest, as JSON in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub(super) cpu: Cpu,
    pub(super) origin: Origin,
    /// What its clock showed.
    pub(super) monotonic_ns: u64,
    pub(super) registers: Registers,
    /// See [`FPU_WORDS`].
    pub(super) fpu: Vec<u32>,
    pub(super) devices: Vec<DeviceState>,
}

/// The CPU that guests see: they keep what they found out about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// CPUID leaf 0: EBX, EDX, ECX.
    vendor: [u32; 3],
    /// CPUID leaf 1, EAX: family, model and stepping.
    signature: u32,
    /// A checksum of all that guests are told by CPUID.
    features: u32,
}

/// The registers that a guest sets itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Registers {
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rsp: u64,
    rbp: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rip: u64,
    rflags: u64,
}

impl State {
    /// Checks what it says, and plans the layout that follows from it.
    ///
    /// # Errors
    ///
    /// [`Unusable`].
    pub(super) fn check(&self, image: &Image, memory_len: u64) -> Result<Layout, Unusable> {
        use Unusable::Malformed;
        if self.origin.memory() != memory_len {
            return Err(Malformed("its memory has two sizes"));
        }
        if image.manifest().contract == Contract::Hvt {
            return Err(Malformed("its image is of another contract"));
        }
        let layout = self.origin.plan(image).map_err(Unusable::Layout)?;
        let room = layout.inherited.map_or(0, |room| room.len);
        if self.origin.inherited > room {
            return Err(Malformed("it inherited more than there is room for"));
        }
        // An address of the lower half, as all of a guest's are. What is not there
        // faults; what is not canonical KVM could not enter (SDM vol. 3 §28.3.1.4).
        if self.registers.rip >= 1 << 47 {
            return Err(Malformed("its next instruction is nowhere"));
        }
        if self.registers.rflags != user_rflags(self.registers.rflags) {
            return Err(Malformed("its flags are not a guest's"));
        }
        // What an MXCSR may have is the CPU's to say: KVM looks.
        if self.fpu.len() != FPU_WORDS {
            return Err(Malformed("its floating-point state is none"));
        }
        if self.devices.len() != image.manifest().devices.len() {
            return Err(Malformed("its devices are not its image's"));
        }
        for streams in self.devices.iter().filter_map(|it| it.streams.as_ref()) {
            if streams.connections.len() > CONNECTIONS_MAX {
                return Err(Malformed("it has too many connections"));
            }
        }
        Ok(layout)
    }
}

impl Cpu {
    /// The CPU that KVM shows to guests.
    pub(crate) fn of(cpuid: &CpuId) -> Self {
        // Leaves that say on which of the machine's CPUs they were read: extended
        // topology (SDM vol. 2, CPUID) and AMD's of the same (APM vol. 3 §E.4).
        const PLACES: [u32; 4] = [0xB, 0x1F, 0x8000_001E, 0x8000_0026];
        let leaf = |function| {
            let entries = cpuid.as_slice().iter();
            entries.copied().find(|entry| entry.function == function)
        };
        let (zero, one) = (leaf(0).unwrap_or_default(), leaf(1).unwrap_or_default());
        let mut features = crc32fast::Hasher::new();
        for entry in cpuid.as_slice() {
            if PLACES.contains(&entry.function) {
                continue;
            }
            // The local APIC's number in leaf 1.
            let ebx = match entry.function {
                1 => entry.ebx & 0x00FF_FFFF,
                _ => entry.ebx,
            };
            let words = [
                entry.function,
                entry.index,
                entry.eax,
                ebx,
                entry.ecx,
                entry.edx,
            ];
            features.update(words.as_bytes());
        }
        Self {
            vendor: [zero.ebx, zero.edx, zero.ecx],
            signature: one.eax,
            features: features.finalize(),
        }
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            vendor,
            signature,
            features,
        } = self;
        for byte in vendor.iter().flat_map(|word| word.to_le_bytes()) {
            write!(f, "{}", char::from(byte).escape_default())?;
        }
        write!(f, " {signature:#x}, features {features:08x}")
    }
}

impl Registers {
    /// Those of a guest; nothing of RFLAGS that it could not have set.
    pub(crate) const fn new(it: &kvm_regs) -> Self {
        Self {
            rax: it.rax,
            rbx: it.rbx,
            rcx: it.rcx,
            rdx: it.rdx,
            rsi: it.rsi,
            rdi: it.rdi,
            rsp: it.rsp,
            rbp: it.rbp,
            r8: it.r8,
            r9: it.r9,
            r10: it.r10,
            r11: it.r11,
            r12: it.r12,
            r13: it.r13,
            r14: it.r14,
            r15: it.r15,
            rip: it.rip,
            rflags: user_rflags(it.rflags),
        }
    }

    pub(crate) const fn kvm(&self) -> kvm_regs {
        kvm_regs {
            rax: self.rax,
            rbx: self.rbx,
            rcx: self.rcx,
            rdx: self.rdx,
            rsi: self.rsi,
            rdi: self.rdi,
            rsp: self.rsp,
            rbp: self.rbp,
            r8: self.r8,
            r9: self.r9,
            r10: self.r10,
            r11: self.r11,
            r12: self.r12,
            r13: self.r13,
            r14: self.r14,
            r15: self.r15,
            rip: self.rip,
            rflags: self.rflags,
        }
    }
}
