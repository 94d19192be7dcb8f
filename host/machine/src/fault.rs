//! How a guest died.

use std::fmt;

use kvm_bindings::kvm_regs;

use crate::device::DeviceFault;
use crate::space::UserSlice;

/// A guest's end that was its own fault, with the state at that moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What it did.
    pub cause: Cause,
    /// General registers, RIP, RSP and RFLAGS as the guest had them.
    pub registers: kvm_regs,
}

impl Fault {
    pub(crate) const fn new(cause: Cause, registers: kvm_regs) -> Self {
        Self { cause, registers }
    }
}

/// What a guest did to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The CPU raised an exception.
    Exception(Exception),
    /// A port that is open, in a way that is no hypercall.
    Port {
        /// Which.
        port: u16,
        /// Which way.
        direction: Direction,
        /// Bytes moved.
        bytes: usize,
    },
    /// A hypercall got a range that the guest may not read.
    BadPointer(UserSlice),
    /// A device was set up or asked in a way that makes no sense.
    Device(DeviceFault),
    /// An exception while raising an exception while raising an exception.
    TripleFault,
    /// KVM had to emulate an instruction and could not.
    Emulation,
    /// A mapped page has no memory behind it.
    NoMemory {
        /// Guest-physical address.
        gpa: u64,
    },
    /// A privileged instruction that hvt guests have no use for.
    Privileged {
        /// What it is.
        what: &'static str,
    },
    /// An hvt guest waits for an interrupt, of which there are none.
    Halted,
    /// An exit that a guest at CPL 3 should not be able to cause.
    Unexpected {
        /// What KVM called it.
        what: &'static str,
    },
}

/// Direction of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards the guest.
    In,
    /// Towards the host.
    Out,
}

/// An exception as its stack frame tells it (Intel SDM vol. 3, "64-Bit Mode Stack Frame").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// 0 to 31.
    pub vector: u8,
    /// The error code, of those that push one.
    pub error: Option<u64>,
    /// The address that missed, of a page fault.
    pub cr2: Option<u64>,
}

impl Cause {
    pub(crate) const fn port(port: u16, direction: Direction, bytes: usize) -> Self {
        Self::Port {
            port,
            direction,
            bytes,
        }
    }
}

impl Exception {
    const PAGE_FAULT: u8 = 14;

    pub(crate) const fn new(vector: u8, pushed: u64, cr2: u64) -> Self {
        Self {
            vector,
            error: if has_error_code(vector) {
                Some(pushed)
            } else {
                None
            },
            cr2: if vector == Self::PAGE_FAULT {
                Some(cr2)
            } else {
                None
            },
        }
    }

    /// The manual's name and mnemonic (SDM vol. 3 table 6-1).
    #[must_use]
    pub const fn name(&self) -> (&'static str, &'static str) {
        match self.vector {
            0 => ("divide error", "#DE"),
            1 => ("debug", "#DB"),
            2 => ("non-maskable interrupt", "NMI"),
            3 => ("breakpoint", "#BP"),
            4 => ("overflow", "#OF"),
            5 => ("bound range exceeded", "#BR"),
            6 => ("invalid opcode", "#UD"),
            7 => ("device not available", "#NM"),
            8 => ("double fault", "#DF"),
            10 => ("invalid TSS", "#TS"),
            11 => ("segment not present", "#NP"),
            12 => ("stack-segment fault", "#SS"),
            13 => ("general protection", "#GP"),
            14 => ("page fault", "#PF"),
            16 => ("x87 floating-point error", "#MF"),
            17 => ("alignment check", "#AC"),
            18 => ("machine check", "#MC"),
            19 => ("SIMD floating-point error", "#XM"),
            20 => ("virtualization", "#VE"),
            21 => ("control protection", "#CP"),
            28 => ("hypervisor injection", "#HV"),
            29 => ("VMM communication", "#VC"),
            30 => ("security", "#SX"),
            _ => ("reserved exception", "#?"),
        }
    }

