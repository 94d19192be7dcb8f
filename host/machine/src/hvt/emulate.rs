//! The privileged instructions that hvt guests need, done for them at CPL 3.
//!
//! The CPU answers each with #GP, whose handler is the host's. What the instruction at
//! fault is, iced-x86 says; what it does is here, one arm of [`emulate`] each. Other
//! privileged instructions have no place in such a guest and end it; what is not
//! privileged at all is an exception of the guest's own.

use iced_x86::{Code, Instruction, Mnemonic, Register};
use kvm_bindings::kvm_regs;

use super::cpu::{Cpu, RPL, Table, is_canonical, is_null};
use super::exception::{Exception, RFLAGS_FIXED, RFLAGS_IF, RFLAGS_NT, RFLAGS_RF, RFLAGS_TF};
use super::operand::{self, address, fetch, general, read, source};
use crate::device::UserMemory;
use crate::fault::Direction;

const MSR_FS_BASE: u64 = 0xC000_0100;

/// What a return from an exception may set: CF, PF, AF, ZF, SF, TF, IF, DF, OF, NT, RF,
/// AC and ID (SDM vol. 1 §3.4.3). The rest is the host's.
const RFLAGS_RETURNED: u64 = 0x25_4FD5;

/// Where the guest was left, as far as an instruction can change it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Context {
    pub(crate) regs: kvm_regs,
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
}

/// Why an instruction was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is not privileged: the exception is the guest's to handle.
    Ordinary,
    /// It raises this exception instead.
    Raises(Exception),
    /// It waits for an interrupt, of which there are none.
    Halts,
    /// A port of which the contract knows nothing.
    Port {
        port: u16,
        direction: Direction,
        bytes: usize,
    },
    /// It is privileged, and nothing that such a guest needs.
    Privileged(&'static str),
}

/// What an instruction leaves behind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Done {
    pub(crate) after: Context,
    /// Whether it is trapped: it began with TF set (SDM vol. 3 §18.3.1.4).
    pub(crate) is_step: bool,
}

/// Does the instruction that the guest was left at.
///
/// # Errors
///
/// [`Refusal`]; nothing has changed then.
pub(crate) fn emulate(
    cpu: &mut Cpu,
    context: &Context,
    user: UserMemory<'_>,
) -> Result<Done, Refusal> {
    let instruction = fetch(context.regs.rip, user).ok_or(Refusal::Ordinary)?;
    let mut is_step = context.regs.rflags & RFLAGS_TF != 0;
    let mut after = *context;
    after.regs.rip = instruction.next_ip();
    // The exception that brought it here had set it.
    after.regs.rflags &= !RFLAGS_RF;
    match instruction.code() {
        Code::Lgdt_m1664 => cpu.gdt = Some(load_table(&instruction, context, user)?),
        Code::Lidt_m1664 => cpu.idt = Some(load_table(&instruction, context, user)?),
        Code::Ltr_rm16 | Code::Ltr_r32m16 | Code::Ltr_r64m16 => {
            let selector = source(&instruction, 0, context, user)?;
            cpu.load_task(user, selector)?;
        }
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => {
            let selector = source(&instruction, 1, context, user)?;
            load_segment(cpu, &mut after, user, instruction.op0_register(), selector)?;
            // Between this and a load of RSP nothing gets (SDM vol. 3 §6.8.3): the next
            // instruction is trapped, by the CPU itself.
            is_step &= instruction.op0_register() != Register::SS;
        }
        Code::Retfq | Code::Retfq_imm16 => {
            let [rip, cs] = stack(&context.regs, user)?;
            return_to(cpu, &mut after.regs, user, rip, cs)?;
            // And what the caller had pushed, which the longer form says.
            let pushed = u64::from(instruction.immediate16());
            let taken = pushed.wrapping_add(16);
            after.regs.rsp = context.regs.rsp.wrapping_add(taken);
        }
        Code::Iretq => {
            if context.regs.rflags & RFLAGS_NT != 0 {
                return Err(Exception::protection(0).into());
            }
            let [rip, cs, rflags, rsp, ss] = stack(&context.regs, user)?;
            let [ss0, ss1, ..] = ss.to_le_bytes();
            let ss = u16::from_le_bytes([ss0, ss1]);
            check_stack(cpu, user, ss)?;
            return_to(cpu, &mut after.regs, user, rip, cs)?;
            cpu.ss = ss;
            after.regs.rsp = rsp;
            after.regs.rflags = rflags & RFLAGS_RETURNED | RFLAGS_FIXED;
        }
        Code::Wrmsr => {
            let low = |register: u64| register & u64::from(u32::MAX);
            let base = low(context.regs.rdx) << 32 | low(context.regs.rax);
            if low(context.regs.rcx) != MSR_FS_BASE {
                return Err(Refusal::Privileged(
                    "wrmsr of another register than FS_BASE",
                ));
            }
            if !is_canonical(base) {
                return Err(Exception::protection(0).into());
            }
            after.fs_base = base;
        }
        Code::Mov_r64_cr if instruction.op1_register() == Register::CR2 => {
            let to = general(&mut after.regs, instruction.op0_register());
            *to.ok_or(Refusal::Ordinary)? = cpu.cr2;
        }
        Code::Cli => after.regs.rflags &= !RFLAGS_IF,
        Code::Sti => after.regs.rflags |= RFLAGS_IF,
        Code::Hlt => return Err(Refusal::Halts),
        _ => return Err(refusal(&instruction, context)),
    }
    Ok(Done { after, is_step })
}

