//! Why a guest stopped running, as owned values.
//!
//! [`Machine::enter`](crate::Machine::enter) gives an [`Exit`]; a [`Call`] is
//! answered with an [`Answer`] at the next entry. Guest-controlled numbers are
//! read once, here, from the registers that KVM copied out at the exit.

use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuExit;
use wharf_abi::Hypercall;

use crate::descriptors::FAULT_PORT;
use crate::fault::{Cause, Direction};
use crate::space::UserSlice;

/// Why [`Machine::enter`](crate::Machine::enter) returned.
#[derive(Clone, Debug, PartialEq)]
pub enum Exit {
    /// The guest asks for something. It must be answered, unless the guest ends.
    Call(Call),
    /// A signal or kick came; the guest can be entered again as it is.
    Interrupted,
    /// The guest broke a rule and cannot go on.
    Fault(Box<crate::Fault>),
}

/// A hypercall with its arguments, none of them checked but for their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Hypercall::Exit`].
    Exit {
        /// The low 8 bits of RDI.
        status: u8,
    },
    /// [`Hypercall::Wait`].
    Wait {
        /// In the guest's monotonic nanoseconds; [`wharf_abi::hypercall::FOREVER`] for none.
        deadline_ns: u64,
        /// Raw [`wharf_abi::Interest`] bits.
        interest: u64,
    },
    /// [`Hypercall::ConsoleWrite`].
    ConsoleWrite(UserSlice),
    /// [`Hypercall::Kick`].
    Kick {
        /// Raw: the device's place and the queue's number.
        target: u64,
    },
    /// [`Hypercall::HandOver`].
    HandOver(UserSlice),
    /// [`Hypercall::Ready`].
    Ready,
}

/// What KVM reported, before the registers are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RawExit {
    Hypercall(Hypercall),
    /// A fault stub ran: which one, RIP tells.
    Stub,
    Broken(Cause),
    EntryFailed(u64),
}

impl RawExit {
    /// Takes what is needed out of KVM's exit, whose borrow then ends.
    pub(crate) fn of(exit: VcpuExit<'_>) -> Self {
        match exit {
            VcpuExit::IoOut(FAULT_PORT, [_]) => Self::Stub,
            VcpuExit::IoOut(port, data) => match (Hypercall::from_port(port), data) {
                (Some(call), [_]) => Self::Hypercall(call),
                (_, data) => Self::Broken(Cause::port(port, Direction::Out, data.len())),
            },
            VcpuExit::IoIn(port, data) => {
                Self::Broken(Cause::port(port, Direction::In, data.len()))
            }
            VcpuExit::Shutdown => Self::Broken(Cause::TripleFault),
            VcpuExit::InternalError => Self::Broken(Cause::Emulation),
            VcpuExit::FailEntry(reason, _cpu) => Self::EntryFailed(reason),
            VcpuExit::MmioRead(gpa, _) | VcpuExit::MmioWrite(gpa, _) => {
                Self::Broken(Cause::NoMemory { gpa })
            }
            VcpuExit::MemoryFault { gpa, .. } => Self::Broken(Cause::NoMemory { gpa }),
            VcpuExit::Hlt => Self::Broken(Cause::Unexpected { what: "halt" }),
            VcpuExit::Hypercall(_) => Self::Broken(Cause::Unexpected { what: "vmcall" }),
            VcpuExit::Debug(_) => Self::Broken(Cause::Unexpected { what: "debug" }),
            _ => Self::Broken(Cause::Unexpected { what: "other" }),
        }
    }
}

impl Call {
    /// Reads the arguments of `hypercall` from the registers at its exit.
    pub(crate) fn decode(hypercall: Hypercall, regs: &kvm_regs) -> Self {
        let slice = UserSlice {
            addr: regs.rdi,
            len: regs.rsi,
        };
        match hypercall {
            Hypercall::Exit => {
                let [status, ..] = regs.rdi.to_le_bytes();
                Self::Exit { status }
            }
            Hypercall::Wait => Self::Wait {
                deadline_ns: regs.rdi,
                interest: regs.rsi,
            },
            Hypercall::ConsoleWrite => Self::ConsoleWrite(slice),
            Hypercall::Kick => Self::Kick { target: regs.rdi },
            Hypercall::HandOver => Self::HandOver(slice),
            Hypercall::Ready => Self::Ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use kvm_ioctls::VcpuExit;
    use wharf_abi::Hypercall;

    use super::{Cause, Direction, FAULT_PORT, RawExit};

    #[test]
    fn one_byte_out_to_an_open_port_is_a_hypercall() {
        for call in Hypercall::ALL {
            assert_eq!(
                RawExit::of(VcpuExit::IoOut(call.port(), &[7])),
                RawExit::Hypercall(call)
            );
        }
        assert_eq!(
            RawExit::of(VcpuExit::IoOut(FAULT_PORT, &[0])),
            RawExit::Stub
        );
    }

    #[test]
    fn any_other_width_port_or_direction_is_a_fault() {
        let port = Hypercall::Exit.port();
        let broken = |direction, len| RawExit::Broken(Cause::port(port, direction, len));
        assert_eq!(
            RawExit::of(VcpuExit::IoOut(port, &[0; 2])),
            broken(Direction::Out, 2)
        );
        assert_eq!(
            RawExit::of(VcpuExit::IoOut(port, &[0; 4])),
            broken(Direction::Out, 4)
        );
        assert_eq!(
            RawExit::of(VcpuExit::IoOut(port, &[])),
            broken(Direction::Out, 0)
        );
        assert_eq!(
            RawExit::of(VcpuExit::IoIn(port, &mut [0])),
            broken(Direction::In, 1)
        );
        let beyond = Hypercall::Ready.port() + 1;
        assert!(matches!(
            RawExit::of(VcpuExit::IoOut(beyond, &[0])),
            RawExit::Broken(_)
        ));
    }
}
