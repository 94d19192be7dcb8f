//! What a guest finds when it starts, and what it does then.

use std::time::{Duration, SystemTime};

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, ds, dword_ptr, dx, eax, ebx, ecx, es, esp, fs, gs, ptr, qword_ptr, r8, r9, r10,
    r11, r12, r13, r14, r15, rax, rbp, rbx, rcx, rdi, rdx, rsi, rsp, ss, word_ptr, xmm0, xmm1,
};
use wharf_machine::device::Backend;
use wharf_machine::image::Image;
use wharf_machine::memory::PAGE;
use wharf_machine::{Args, BootConfig, Machine};
use wharf_tests::disk::TestDisk;
use wharf_tests::elf::CODE_ADDR;
use wharf_tests::guest::{End, assemble, kvm, run, run_machine};
use wharf_tests::hvt::{
    BLOCK, HvtBuilder, PORT_BASE, PUTS, RESERVED_FIRST, TABLES, call_with, halt, puts, puts_stack,
    start_up, tables,
};

const MEMORY: u64 = 32 << 20;
const BOOT: u64 = 0x1_0000;

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn a_guest_ends_with_the_status_of_a_process() {
    let Some(kvm) = kvm() else { return };
    for (status, expected) in [(0, 0), (1, 1), (255, 255), (256, 0), (u32::MAX, 255)] {
        let elf = HvtBuilder::guest(&assemble(|a| halt(a, status))).build();
        let run = run(&kvm, elf, &BootConfig::default());
        assert_eq!(run.end, End::Exited(expected), "{status}");
    }
}

#[test]
fn registers_are_as_the_contract_has_them() {
    let Some(kvm) = kvm() else { return };
    let code = assemble(|a| {
        a.pushfq()?;
        for register in [
            rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rsp,
        ] {
            a.push(register)?;
        }
        puts_stack(a, 17)?;
        halt(a, 0)
    });
    for memory in [MEMORY, MEMORY + PAGE, 6 << 20, 1 << 32] {
        let config = BootConfig {
            memory,
            ..BootConfig::default()
        };
        let run = run(&kvm, HvtBuilder::guest(&code).build(), &config);
        assert_eq!(run.end, End::Exited(0));
        let mut words: Vec<u64> = (0..17).map(|n| word(&run.console, n * 8)).collect();
        // KVM-PVM has interrupts on at CPL 3, and shows that.
        words[16] &= !(1 << 9);
        let mut expected = [0; 17];
        // The stack begins 8 bytes below the end of memory; a word has been pushed to it
        // for each register before RSP. RFLAGS has no bit but the one it always has.
        expected[0] = memory - 8 - 16 * 8;
        expected[10] = BOOT;
        expected[16] = 2;
        assert_eq!(words, expected, "{memory:#x}");
    }
}

/// Boot information, manifest and arguments, all that a guest can be told.
#[test]
fn the_boot_information_is_the_hosts_word() {
    let Some(kvm) = kvm() else { return };
    let code = assemble(|a| {
        puts(a, BOOT, 4096)?;
        halt(a, 0)
    });
    let elf = HvtBuilder::guest(&code)
        .segment(0x60_0000, 6, b"x", 5000)
        .device(BLOCK, "storage")
        .device(BLOCK, "b2")
        .build();
    let image = Image::parse(elf).unwrap();
    let config = BootConfig {
        memory: MEMORY,
        args: Args::new(["--x=1", "", "two words"]).unwrap(),
        ..BootConfig::default()
    };
    let disk = |bytes| Backend::Block(Box::new(TestDisk::new(bytes, 0)));
    let machine = Machine::boot(&kvm, &image, &config, vec![disk(4096), disk(512)]).unwrap();
    let run = run_machine(machine);
    assert_eq!(run.end, End::Exited(0));
    let page = run.console;

    assert_eq!(word(&page, 0), MEMORY);
    assert_eq!(
        word(&page, 8),
        0x60_2000,
        "the end of the image, its zeroes too"
    );
    let khz = word(&page, 16) / 1000;
    assert!((100_000..10_000_000).contains(&khz), "{khz} kHz");
    let (cmdline, mft) = (word(&page, 24), word(&page, 32));
    assert_eq!(word(&page, 40), 0, "no features, no rings");
    assert_eq!(word(&page, 48), 0);

    let mft = usize::try_from(mft - BOOT).unwrap();
    assert_eq!(word(&page, mft), 3 << 32 | 1);
    let entry = |n: usize| &page[mft + 8 + n * 104..][..104];
    let name = |n: usize| entry(n)[..68].split(|b| *b == 0).next().unwrap();
    let kind = |n: usize| u32::from_le_bytes(entry(n)[68..72].try_into().unwrap());
    assert_eq!((name(0), kind(0)), (&b""[..], RESERVED_FIRST));
    assert_eq!((name(1), kind(1)), (&b"storage"[..], BLOCK));
    assert_eq!((name(2), kind(2)), (&b"b2"[..], BLOCK));
    for (n, capacity) in [(1, 4096), (2, 512)] {
        assert_eq!(word(entry(n), 72), capacity);
        assert_eq!(
            word(entry(n), 80),
            512,
            "the block size, and nothing behind it"
        );
        assert_eq!(word(entry(n), 88), 0, "nothing of the host's");
        assert_eq!(word(entry(n), 96), 1, "attached");
    }
    assert_eq!(entry(0)[72..], [0; 32]);

    let cmdline = usize::try_from(cmdline - BOOT).unwrap();
    assert_eq!(&page[cmdline..][..17], b"--x=1  two words\0");
    assert_eq!(cmdline, mft + 8 + 3 * 104);
    assert!(page[cmdline + 17..].iter().all(|b| *b == 0));
}

