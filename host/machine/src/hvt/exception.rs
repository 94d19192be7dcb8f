//! Exceptions of an hvt guest: the CPU's, and those of instructions that were emulated,
//! taken to the handlers of the guest's own.

use kvm_bindings::kvm_regs;

use super::cpu::{Cpu, is_canonical};
use crate::device::UserMemory;

/// An exception to be raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    pub(crate) vector: u8,
    /// Of those that push one.
    pub(crate) error: Option<u64>,
    /// Of a page fault.
    pub(crate) cr2: Option<u64>,
}

const DOUBLE_FAULT: u8 = 8;
const NOT_PRESENT: u8 = 11;
pub(super) const PROTECTION: u8 = 13;
pub(super) const PAGE_FAULT: u8 = 14;

/// Bits of a page fault's error code (SDM vol. 3 §4.7).
pub(super) const ERROR_PRESENT: u64 = 1 << 0;
const ERROR_WRITE: u64 = 1 << 1;
pub(super) const ERROR_USER: u64 = 1 << 2;

/// Bits of RFLAGS (SDM vol. 1 §3.4.3).
pub(super) const RFLAGS_FIXED: u64 = 1 << 1;
pub(super) const RFLAGS_TF: u64 = 1 << 8;
pub(super) const RFLAGS_IF: u64 = 1 << 9;
pub(super) const RFLAGS_NT: u64 = 1 << 14;
pub(super) const RFLAGS_RF: u64 = 1 << 16;

/// Types of gates (SDM vol. 3 table 3-2).
const INTERRUPT_GATE: u64 = 0xE;
const TRAP_GATE: u64 = 0xF;

impl Exception {
    /// #DB, behind an instruction that was done with TF set.
    pub(crate) const STEP: Self = Self {
        vector: 1,
        error: None,
        cr2: None,
    };

    /// #GP, with the selector that is to blame.
    pub(crate) fn protection(selector: u16) -> Self {
        Self {
            vector: PROTECTION,
            error: Some(u64::from(selector & !0b11)),
            cr2: None,
        }
    }

    /// #NP.
    pub(crate) fn not_present(selector: u16) -> Self {
        Self {
            vector: NOT_PRESENT,
            ..Self::protection(selector)
        }
    }

    /// #PF of an address that is not the guest's to touch.
    pub(crate) const fn page_fault(addr: u64, write: bool) -> Self {
        Self {
            vector: PAGE_FAULT,
            error: Some(if write { ERROR_WRITE } else { 0 }),
            cr2: Some(addr),
        }
    }
}

/// Takes an exception to its handler, or a double fault to that one's.
///
/// Registers and stack are then as the CPU would have left them that took an exception
/// of ring 0 at ring 0 (SDM vol. 3 §6.14). `None` when the guest has no handler that
/// can be reached: then neither has changed.
pub(crate) fn raise(
    cpu: &mut Cpu,
    regs: &kvm_regs,
    user: UserMemory<'_>,
    exception: Exception,
) -> Option<kvm_regs> {
    let double = Exception {
        vector: DOUBLE_FAULT,
        error: Some(0),
        cr2: None,
    };
    let (at_handler, raised) = match deliver(cpu, regs, user, exception) {
        Some(regs) => (regs, exception),
        None => (deliver(cpu, regs, user, double)?, double),
    };
    if let Some(cr2) = raised.cr2 {
        cpu.cr2 = cr2;
    }
    Some(at_handler)
}

/// The registers at the first instruction of an exception's handler, its frame pushed.
fn deliver(
    cpu: &mut Cpu,
    regs: &kvm_regs,
    user: UserMemory<'_>,
    exception: Exception,
) -> Option<kvm_regs> {
    let gate = Gate::read(cpu, user, exception.vector)?;
    cpu.check_code(user, gate.selector).ok()?;
    let stack = match gate.stack {
        0 => regs.rsp,
        number => cpu.exception_stack(user, number)?,
    };
    let frame = [
        regs.rip,
        u64::from(cpu.cs),
        regs.rflags,
        regs.rsp,
        u64::from(cpu.ss),
    ];
    let words = exception.error.into_iter().chain(frame);
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    // Stacks of exceptions begin at multiples of 16 (SDM vol. 3 §6.14.2).
    let len = u64::try_from(bytes.len()).ok()?;
    let rsp = (stack & !0xF).checked_sub(len)?;
    user.write(rsp, &bytes)?;
    cpu.cs = gate.selector;
    let mut cleared = RFLAGS_TF | RFLAGS_NT | RFLAGS_RF;
    if gate.masks_interrupts {
        cleared |= RFLAGS_IF;
    }
    Some(kvm_regs {
        rip: gate.handler,
        rsp,
        rflags: regs.rflags & !cleared,
        ..*regs
    })
}

/// A gate that leads somewhere (SDM vol. 3 §6.14.1).
struct Gate {
    handler: u64,
    selector: u16,
    /// Number of its stack; 0 for the one that is in use.
    stack: u8,
    masks_interrupts: bool,
}

impl Gate {
    fn read(cpu: &Cpu, user: UserMemory<'_>, vector: u8) -> Option<Self> {
        let idt = cpu.idt?;
        let offset = u64::from(vector).checked_mul(16)?;
        if offset.checked_add(15)? > u64::from(idt.limit) {
            return None;
        }
        let gate: [u8; 16] = user.read(idt.base.checked_add(offset)?)?;
        let [h0, h1, s0, s1, ist, kind, h2, h3, h4, h5, h6, h7, ..] = gate;
        let handler = u64::from_le_bytes([h0, h1, h2, h3, h4, h5, h6, h7]);
        let kind = u64::from(kind);
        let is_gate = matches!(kind & 0x1F, INTERRUPT_GATE | TRAP_GATE) && kind & 0x80 != 0;
        (is_gate && is_canonical(handler)).then_some(Self {
            handler,
            selector: u16::from_le_bytes([s0, s1]),
            stack: ist & 0b111,
            masks_interrupts: kind & 0xF == INTERRUPT_GATE,
        })
    }
}

#[cfg(test)]
mod tests;