impl From<Exception> for Refusal {
    fn from(exception: Exception) -> Self {
        Self::Raises(exception)
    }
}

/// Whether the instruction at `rip` is a return that is emulated. At CPL 3 the CPU may
/// look at more of the stack before it refuses one than the return needs, which ends at
/// the end of memory.
pub(crate) fn is_return(rip: u64, user: UserMemory<'_>) -> bool {
    let instruction = fetch(rip, user);
    instruction.is_some_and(|it| matches!(it.code(), Code::Retfq | Code::Retfq_imm16 | Code::Iretq))
}

/// The operand of LGDT and LIDT: limit, then base.
fn load_table(
    instruction: &Instruction,
    context: &Context,
    user: UserMemory<'_>,
) -> Result<Table, Exception> {
    let addr = address(instruction, 0, context)?;
    let [l0, l1, base @ ..] = read::<10>(user, addr)?;
    let base = u64::from_le_bytes(base);
    if !is_canonical(base) {
        return Err(Exception::protection(0));
    }
    Ok(Table {
        base,
        limit: u32::from(u16::from_le_bytes([l0, l1])),
    })
}

/// Loads a segment register. Of what is in a segment only FS and GS have anything in
/// 64-bit mode.
fn load_segment(
    cpu: &mut Cpu,
    after: &mut Context,
    user: UserMemory<'_>,
    segment: Register,
    selector: u16,
) -> Result<(), Refusal> {
    if segment == Register::SS {
        check_stack(cpu, user, selector)?;
        cpu.ss = selector;
        return Ok(());
    }
    let base = if is_null(selector) {
        0
    } else {
        let descriptor = cpu.descriptor(user, selector)?;
        if !descriptor.is_readable() {
            return Err(Exception::protection(selector).into());
        }
        if !descriptor.is_present() {
            return Err(Exception::not_present(selector).into());
        }
        descriptor.base()
    };
    match segment {
        Register::DS | Register::ES => {}
        Register::FS => after.fs_base = base,
        Register::GS => after.gs_base = base,
        _ => return Err(Refusal::Ordinary),
    }
    Ok(())
}

/// Whether SS can hold a selector; nothing at all is allowed in ring 0.
fn check_stack(cpu: &Cpu, user: UserMemory<'_>, selector: u16) -> Result<(), Exception> {
    if selector & RPL != 0 {
        return Err(Exception::protection(selector));
    }
    if is_null(selector) {
        return Ok(());
    }
    let descriptor = cpu.descriptor(user, selector)?;
    if !descriptor.is_stack() {
        return Err(Exception::protection(selector));
    }
    if !descriptor.is_present() {
        return Err(Exception {
            vector: 12,
            ..Exception::protection(selector)
        });
    }
    Ok(())
}

