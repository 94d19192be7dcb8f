//! Ten-byte guests: one for each way to leave, and what a guest finds at start.

use iced_x86::code_asm::{
    al, byte_ptr, dword_ptr, eax, qword_ptr, r8, r9, r10, r11, r12, r13, r14, r15, rax, rbp, rbx,
    rcx, rdi, rdx, rsi, rsp,
};
use wharf_abi::hypercall::CONSOLE_WRITE_MAX;
use wharf_abi::{BootPage, Hypercall, Manifest, Status};
use wharf_machine::fault::{Cause, Direction};
use wharf_machine::image::Image;
use wharf_machine::memory::{HUGE_PAGE, PAGE};
use wharf_machine::{Args, ArgsError, BootConfig, Machine};
use wharf_tests::elf::{ElfBuilder, R, W, X};
use wharf_tests::guest::{End, assemble, call, exit, kvm, run, run_code};

const DATA: u64 = 0x50_0000;

#[test]
fn a_guest_exits_with_its_status() {
    let Some(kvm) = kvm() else { return };
    for status in [0, 1, 42, 255] {
        let code = assemble(|a| exit(a, status));
        assert_eq!(run_code(&kvm, &code).end, End::Exited(status));
    }
    let code = assemble(|a| call(a, Hypercall::Exit, 0x1_0000_0107, 0));
    assert_eq!(
        run_code(&kvm, &code).end,
        End::Exited(7),
        "only the low 8 bits count"
    );
}

#[test]
fn a_console_write_takes_at_most_a_page_and_says_how_much() {
    let Some(kvm) = kvm() else { return };
    for (len, taken) in [
        (0, 0),
        (1, 1),
        (4095, 4095),
        (4096, 4096),
        (4097, 4096),
        (8192, 4096),
    ] {
        let code = assemble(|a| {
            call(a, Hypercall::ConsoleWrite, DATA, len)?;
            // Exit with 0 when the answer is right.
            a.xor(rdx, taken)?;
            a.or(rdx, rax)?;
            a.mov(rdi, rdx)?;
            a.out(i32::from(Hypercall::Exit.port()), al)
        });
        let elf = ElfBuilder::guest(&code).data(DATA, &[b'x'; 8192]).build();
        let run = run(&kvm, elf, &BootConfig::default());
        assert_eq!(run.end, End::Exited(0), "{len}");
        assert_eq!(run.console, vec![b'x'; usize::try_from(taken).unwrap()]);
    }
    assert_eq!(CONSOLE_WRITE_MAX, 4096);
}

#[test]
fn a_wait_hands_over_its_numbers_as_they_are() {
    let Some(kvm) = kvm() else { return };
    for numbers in [(0, 0), (u64::MAX, u64::MAX), (1 << 63, 2), (12345, 1)] {
        let code = assemble(|a| {
            call(a, Hypercall::Wait, numbers.0, numbers.1)?;
            exit(a, 3)
        });
        let run = run_code(&kvm, &code);
        assert_eq!(run.waits, [numbers]);
        assert_eq!(run.end, End::Exited(3));
    }
}

#[test]
fn a_hypercall_changes_rax_and_rdx_and_nothing_else() {
    let Some(kvm) = kvm() else { return };
    let code = assemble(|a| {
        let registers = [
            rbx, rcx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15,
        ];
        for (register, n) in registers.into_iter().zip(1_u64..) {
            a.mov(register, n << 40 | n)?;
        }
        a.mov(rdi, 0_u64)?;
        a.mov(rsi, 0_u64)?;
        a.mov(rax, u64::MAX)?;
        a.mov(rdx, u64::MAX)?;
        a.out(i32::from(Hypercall::ConsoleWrite.port()), al)?;
        let mut bad = a.create_label();
        for (register, n) in registers.into_iter().zip(1_u64..) {
            if register != rdi && register != rsi {
                // R10 is free once it has been looked at; before that RAX is.
                a.mov(rax, n << 40 | n)?;
                a.cmp(register, rax)?;
                a.jne(bad)?;
            }
        }
        a.or(rdi, rsi)?;
        a.or(rdi, rdx)?;
        a.out(i32::from(Hypercall::Exit.port()), al)?;
        a.set_label(&mut bad)?;
        exit(a, 1)
    });
    assert_eq!(run_code(&kvm, &code).end, End::Exited(0));
}

