//! What the operator reads when a guest dies.

use std::fmt;

use crate::fault::{Cause, Fault};
use crate::image::{Access, Image, Symbols};
use crate::machine::Machine;
use crate::memory::PAGE;

/// Most frames of a backtrace.
const FRAMES_MAX: usize = 16;

/// A fault, with names from the image's symbols. Its `Display` is several lines
/// of printable text, whatever the image calls its symbols.
#[derive(Debug)]
pub struct Report<'a> {
    fault: &'a Fault,
    bias: u64,
    symbols: Symbols<'a>,
    frames: Vec<u64>,
    stack_overflow: bool,
}

impl<'a> Report<'a> {
    /// Gathers what can be told about `fault` of the guest in `machine`, which
    /// runs `image`.
    #[must_use]
    pub fn new(fault: &'a Fault, machine: &Machine, image: &'a Image) -> Self {
        let layout = machine.layout();
        let cr2 = match fault.cause {
            Cause::Exception(exception) => exception.cr2,
            _ => None,
        };
        Self {
            fault,
            bias: layout.bias,
            symbols: image.symbols(),
            frames: backtrace(fault, machine),
            stack_overflow: cr2.is_some_and(|cr2| layout.guard.contains(&cr2)),
        }
    }

    fn address(&self, f: &mut fmt::Formatter<'_>, addr: u64) -> fmt::Result {
        write!(f, "{addr:#018x}")?;
        let in_image = addr.wrapping_sub(self.bias);
        match self.symbols.lookup(in_image) {
            Some((name, 0)) => write!(f, "  {name}"),
            Some((name, offset)) => write!(f, "  {name} + {offset:#x}"),
            None => Ok(()),
        }
    }

    /// A return address belongs to the call before it, which may be the last
    /// thing in its function.
    fn return_address(&self, f: &mut fmt::Formatter<'_>, addr: u64) -> fmt::Result {
        write!(f, "{addr:#018x}")?;
        let in_call = addr.wrapping_sub(self.bias).wrapping_sub(1);
        match self.symbols.lookup(in_call) {
            Some((name, offset)) => write!(f, "  {name} + {:#x}", offset.saturating_add(1)),
            None => Ok(()),
        }
    }

    /// The callers, a run of the same one only once.
    fn backtrace(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut frames = self.frames.as_slice();
        if !frames.is_empty() {
            f.write_str("\n  called from")?;
        }
        while let Some((frame, rest)) = frames.split_first() {
            f.write_str("\n    ")?;
            self.return_address(f, *frame)?;
            let same = rest.iter().take_while(|other| *other == frame).count();
            if same > 0 {
                write!(f, "\n    the same, {same} times more")?;
            }
            frames = rest.get(same..).unwrap_or_default();
        }
        if self.frames.len() == FRAMES_MAX {
            f.write_str("\n    and more")?;
        }
        Ok(())
    }
}

/// Follows frame pointers: each frame holds the caller's RBP and, above it, the
/// return address. Stops at the first thing that is no frame.
fn backtrace(fault: &Fault, machine: &Machine) -> Vec<u64> {
    let mut frames = Vec::new();
    let mut frame = fault.registers.rbp;
    let executable = |addr| {
        machine
            .space()
            .at(addr)
            .is_some_and(|mapping| mapping.access == Access::ReadExecute)
    };
    while frames.len() < FRAMES_MAX {
        let Some([caller, return_address]) = machine.read_words::<2>(frame) else {
            break;
        };
        if !executable(return_address) {
            break;
        }
        frames.push(return_address);
        // A caller's frame is above: anything else is no frame, or a loop.
        if caller <= frame {
            break;
        }
        frame = caller;
    }
    frames
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault {
            cause,
            registers: r,
        } = self.fault;
        writeln!(f, "fault: {cause}")?;
        if let Cause::Exception(exception) = cause {
            if let Some(error) = exception.error {
                write!(f, "  error {error:#x}")?;
                match exception.error_meaning() {
                    Some(meaning) => writeln!(f, "  {meaning}")?,
                    None => writeln!(f)?,
                }
            }
            if let Some(cr2) = exception.cr2 {
                f.write_str("  cr2 ")?;
                self.address(f, cr2)?;
                if self.stack_overflow {
                    f.write_str("  stack overflow: the guard page below the stack")?;
                } else if cr2 < PAGE {
                    f.write_str("  null page")?;
                }
                writeln!(f)?;
            }
        }
        f.write_str("  rip ")?;
        self.address(f, r.rip)?;
        writeln!(f)?;
        let row = |f: &mut fmt::Formatter<'_>, row: [(&str, u64); 4]| {
            for (name, value) in row {
                write!(f, "  {name:<3} {value:016x}")?;
            }
            writeln!(f)
        };
        row(
            f,
            [
                ("rax", r.rax),
                ("rbx", r.rbx),
                ("rcx", r.rcx),
                ("rdx", r.rdx),
            ],
        )?;
        row(
            f,
            [
                ("rsi", r.rsi),
                ("rdi", r.rdi),
                ("rbp", r.rbp),
                ("rsp", r.rsp),
            ],
        )?;
        row(
            f,
            [("r8", r.r8), ("r9", r.r9), ("r10", r.r10), ("r11", r.r11)],
        )?;
        row(
            f,
            [
                ("r12", r.r12),
                ("r13", r.r13),
                ("r14", r.r14),
                ("r15", r.r15),
            ],
        )?;
        write!(f, "  rflags {:#x}", r.rflags)?;
        self.backtrace(f)
    }
}
