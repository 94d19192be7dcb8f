//! Each hypercall, what it may be given, and what it may not.

use iced_x86::code_asm::{al, ax, dx, eax, edx, rax, rbx};
use wharf_abi::{Answer, Interest};
use wharf_machine::fault::{Cause, Direction};
use wharf_machine::image::Image;
use wharf_machine::{BootConfig, Call, Exit, Hypervisor, Machine, UserSlice};
use wharf_tests::elf::{CODE_ADDR, R};
use wharf_tests::guest::{End, assemble, kvm, run};
use wharf_tests::hvt::{
    BLOCK_READ, BLOCK_WRITE, HALT, HvtBuilder, NET_READ, NET_WRITE, POLL, PORT_BASE, PUTS,
    WALLTIME, call, call_with, halt, puts, puts_stack,
};

const MEMORY: u64 = 8 << 20;
const DATA: u64 = 0x50_0000;
const RODATA: u64 = 0x60_0000;

fn config() -> BootConfig {
    BootConfig {
        memory: MEMORY,
        ..BootConfig::default()
    }
}

/// All of it is written, however much, in as many pieces as the host likes.
#[test]
fn what_is_put_is_written_whole() {
    let Some(kvm) = kvm() else { return };
    for len in [0, 1, 4095, 4096, 4097, 100_000] {
        let code = assemble(|a| {
            puts(a, DATA, len)?;
            halt(a, 0)
        });
        let bytes: Vec<u8> = (0..len).map(|n| b'a' + (n % 26) as u8).collect();
        let elf = HvtBuilder::guest(&code)
            .segment(DATA, 6, &bytes, 100_001)
            .build();
        let run = run(&kvm, elf, &config());
        assert_eq!(run.end, End::Exited(0));
        assert_eq!(run.console, bytes);
    }
}

#[test]
fn an_empty_write_may_point_anywhere() {
    let Some(kvm) = kvm() else { return };
    for addr in [0, 1, MEMORY, u64::MAX] {
        let code = assemble(|a| {
            puts(a, addr, 0)?;
            halt(a, 3)
        });
        let run = run(&kvm, HvtBuilder::guest(&code).build(), &config());
        assert_eq!(run.end, End::Exited(3), "{addr:#x}");
    }
}