#[test]
fn a_guest_starts_as_the_contract_says() {
    let Some(kvm) = kvm() else { return };
    // All registers but RDI and RSP are zero, RSP + 8 is a multiple of 16.
    let code = assemble(|a| {
        for register in [
            rbx, rcx, rdx, rsi, rbp, r8, r9, r10, r11, r12, r13, r14, r15,
        ] {
            a.or(rax, register)?;
        }
        a.mov(rcx, rsp)?;
        a.add(rcx, 8)?;
        a.and(rcx, 15)?;
        a.or(rax, rcx)?;
        // The boot page starts with its magic.
        a.mov(rbx, BootPage::MAGIC)?;
        a.xor(rbx, qword_ptr(rdi))?;
        a.or(rax, rbx)?;
        // The stack can be written down to its lowest byte.
        a.push(rax)?;
        a.mov(rcx, qword_ptr(rdi + 96))?;
        a.mov(byte_ptr(rcx), 1)?;
        // The heap is zeroed and can be written to its last byte.
        a.mov(rcx, qword_ptr(rdi + 112))?;
        a.add(rcx, qword_ptr(rdi + 120))?;
        a.mov(dword_ptr(rcx - 4), 7)?;
        a.mov(rcx, qword_ptr(rdi + 112))?;
        a.or(rax, qword_ptr(rcx))?;
        // The seed is not zero.
        let mut zero = a.create_label();
        a.cmp(qword_ptr(rdi + 48), 0)?;
        a.je(zero)?;
        a.mov(rdi, rax)?;
        a.out(i32::from(Hypercall::Exit.port()), al)?;
        a.set_label(&mut zero)?;
        exit(a, 1)
    });
    let fixed = ElfBuilder::guest(&code).build();
    let relocatable = ElfBuilder::new().segment(0x1000, R | X, &code, code.len() as u64);
    for elf in [fixed, relocatable.relocatable().build()] {
        assert_eq!(run(&kvm, elf, &BootConfig::default()).end, End::Exited(0));
    }
}

#[test]
fn arguments_stand_behind_the_boot_page() {
    let Some(kvm) = kvm() else { return };
    let code = assemble(|a| {
        a.mov(rsi, qword_ptr(rdi + 136))?;
        a.mov(rdi, qword_ptr(rdi + 128))?;
        a.out(i32::from(Hypercall::ConsoleWrite.port()), al)?;
        exit(a, 0)
    });
    for args in [vec![], vec!["one"], vec!["", "ü", "three words here"]] {
        let expected: String = args.iter().map(|arg| format!("{arg}\0")).collect();
        let args = Args::new(args).unwrap();
        let config = BootConfig {
            args,
            ..Default::default()
        };
        let run = run(&kvm, ElfBuilder::guest(&code).build(), &config);
        assert_eq!(String::from_utf8(run.console).unwrap(), expected);
    }
}

#[test]
fn a_relocatable_image_is_relocated_and_never_twice_at_one_base() {
    let Some(kvm) = kvm() else { return };
    // The word at 0x3000 is relocated to hold the address of the code.
    let code = assemble(|a| {
        let mut here = a.create_label();
        a.lea(rax, qword_ptr(here))?;
        a.set_label(&mut here)?;
        // LEA's own length is 7, and the code starts at 0x1000 of the image.
        a.mov(rcx, qword_ptr(rax + 0x2000 - 7))?;
        a.sub(rax, 7)?;
        a.xor(rax, rcx)?;
        a.mov(rdi, rax)?;
        a.out(i32::from(Hypercall::Exit.port()), al)
    });
    let elf = ElfBuilder::new()
        .segment(0x1000, R | X, &code, code.len() as u64)
        .segment(0x3000, R | W, &[0; 8], 8)
        .relocation(0x3000, 0x1000)
        .relocatable()
        .build();
    let bases: std::collections::HashSet<_> = (0..8)
        .map(|_| {
            let run = run(&kvm, elf.clone(), &BootConfig::default());
            assert_eq!(run.end, End::Exited(0));
            run.machine.layout().bias
        })
        .collect();
    assert_eq!(bases.len(), 8);
}