#[test]
fn arguments_are_as_long_as_the_contract_allows() {
    let Some(kvm) = kvm() else { return };
    let code = assemble(|a| {
        a.mov(rax, qword_ptr(rdi + 24))?;
        a.mov(rcx, 8192_u64)?;
        a.push(rcx)?;
        a.push(rax)?;
        a.mov(eax, esp)?;
        a.mov(dx, u32::from(PORT_BASE + PUTS))?;
        a.out(dx, eax)?;
        halt(a, 0)
    });
    let image = Image::parse(HvtBuilder::guest(&code).build()).unwrap();
    let config = |args: &[&str]| BootConfig {
        args: Args::new(args).unwrap(),
        ..BootConfig::default()
    };
    let longest = "x".repeat(8190);
    for args in [&["y", &longest[..8189]][..], &[&longest, ""], &[]] {
        let machine = Machine::boot(&kvm, &image, &config(args), Vec::new()).unwrap();
        let run = run_machine(machine);
        let expected = args.join(" ");
        assert_eq!(run.console.len(), 8192);
        assert_eq!(&run.console[..expected.len()], expected.as_bytes());
        assert!(run.console[expected.len()..].iter().all(|b| *b == 0));
    }
    let error = Machine::boot(&kvm, &image, &config(&[&longest, "y"]), Vec::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "arguments of 8192 bytes are too long for an hvt guest: the most is 8191"
    );
}