    /// Says what the error code means, when there is one.
    #[must_use]
    pub fn error_meaning(&self) -> Option<String> {
        let error = self.error?;
        match self.vector {
            Self::PAGE_FAULT => Some(page_fault_meaning(error)),
            8 | 17 => None,
            _ => selector_meaning(error),
        }
    }
}

const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// SDM vol. 3 figure 4-12.
fn page_fault_meaning(error: u64) -> String {
    let access = match (error & 1 << 4 != 0, error & 1 << 1 != 0) {
        (true, _) => "execute",
        (false, true) => "write",
        (false, false) => "read",
    };
    let page = if error & 1 << 3 != 0 {
        "a page with reserved bits set"
    } else if error & 1 != 0 {
        "a page that does not allow it"
    } else {
        "a page that is not mapped"
    };
    format!("{access} of {page}")
}

/// SDM vol. 3 figure 6-7. Zero is the common case, and says nothing.
fn selector_meaning(error: u64) -> Option<String> {
    if error == 0 {
        return None;
    }
    let index = error >> 3 & 0x1FFF;
    let table = match error >> 1 & 0b11 {
        0 => "GDT",
        2 => "LDT",
        _ => "IDT",
    };
    Some(format!("{table} entry {index}"))
}

impl fmt::Display for Cause {
    /// One line that names the cause.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exception(exception) => {
                let (name, mnemonic) = exception.name();
                write!(f, "{name} ({mnemonic}, vector {})", exception.vector)
            }
            Self::Port {
                port,
                direction,
                bytes,
            } => {
                let way = match direction {
                    Direction::In => "in from",
                    Direction::Out => "out to",
                };
                write!(f, "no such hypercall ({way} port {port:#x}, {bytes} bytes)")
            }
            Self::BadPointer(UserSlice { addr, len }) => {
                write!(f, "bad pointer in a hypercall ({addr:#x}, {len} bytes)")
            }
            Self::Device(fault) => write!(f, "{fault}"),
            Self::TripleFault => f.write_str("triple fault"),
            Self::Emulation => f.write_str("instruction that KVM cannot emulate"),
            Self::NoMemory { gpa } => write!(f, "no memory at guest-physical {gpa:#x}"),
            Self::Privileged { what } => {
                write!(f, "privileged instruction that is not emulated ({what})")
            }
            Self::Halted => f.write_str("hlt, which nothing would ever end"),
            Self::Unexpected { what } => write!(f, "unexpected exit ({what})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Cause, Exception};

    #[test]
    fn page_fault_codes_are_spelled_out() {
        let meaning = |error| Exception::new(14, error, 8).error_meaning().unwrap();
        assert_eq!(meaning(0b00100), "read of a page that is not mapped");
        assert_eq!(meaning(0b00110), "write of a page that is not mapped");
        assert_eq!(meaning(0b00111), "write of a page that does not allow it");
        assert_eq!(meaning(0b10101), "execute of a page that does not allow it");
        assert_eq!(meaning(0b01101), "read of a page with reserved bits set");
    }

    #[test]
    fn only_the_vectors_of_the_manual_carry_an_error_code() {
        let with: Vec<_> = (0..32)
            .filter(|&v| Exception::new(v, 9, 0).error.is_some())
            .collect();
        assert_eq!(with, [8, 10, 11, 12, 13, 14, 17, 21, 29, 30]);
        assert_eq!(Exception::new(13, 0, 7).cr2, None);
    }

    #[test]
    fn a_selector_error_names_its_table() {
        let meaning = |error| Exception::new(13, error, 0).error_meaning();
        assert_eq!(meaning(0), None);
        assert_eq!(meaning(0x80 << 3 | 2).as_deref(), Some("IDT entry 128"));
        assert_eq!(meaning(0x28).as_deref(), Some("GDT entry 5"));
    }

    #[test]
    fn every_vector_has_a_name_and_says_it() {
        let cause = Cause::Exception(Exception::new(6, 0, 0));
        assert_eq!(cause.to_string(), "invalid opcode (#UD, vector 6)");
    }
}
