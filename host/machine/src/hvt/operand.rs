//! What an instruction works on: its own bytes, registers, memory and ports.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};
use kvm_bindings::kvm_regs;

use super::cpu::is_canonical;
use super::emulate::{Context, Refusal};
use super::exception::Exception;
use crate::device::UserMemory;

/// Longest instruction, in bytes (SDM vol. 2 §2.3.11).
const INSTRUCTION_MAX: usize = 15;

/// Decodes what is at `rip`, as far as it can be executed.
pub(super) fn fetch(rip: u64, user: UserMemory<'_>) -> Option<Instruction> {
    let mut bytes = [0; INSTRUCTION_MAX];
    let len = user.fetch(rip, &mut bytes);
    let mut decoder = Decoder::with_ip(64, bytes.get(..len)?, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// A selector in a register or in memory.
pub(super) fn source(
    instruction: &Instruction,
    operand: u32,
    context: &Context,
    user: UserMemory<'_>,
) -> Result<u16, Refusal> {
    let from = instruction.op_register(operand);
    if from == Register::None {
        let addr = address(instruction, operand, context)?;
        return Ok(u16::from_le_bytes(read(user, addr)?));
    }
    let value = value(context, from).ok_or(Refusal::Ordinary)?;
    let [low, high, ..] = value.to_le_bytes();
    Ok(u16::from_le_bytes([low, high]))
}

/// What is at an address that the guest may read.
pub(super) fn read<const N: usize>(user: UserMemory<'_>, addr: u64) -> Result<[u8; N], Exception> {
    user.read(addr).ok_or(Exception::page_fault(addr, false))
}

/// The address that an operand in memory has.
pub(super) fn address(
    instruction: &Instruction,
    operand: u32,
    context: &Context,
) -> Result<u64, Exception> {
    instruction
        .virtual_address(operand, 0, |register, _, _| match register {
            Register::FS => Some(context.fs_base),
            Register::GS => Some(context.gs_base),
            Register::CS | Register::DS | Register::ES | Register::SS => Some(0),
            _ => value(context, register),
        })
        .filter(|addr| is_canonical(*addr))
        .ok_or(Exception::protection(0))
}

/// What is in a general register, or in its lower half.
fn value(context: &Context, register: Register) -> Option<u64> {
    let mut regs = context.regs;
    if let Some(value) = general(&mut regs, register) {
        return Some(*value);
    }
    let (whole, _, _) = GENERAL
        .into_iter()
        .find(|(_, half, quarter)| [*half, *quarter].contains(&register))?;
    let value = *general(&mut regs, whole)?;
    Some(value & u64::from(u32::MAX))
}

/// The general registers, with what their lower halves and quarters are called.
const GENERAL: [(Register, Register, Register); 16] = [
    (Register::RAX, Register::EAX, Register::AX),
    (Register::RBX, Register::EBX, Register::BX),
    (Register::RCX, Register::ECX, Register::CX),
    (Register::RDX, Register::EDX, Register::DX),
    (Register::RSI, Register::ESI, Register::SI),
    (Register::RDI, Register::EDI, Register::DI),
    (Register::RSP, Register::ESP, Register::SP),
    (Register::RBP, Register::EBP, Register::BP),
    (Register::R8, Register::R8D, Register::R8W),
    (Register::R9, Register::R9D, Register::R9W),
    (Register::R10, Register::R10D, Register::R10W),
    (Register::R11, Register::R11D, Register::R11W),
    (Register::R12, Register::R12D, Register::R12W),
    (Register::R13, Register::R13D, Register::R13W),
    (Register::R14, Register::R14D, Register::R14W),
    (Register::R15, Register::R15D, Register::R15W),
];

/// A general register's place.
pub(super) fn general(regs: &mut kvm_regs, register: Register) -> Option<&mut u64> {
    Some(match register {
        Register::RAX => &mut regs.rax,
        Register::RBX => &mut regs.rbx,
        Register::RCX => &mut regs.rcx,
        Register::RDX => &mut regs.rdx,
        Register::RSI => &mut regs.rsi,
        Register::RDI => &mut regs.rdi,
        Register::RSP => &mut regs.rsp,
        Register::RBP => &mut regs.rbp,
        Register::R8 => &mut regs.r8,
        Register::R9 => &mut regs.r9,
        Register::R10 => &mut regs.r10,
        Register::R11 => &mut regs.r11,
        Register::R12 => &mut regs.r12,
        Register::R13 => &mut regs.r13,
        Register::R14 => &mut regs.r14,
        Register::R15 => &mut regs.r15,
        _ => return None,
    })
}

/// The port that an instruction is for, and the bytes that it moves at once.
pub(super) fn port(instruction: &Instruction, context: &Context) -> (u16, usize) {
    use Code::{
        In_AL_DX, In_AL_imm8, In_AX_DX, In_AX_imm8, In_EAX_imm8, Out_DX_AL, Out_DX_AX, Out_imm8_AL,
        Out_imm8_AX, Out_imm8_EAX,
    };
    let code = instruction.code();
    let [low, high, ..] = context.regs.rdx.to_le_bytes();
    let port = match code {
        In_AL_imm8 | In_AX_imm8 | In_EAX_imm8 | Out_imm8_AL | Out_imm8_AX | Out_imm8_EAX => {
            u16::from(instruction.immediate8())
        }
        _ => u16::from_le_bytes([low, high]),
    };
    let bytes = match code {
        In_AL_imm8 | In_AL_DX | Out_imm8_AL | Out_DX_AL | Code::Insb_m8_DX | Code::Outsb_DX_m8 => 1,
        In_AX_imm8
        | In_AX_DX
        | Out_imm8_AX
        | Out_DX_AX
        | Code::Insw_m16_DX
        | Code::Outsw_DX_m16 => 2,
        _ => 4,
    };
    (port, bytes)
}
