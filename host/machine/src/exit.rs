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
    /// What the guest wanted was done here, for it wanted nothing of its host; it can be
    /// entered again as it is.
    Again,
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
    /// An output of so many bytes, the first of them in `value`.
    Out {
        port: u16,
        bytes: usize,
        value: u32,
    },
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
            VcpuExit::IoOut(port, data) => {
                let mut value = [0; 4];
                for (to, from) in value.iter_mut().zip(data) {
                    *to = *from;
                }
                Self::Out {
                    port,
                    bytes: data.len(),
                    value: u32::from_le_bytes(value),
                }
            }
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
    /// Reads the call that an output of so many bytes to `port` is, its arguments from
    /// the registers at the exit.
    ///
    /// # Errors
    ///
    /// The guest's fault: there is no such call.
    pub(crate) fn decode(port: u16, bytes: usize, regs: &kvm_regs) -> Result<Self, Cause> {
        let hypercall = Hypercall::from_port(port).filter(|_| bytes == 1);
        let hypercall = hypercall.ok_or(Cause::port(port, Direction::Out, bytes))?;
        let slice = UserSlice {
            addr: regs.rdi,
            len: regs.rsi,
        };
        Ok(match hypercall {
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
        })
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_regs;
    use kvm_ioctls::VcpuExit;
    use wharf_abi::Hypercall;

    use super::{Call, Cause, Direction, FAULT_PORT, RawExit};

    #[test]
    fn one_byte_out_to_an_open_port_is_a_hypercall() {
        let regs = kvm_regs::default();
        for call in Hypercall::ALL {
            let port = call.port();
            let exit = RawExit::of(VcpuExit::IoOut(port, &[7]));
            let (bytes, value) = (1, 7);
            assert_eq!(exit, RawExit::Out { port, bytes, value });
            assert!(Call::decode(port, 1, &regs).is_ok());
        }
        assert_eq!(
            RawExit::of(VcpuExit::IoOut(FAULT_PORT, &[0])),
            RawExit::Stub
        );
    }

    #[test]
    fn any_other_width_port_or_direction_is_a_fault() {
        let regs = kvm_regs::default();
        let port = Hypercall::Exit.port();
        for bytes in [0, 2, 4, 8] {
            let broken = Cause::port(port, Direction::Out, bytes);
            assert_eq!(Call::decode(port, bytes, &regs), Err(broken));
        }
        let beyond = Hypercall::Ready.port() + 1;
        assert!(Call::decode(beyond, 1, &regs).is_err());
        let broken = RawExit::Broken(Cause::port(port, Direction::In, 1));
        assert_eq!(RawExit::of(VcpuExit::IoIn(port, &mut [0])), broken);
    }

    #[test]
    fn what_an_output_carries_is_its_first_four_bytes() {
        let of = |data: &[u8]| match RawExit::of(VcpuExit::IoOut(0x501, data)) {
            RawExit::Out { bytes, value, .. } => (bytes, value),
            other => panic!("{other:?}"),
        };
        assert_eq!(of(&[1, 2, 3, 4]), (4, 0x0403_0201));
        assert_eq!(of(&[1, 2, 3, 4, 5]), (5, 0x0403_0201));
        assert_eq!(of(&[]), (0, 0));
    }
}
