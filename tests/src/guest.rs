//! Guests of a few bytes, run by wharf-machine itself.

use std::io::Write;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, rdi, rsi};
use wharf_abi::{Answer, Hypercall, Interest};
use wharf_machine::fault::Cause;
use wharf_machine::image::Image;
use wharf_machine::{BootConfig, Call, Exit, Hypervisor, Machine};

use crate::elf::{CODE_ADDR, ElfBuilder};

/// Opens KVM, or says that the test is skipped.
///
/// # Panics
///
/// When KVM is missing and `REQUIRE_KVM=1`, or broken.
#[must_use]
pub fn kvm() -> Option<Hypervisor> {
    if std::path::Path::new("/dev/kvm").exists() {
        return Some(Hypervisor::open().expect("/dev/kvm exists, so it must work"));
    }
    assert!(
        std::env::var_os("REQUIRE_KVM").is_none_or(|value| value != "1"),
        "REQUIRE_KVM=1, and there is no /dev/kvm"
    );
    // Not `eprintln!`, which the test harness swallows when the test passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED: there is no /dev/kvm");
    None
}

/// Assembles code to stand at [`CODE_ADDR`].
///
/// # Panics
///
/// When it is no code.
#[must_use]
pub fn assemble(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).expect("64 bits are supported");
    write(&mut assembler).expect("the instructions exist");
    assembler.assemble(CODE_ADDR).expect("the code assembles")
}

/// Writes a hypercall with two arguments.
///
/// # Errors
///
/// Never: the registers exist.
pub fn call(
    a: &mut CodeAssembler,
    call: Hypercall,
    first: u64,
    second: u64,
) -> Result<(), IcedError> {
    a.mov(rdi, first)?;
    a.mov(rsi, second)?;
    a.out(i32::from(call.port()), al)
}

/// Writes an exit with a status.
///
/// # Errors
///
/// Never: the registers exist.
pub fn exit(a: &mut CodeAssembler, status: u8) -> Result<(), IcedError> {
    call(a, Hypercall::Exit, status.into(), 0)
}

/// How a guest ended and what it did before.
#[derive(Debug)]
pub struct Run {
    /// The end.
    pub end: End,
    /// What it wrote.
    pub console: Vec<u8>,
    /// Its waits: deadline and raw interest bits.
    pub waits: Vec<(u64, u64)>,
    /// The machine, as the guest left it.
    pub machine: Machine,
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By an exit hypercall.
    Exited(u8),
    /// By a fault.
    Fault(Cause),
}

/// Boots an image and runs it to its end. Waits look at the devices and return at
/// once.
///
/// # Panics
///
/// When the image is refused, the host fails, or the guest makes more than
/// 10,000 exits.
#[must_use]
pub fn run(kvm: &Hypervisor, elf: Vec<u8>, config: &BootConfig) -> Run {
    let image = Image::parse(elf).expect("a good image");
    let machine = Machine::boot(kvm, &image, config, Vec::new()).expect("a machine");
    run_machine(machine)
}

/// Runs a booted machine to its end, as [`run`].
///
/// # Panics
///
/// As [`run`].
#[must_use]
pub fn run_machine(mut machine: Machine) -> Run {
    let (mut console, mut waits) = (Vec::new(), Vec::new());
    let mut answer = None;
    for _ in 0..10_000 {
        let end = match machine.enter(answer).expect("the host works") {
            Exit::Call(Call::Exit { status }) => End::Exited(status),
            Exit::Fault(fault) => End::Fault(fault.cause),
            Exit::Call(Call::Wait {
                deadline_ns,
                interest,
            }) => {
                waits.push((deadline_ns, interest));
                match machine.serve() {
                    Ok(served) => {
                        let ready = served.ready.union(Interest::TIMER);
                        answer = Some(Answer::ok(ready.bits()));
                        continue;
                    }
                    Err(fault) => End::Fault(fault.cause),
                }
            }
            Exit::Call(Call::Kick { target }) => match machine.kick(target) {
                Ok(kicked) => {
                    answer = Some(kicked);
                    continue;
                }
                Err(fault) => End::Fault(fault.cause),
            },
            Exit::Call(Call::ConsoleWrite(slice)) => match machine.read_user(slice) {
                Ok(bytes) => {
                    answer = Some(Answer::ok(bytes.len() as u64));
                    console.extend(bytes);
                    continue;
                }
                Err(fault) => End::Fault(fault.cause),
            },
            Exit::Call(Call::HandOver(_) | Call::Ready) => {
                answer = Some(Answer::INVALID);
                continue;
            }
            Exit::Again | Exit::Interrupted => {
                answer = None;
                continue;
            }
        };
        return Run {
            end,
            console,
            waits,
            machine,
        };
    }
    panic!("the guest does not end");
}

/// Runs raw code as [`run`] does, with default memory and no arguments.
#[must_use]
pub fn run_code(kvm: &Hypervisor, code: &[u8]) -> Run {
    run(kvm, ElfBuilder::guest(code).build(), &BootConfig::default())
}