#[test]
fn odd_widths_and_directions_at_an_open_port_are_no_hypercalls() {
    let Some(kvm) = kvm() else { return };
    let port = Hypercall::Exit.port();
    let cause = |code: &[u8]| run_code(&kvm, code).end;
    let expected = |direction, bytes| {
        End::Fault(Cause::Port {
            port,
            direction,
            bytes,
        })
    };
    let open = i32::from(port);
    // The calls are neighbours: two bytes at Exit, and four, are allowed by the CPU, so
    // the host must refuse them; four at the last but two are not.
    assert_eq!(
        cause(&assemble(|a| a.out(open, iced_x86::code_asm::ax))),
        expected(Direction::Out, 2)
    );
    assert_eq!(
        cause(&assemble(|a| a.out(open, eax))),
        expected(Direction::Out, 4)
    );
    assert!(matches!(
        cause(&assemble(|a| a.out(open + 3, eax))),
        End::Fault(Cause::Exception(_))
    ));
    assert_eq!(
        cause(&assemble(|a| a.in_(al, open))),
        expected(Direction::In, 1)
    );
}

#[test]
fn memory_of_every_size_boots_or_is_refused() {
    let Some(kvm) = kvm() else { return };
    let code = assemble(|a| exit(a, 0));
    let elf = ElfBuilder::guest(&code)
        .manifest(Manifest::new("t", "1").with_stack_kib(4))
        .build();
    let image = Image::parse(elf.clone()).unwrap();
    for pages in 0..24 {
        let config = BootConfig {
            memory: pages * PAGE,
            ..Default::default()
        };
        match Machine::boot(&kvm, &image, &config, Vec::new()) {
            Ok(machine) => {
                assert!(pages >= 8, "{pages} pages cannot hold the tables");
                let heap = machine.layout().heap;
                assert_eq!(heap.len % PAGE, 0);
                assert_eq!(wharf_tests::guest::run_machine(machine).end, End::Exited(0));
            }
            Err(e) => assert!(
                pages < 12 && e.to_string().contains("memory of"),
                "{pages}: {e}"
            ),
        }
    }
    for memory in [1, PAGE + 1, u64::MAX, (1 << 36) + PAGE] {
        let config = BootConfig {
            memory,
            ..Default::default()
        };
        assert!(
            Machine::boot(&kvm, &image, &config, Vec::new()).is_err(),
            "{memory:#x}"
        );
    }
    for memory in [2 * HUGE_PAGE, 33 << 20, (3 << 30) + PAGE] {
        let config = BootConfig {
            memory,
            ..Default::default()
        };
        assert_eq!(
            run(&kvm, elf.clone(), &config).end,
            End::Exited(0),
            "{memory:#x}"
        );
    }
}

#[test]
fn the_answer_to_a_call_is_what_the_guest_finds() {
    let Some(kvm) = kvm() else { return };
    let code = assemble(|a| {
        call(a, Hypercall::Wait, 1, 0)?;
        a.mov(rdi, rax)?;
        a.shl(rdi, 4)?;
        a.or(rdi, rdx)?;
        a.out(i32::from(Hypercall::Exit.port()), al)
    });
    let image = Image::parse(ElfBuilder::guest(&code).build()).unwrap();
    let mut machine = Machine::boot(&kvm, &image, &BootConfig::default(), Vec::new()).unwrap();
    machine.enter(None).unwrap();
    let answer = wharf_abi::Answer {
        status: Status::Invalid,
        value: 5,
    };
    let exit = machine.enter(Some(answer)).unwrap();
    assert_eq!(
        exit,
        wharf_machine::Exit::Call(wharf_machine::Call::Exit { status: 0x15 })
    );
}

#[test]
fn arguments_that_the_boot_page_cannot_carry_are_refused() {
    assert_eq!(Args::new(["a", "b\0c"]), Err(ArgsError::Nul { index: 2 }));
    let len = 64 * 1024;
    let long = "x".repeat(len - 1);
    assert!(Args::new([&long]).is_ok());
    assert_eq!(
        Args::new([&long, ""]),
        Err(ArgsError::TooLong {
            len: len as u64 + 1
        })
    );
}

#[test]
fn an_answer_that_does_not_fit_is_a_defect_and_changes_nothing() {
    let Some(kvm) = kvm() else { return };
    let code = assemble(|a| {
        call(a, Hypercall::Wait, 0, 0)?;
        exit(a, 4)
    });
    let image = Image::parse(ElfBuilder::guest(&code).build()).unwrap();
    let mut machine = Machine::boot(&kvm, &image, &BootConfig::default(), Vec::new()).unwrap();
    let answer = wharf_abi::Answer::ok(0);
    assert!(machine.enter(Some(answer)).is_err());
    machine.enter(None).unwrap();
    assert!(machine.enter(None).is_err());
    let exit = machine.enter(Some(answer)).unwrap();
    assert_eq!(
        exit,
        wharf_machine::Exit::Call(wharf_machine::Call::Exit { status: 4 })
    );
}