/// A wait ends at a moment of the guest's own clock, and may be for frames.
#[test]
fn a_poll_is_a_wait_from_now_on() {
    let Some(kvm) = kvm() else { return };
    for timeout in [0, 1, 1_000_000_000, u64::MAX / 2, u64::MAX] {
        let code = assemble(|a| {
            call_with(a, POLL, &[timeout, u64::MAX, u64::MAX])?;
            puts_stack(a, 3)?;
            halt(a, 0)
        });
        let image = Image::parse(HvtBuilder::guest(&code).build()).unwrap();
        let mut machine = Machine::boot(&kvm, &image, &config(), Vec::new()).unwrap();
        let before = machine.monotonic_ns();
        let Exit::Call(Call::Wait {
            deadline_ns,
            interest,
        }) = machine.enter(None).unwrap()
        else {
            panic!("it polls");
        };
        let after = machine.monotonic_ns();
        let range = before.saturating_add(timeout)..=after.saturating_add(timeout);
        assert!(range.contains(&deadline_ns), "{timeout}: {deadline_ns}");
        assert_eq!(Interest::from_bits(interest), Some(Interest::DEVICES));
        assert!(machine.enter(None).is_err(), "it waits for an answer");
        let mut answer = Some(Answer::ok(Interest::TIMER.bits()));
        let mut console = Vec::new();
        let status = loop {
            match machine.enter(answer.take()).unwrap() {
                Exit::Call(Call::ConsoleWrite(slice)) => {
                    console = machine.read_user(slice).unwrap();
                    answer = Some(Answer::ok(console.len() as u64));
                }
                Exit::Call(Call::Exit { status }) => break status,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(status, 0);
        let words: Vec<u64> = console
            .chunks(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [timeout, 0, u64::MAX << 32], "nothing is ready");
    }
}

fn ends(kvm: &Hypervisor, code: &[u8]) -> End {
    let elf = HvtBuilder::guest(code)
        .data(DATA, &[0; 4096])
        .segment(RODATA, R, &[0; 4096], 4096)
        .build();
    run(kvm, elf, &config()).end
}

/// Every call, the bytes of its arguments, and whether there are results among them.
const CALLS: [(u16, u64, bool); 8] = [
    (WALLTIME, 8, true),
    (PUTS, 16, false),
    (POLL, 24, true),
    (BLOCK_WRITE, 40, true),
    (BLOCK_READ, 40, true),
    (NET_WRITE, 32, true),
    (NET_READ, 32, true),
    (HALT, 16, false),
];

#[test]
fn arguments_may_lie_wherever_the_guest_may_use_them_and_nowhere_else() {
    let Some(kvm) = kvm() else { return };
    for (number, len, results) in CALLS {
        let end_of = |at: u64| {
            let code = assemble(|a| {
                call(a, number, at)?;
                halt(a, 9)
            });
            ends(&kvm, &code)
        };
        // A halt with nothing in its arguments is one with status 0.
        let done = End::Exited(if number == HALT { 0 } else { 9 });
        for at in [DATA, DATA + 4096, MEMORY - len] {
            assert_eq!(end_of(at), done, "{number} at {at:#x}");
        }
        let fault = |addr| End::Fault(Cause::BadPointer(UserSlice { addr, len }));
        for at in [
            0,
            0x1000,
            0x2000,
            0xFFFF,
            MEMORY - len + 1,
            MEMORY,
            0xFFFF_FFFF,
        ] {
            assert_eq!(end_of(at), fault(at), "{number} at {at:#x}");
        }
        for at in [0x1_0000 + 0x8000, RODATA, CODE_ADDR & !0xFFF] {
            if results {
                assert_eq!(end_of(at), fault(at), "{number} at {at:#x}");
            }
        }
        if number == PUTS {
            assert_eq!(end_of(RODATA), done);
        }
        // The address is 32 bits wide.
        assert_eq!(end_of(1 << 32 | DATA), done, "{number}");
    }
}

#[test]
fn what_is_put_has_to_be_the_guests_all_of_it() {
    let Some(kvm) = kvm() else { return };
    let put = |addr, len| {
        ends(
            &kvm,
            &assemble(|a| {
                puts(a, addr, len)?;
                halt(a, 9)
            }),
        )
    };
    for (addr, len) in [
        (MEMORY - 1, 1),
        (CODE_ADDR, 8),
        (RODATA, 8),
        (0x1_0000, 0x1000),
    ] {
        assert_eq!(put(addr, len), End::Exited(9), "{addr:#x}");
    }
    for (addr, len) in [
        (0, 1),
        (0x1000, 1),
        (0xFFFF, 2),
        (MEMORY - 1, 2),
        (MEMORY, 1),
        (u64::MAX, 1),
        (u64::MAX, u64::MAX),
        (DATA, u64::MAX),
        (DATA, MEMORY),
    ] {
        let slice = UserSlice { addr, len };
        assert_eq!(put(addr, len), End::Fault(Cause::BadPointer(slice)));
    }
}

#[test]
fn a_cookie_is_the_guests_own_memory_or_nothing() {
    let Some(kvm) = kvm() else { return };
    let end = |cookie| ends(&kvm, &assemble(|a| call_with(a, HALT, &[cookie, 5])));
    for cookie in [0, DATA, RODATA, MEMORY - 512] {
        assert_eq!(end(cookie), End::Exited(5), "{cookie:#x}");
    }
    for addr in [1, MEMORY - 511, u64::MAX] {
        let slice = UserSlice { addr, len: 512 };
        assert_eq!(end(addr), End::Fault(Cause::BadPointer(slice)));
    }
}

#[test]
fn no_other_port_width_or_direction_is_a_call() {
    let Some(kvm) = kvm() else { return };
    let fault = |port, direction, bytes| {
        End::Fault(Cause::Port {
            port,
            direction,
            bytes,
        })
    };
    let end = |port: u16, width: u8, input: bool| {
        ends(
            &kvm,
            &assemble(|a| {
                a.mov(edx, u32::from(port))?;
                a.mov(rax, DATA)?;
                match (width, input) {
                    (1, false) => a.out(dx, al),
                    (2, false) => a.out(dx, ax),
                    (_, false) => a.out(dx, eax),
                    (1, true) => a.in_(al, dx),
                    (2, true) => a.in_(ax, dx),
                    (_, true) => a.in_(eax, dx),
                }?;
                halt(a, 9)
            }),
        )
    };
    for port in [
        0, 0x20, 0x80, 0xE0, 0xF0, 0x4FF, 0x500, 0x509, 0x50A, 0x50C, 0x600, 0xFFFF,
    ] {
        assert_eq!(
            end(port, 4, false),
            fault(port, Direction::Out, 4),
            "{port:#x}"
        );
    }
    for port in PORT_BASE + 1..=PORT_BASE + 8 {
        for width in [1, 2] {
            let expected = fault(port, Direction::Out, width.into());
            assert_eq!(end(port, width, false), expected, "{port:#x}");
        }
        for width in [1, 2, 4] {
            let expected = fault(port, Direction::In, width.into());
            assert_eq!(end(port, width, true), expected, "{port:#x}");
        }
    }
}

/// The guest's registers are its own, whatever it calls.
#[test]
fn a_call_changes_no_register() {
    let Some(kvm) = kvm() else { return };
    for number in [WALLTIME, PUTS, POLL, BLOCK_READ, NET_READ] {
        let code = assemble(|a| {
            a.mov(rbx, 0x1234_u64)?;
            call(a, number, DATA)?;
            // RAX and RDX are those of the call.
            let mut bad = a.create_label();
            a.cmp(rax, i32::try_from(DATA).unwrap())?;
            a.jne(bad)?;
            a.cmp(dx, i32::from(PORT_BASE + number))?;
            a.jne(bad)?;
            a.cmp(rbx, 0x1234)?;
            a.jne(bad)?;
            halt(a, 0)?;
            a.set_label(&mut bad)?;
            halt(a, 1)
        });
        assert_eq!(ends(&kvm, &code), End::Exited(0), "{number}");
    }
}