/// Goes to another place of ring 0's code.
fn return_to(
    cpu: &mut Cpu,
    regs: &mut kvm_regs,
    user: UserMemory<'_>,
    rip: u64,
    cs: u64,
) -> Result<(), Exception> {
    let [low, high, ..] = cs.to_le_bytes();
    let cs = u16::from_le_bytes([low, high]);
    cpu.check_code(user, cs)?;
    if !is_canonical(rip) {
        return Err(Exception::protection(0));
    }
    cpu.cs = cs;
    regs.rip = rip;
    Ok(())
}

/// The words at the top of the stack.
fn stack<const N: usize>(regs: &kvm_regs, user: UserMemory<'_>) -> Result<[u64; N], Exception> {
    let mut words = [0; N];
    for (word, n) in words.iter_mut().zip(0_u64..) {
        let addr = regs.rsp.wrapping_add(n.wrapping_mul(8));
        *word = u64::from_le_bytes(read(user, addr)?);
    }
    Ok(words)
}

/// What becomes of an instruction that is not emulated.
fn refusal(instruction: &Instruction, context: &Context) -> Refusal {
    let name = match instruction.mnemonic() {
        Mnemonic::In | Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => {
            return refused_port(instruction, context, Direction::In);
        }
        Mnemonic::Out | Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
            return refused_port(instruction, context, Direction::Out);
        }
        Mnemonic::Mov => match instruction.code() {
            Code::Mov_r64_cr | Code::Mov_cr_r64 => "mov of a control register",
            Code::Mov_r64_dr | Code::Mov_dr_r64 => "mov of a debug register",
            _ => return Refusal::Ordinary,
        },
        Mnemonic::Clts => "clts",
        Mnemonic::Int => "int",
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => "invalidation of caches",
        Mnemonic::Invlpg | Mnemonic::Invpcid => "invalidation of a page",
        Mnemonic::Iretd | Mnemonic::Iret => "iret of another size than 64 bits",
        Mnemonic::Retf => "far return of another size than 64 bits",
        Mnemonic::Lgdt | Mnemonic::Lidt => "load of a descriptor table",
        Mnemonic::Lldt => "lldt",
        Mnemonic::Lmsw => "lmsw",
        Mnemonic::Monitor | Mnemonic::Mwait => "monitor or mwait",
        Mnemonic::Rdmsr => "rdmsr",
        Mnemonic::Rdpmc => "rdpmc",
        Mnemonic::Sgdt | Mnemonic::Sidt | Mnemonic::Sldt | Mnemonic::Smsw | Mnemonic::Str => {
            "store of a system register"
        }
        Mnemonic::Swapgs => "swapgs",
        Mnemonic::Sysexit | Mnemonic::Sysexitq | Mnemonic::Sysret | Mnemonic::Sysretq => {
            "sysexit or sysret"
        }
        Mnemonic::Xsetbv => "xsetbv",
        Mnemonic::Call | Mnemonic::Jmp => match instruction.code() {
            Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664 => "far call",
            Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664 => "far jump",
            _ => return Refusal::Ordinary,
        },
        Mnemonic::Lss | Mnemonic::Lfs | Mnemonic::Lgs => "load of a far pointer",
        Mnemonic::Pop if [Register::FS, Register::GS].contains(&instruction.op0_register()) => {
            "pop of a segment register"
        }
        _ => return Refusal::Ordinary,
    };
    Refusal::Privileged(name)
}

fn refused_port(instruction: &Instruction, context: &Context, direction: Direction) -> Refusal {
    let (port, bytes) = operand::port(instruction, context);
    Refusal::Port {
        port,
        direction,
        bytes,
    }
}

#[cfg(test)]
mod tests;