/// A guest that starts up, does `body`, and has a handler that prints CR2 and the frame
/// and then does `handler`.
pub(crate) fn with_handler(
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    handler: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> HvtBuilder {
    let mut handler_at = 0;
    let body = assemble(|a| {
        start_up(a)?;
        body(a)?;
        halt(a, 0)
    });
    let code = {
        let tail = assemble(|a| {
            a.mov(rdi, iced_x86::code_asm::cr2)?;
            a.push(rdi)?;
            puts_stack(a, 7)?;
            a.add(rsp, 8)?;
            handler(a)
        });
        handler_at += CODE_ADDR + body.len() as u64;
        [body, tail].concat()
    };
    HvtBuilder::guest(&code)
        .data(TABLES, &tables(handler_at))
        .data(TABLES + 0x1000, &[0; 4096])
}

#[test]
fn a_guest_starts_up_as_solo5s_do() {
    let Some(kvm) = kvm() else { return };
    let elf = with_handler(
        |a| {
            // SSE is there, and thread-local storage at its base.
            a.xorps(xmm0, xmm1)?;
            a.mov(ecx, 0xC000_0100_u32)?;
            a.mov(eax, u32::try_from(TABLES + 0x900).unwrap())?;
            a.mov(rdx, 0_u64)?;
            a.wrmsr()?;
            a.mov(rax, 0x1234_5678_u64)?;
            a.mov(qword_ptr(0x10).fs(), rax)?;
            puts(a, TABLES + 0x910, 8)
        },
        |a| halt(a, 255),
    );
    let run = run(&kvm, elf.build(), &BootConfig::default());
    assert_eq!(run.end, End::Exited(0));
    assert_eq!(word(&run.console, 0), 0x1234_5678);
}

#[test]
fn an_exception_is_the_guests_own_to_handle() {
    let Some(kvm) = kvm() else { return };
    // The stack grows down from here in each case.
    let stack = MEMORY - 8;
    let elf = with_handler(
        |a| {
            a.mov(rbx, 0x123_0000_0000_u64)?;
            a.mov(qword_ptr(rbx), rbx)
        },
        |a| halt(a, 255),
    );
    let run = run(&kvm, elf.build(), &BootConfig::default());
    assert_eq!(run.end, End::Exited(255));
    let words: Vec<u64> = (0..7).map(|n| word(&run.console, n * 8)).collect();
    assert_eq!(
        words[..2],
        [0x123_0000_0000, 2],
        "CR2, and a write by ring 0"
    );
    assert!((CODE_ADDR..CODE_ADDR + 0x1000).contains(&words[2]));
    assert_eq!(words[3], 8);
    assert_eq!(words[4] & 0x202, 2, "no interrupts");
    assert_eq!(words[5..], [stack, 0x10]);
}

#[test]
fn a_handler_may_return() {
    let Some(kvm) = kvm() else { return };
    // The handler steps over the two bytes of what faulted, three times: a bad opcode,
    // a breakpoint, which is behind itself already, and a division.
    let elf = with_handler(
        |a| {
            a.ud2()?;
            a.int3()?;
            a.nop()?;
            a.nop()?;
            a.xor(ecx, ecx)?;
            a.div(ecx)?;
            puts(a, TABLES, 8)?;
            halt(a, 7)
        },
        |a| {
            a.add(qword_ptr(rsp), 2)?;
            a.iretq()
        },
    );
    let run = run(&kvm, elf.build(), &BootConfig::default());
    assert_eq!(run.end, End::Exited(7), "{:?}", run.console);
    // Six words each, CR2 before them, and what is printed at the end.
    assert_eq!(run.console.len(), 3 * 7 * 8 + 8);
}

/// Single steps go over an instruction that is emulated as over any other: the handler is
/// reached behind it, and finds the flags that it began with.
#[test]
fn a_step_ends_behind_an_instruction_that_is_emulated() {
    let Some(kvm) = kvm() else { return };
    const TF: u64 = 1 << 8;
    let elf = with_handler(
        |a| {
            a.mov(rbx, 0_u64)?;
            a.mov(ecx, 0x10)?;
            a.pushfq()?;
            a.or(qword_ptr(rsp), i32::try_from(TF).unwrap())?;
            a.popfq()?;
            // Four are trapped, of which the second was emulated at first; and the third,
            // a load of SS, holds the trap off until behind the one after it.
            a.nop()?;
            a.cli()?;
            a.mov(ss, ecx)?;
            a.nop()?;
            a.nop()?;
            a.ud2()
        },
        |a| {
            // At most so many, then without TF.
            let mut on = a.create_label();
            a.add(rbx, 1)?;
            a.cmp(rbx, 4)?;
            a.jb(on)?;
            a.and(qword_ptr(rsp + 16), !i32::try_from(TF).unwrap())?;
            a.set_label(&mut on)?;
            a.cmp(rbx, 5)?;
            let mut end = a.create_label();
            a.je(end)?;
            a.iretq()?;
            a.set_label(&mut end)?;
            halt(a, 9)
        },
    );
    let run = run(&kvm, elf.build(), &BootConfig::default());
    assert_eq!(run.end, End::Exited(9), "{:x?}", run.console);
    // RIP and flags of each frame, and the last is of the bad opcode.
    let frames: Vec<[u64; 2]> = (0..5)
        .map(|n| {
            [
                word(&run.console, n * 56 + 8),
                word(&run.console, n * 56 + 24),
            ]
        })
        .collect();
    let first = frames[0][0];
    let rips: Vec<u64> = frames.iter().map(|[rip, _]| rip - first).collect();
    // One byte each, but for the load, which has two.
    assert_eq!(rips, [0, 1, 4, 5, 5], "{frames:x?}");
    let flags: Vec<u64> = frames.iter().map(|[_, flags]| flags & TF).collect();
    assert_eq!(flags, [TF, TF, TF, TF, 0]);
    // A trap is not a fault, whose instruction is begun again with RF.
    assert!(frames[..4].iter().all(|[_, flags]| flags & 1 << 16 == 0));
}

/// A far call's arguments are taken from the stack by its return, which is not looked at
/// behind what it goes to: here that is the last word of memory.
#[test]
fn a_far_return_may_take_arguments_with_it() {
    let Some(kvm) = kvm() else { return };
    let elf = with_handler(
        |a| {
            let mut there = a.create_label();
            a.mov(rsp, MEMORY)?;
            a.push(8)?;
            a.lea(rax, qword_ptr(there))?;
            a.push(rax)?;
            a.retf_1(24)?;
            a.set_label(&mut there)?;
            a.mov(rax, rsp)?;
            a.mov(rsp, MEMORY)?;
            a.push(rax)?;
            puts_stack(a, 1)
        },
        |a| halt(a, 255),
    );
    let run = run(&kvm, elf.build(), &BootConfig::default());
    assert_eq!(run.end, End::Exited(0), "{:x?}", run.console);
    assert_eq!(word(&run.console, 0), MEMORY + 24);
}

#[test]
fn every_segment_can_be_loaded_from_memory_too() {
    let Some(kvm) = kvm() else { return };
    let elf = with_handler(
        |a| {
            a.mov(rbx, TABLES + 0x900)?;
            a.mov(word_ptr(rbx), 0x10)?;
            a.mov(eax, 0x10)?;
            for segment in [ss, ds, es, fs, gs] {
                a.mov(segment, word_ptr(rbx))?;
                a.mov(segment, eax)?;
            }
            a.mov(dword_ptr(rbx), 0)?;
            a.mov(fs, ptr(rbx))?;
            a.sti()?;
            a.cli()
        },
        |a| halt(a, 255),
    );
    let run = run(&kvm, elf.build(), &BootConfig::default());
    assert_eq!(run.end, End::Exited(0), "{:x?}", run.console);
}

/// The contract has no place for what another guest leaves.
#[test]
fn a_guest_inherits_nothing() {
    let Some(kvm) = kvm() else { return };
    let image = Image::parse(HvtBuilder::guest(&assemble(|a| halt(a, 0))).build()).unwrap();
    let config = BootConfig {
        is_heir: true,
        ..BootConfig::default()
    };
    let mut machine = Machine::boot(&kvm, &image, &config, Vec::new()).unwrap();
    machine.inherit(&[]).unwrap();
    let error = machine.inherit(b"state").unwrap_err().to_string();
    assert!(error.contains("cannot be given the state"), "{error}");
    assert_eq!(run_machine(machine).end, End::Exited(0));
}

/// Whatever this machine can do: a guest sees a CPU that makes no host of it.
#[test]
fn a_guest_is_shown_no_cpu_that_makes_a_host() {
    let Some(kvm) = kvm() else { return };
    let code = assemble(|a| {
        for (leaf, shown) in [(1_u32, ecx), (7, ebx), (0x8000_0001, ecx)] {
            a.mov(eax, leaf)?;
            a.mov(ecx, 0)?;
            a.cpuid()?;
            a.mov(eax, shown)?;
            a.push(rax)?;
        }
        puts_stack(a, 3)?;
        halt(a, 0)
    });
    let elf = HvtBuilder::guest(&code).build();
    let run = run(&kvm, elf, &BootConfig::default());
    assert_eq!(run.end, End::Exited(0));
    let shown = [0, 8, 16].map(|at| word(&run.console, at));
    assert_eq!(shown[2] & 0x60, 0, "VMX, SMX");
    assert_eq!(shown[1] & 4, 0, "SGX");
    assert_eq!(shown[0] & 4, 0, "SVM");
}

#[test]
fn time_is_told_as_it_is() {
    let Some(kvm) = kvm() else { return };
    let code = assemble(|a| {
        call_with(a, wharf_tests::hvt::WALLTIME, &[u64::MAX])?;
        puts_stack(a, 1)?;
        halt(a, 0)
    });
    let before = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let run = run(
        &kvm,
        HvtBuilder::guest(&code).build(),
        &BootConfig::default(),
    );
    let after = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let told = Duration::from_nanos(word(&run.console, 0));
    assert!(before <= told && told <= after, "{told:?}");
}
