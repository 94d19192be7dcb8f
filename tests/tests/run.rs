//! `wharf run` as an operator knows it: the real binary, real guests.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use iced_x86::code_asm::{CodeAssembler, al, qword_ptr, rdi, rsi};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::NamedTempFile;
use wharf_abi::hypercall::FOREVER;
use wharf_abi::{AbiVersion, BootPage, DeviceKind, Hypercall, Interest, Manifest};
use wharf_machine::BootConfig;
use wharf_tests::command::{Printed, app, output, printed, wharf};
use wharf_tests::elf::{ElfBuilder, R, W, X};
use wharf_tests::guest::{assemble, call, exit, kvm};
use wharf_tests::process::{cpu_ticks, state_and_ticks};
use zerocopy::FromBytes;

const DATA: u64 = 0x50_0000;

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(30);

/// An image file of raw code with a page of `x` at [`DATA`].
fn raw(write: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> NamedTempFile {
    file(
        &ElfBuilder::guest(&assemble(write))
            .data(DATA, &[b'x'; 4096])
            .build(),
    )
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn run_file(file: &NamedTempFile, args: &[&str]) -> Command {
    let mut command = wharf(["run"]);
    command.arg(file.path()).args(args);
    command
}

fn run_app(name: &str, args: &[&str]) -> Printed {
    output(wharf(["run"]).arg(app(name)).arg("--").args(args))
}

/// Starts a guest and waits for the first byte that it writes.
fn started(command: &mut Command) -> Child {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut byte = [0];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut byte)
        .unwrap();
    assert_eq!(&byte, b"x");
    child
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().unwrap())
}

fn signal(child: &Child, signal: Signal) {
    kill(pid(child), signal).unwrap();
}

/// The child's exit status, which must come soon.
fn status(child: &mut Child) -> i32 {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap());
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it did not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn hello_greets_with_its_arguments() {
    let Some(_) = kvm() else { return };
    let printed = run_app("hello", &["brave", "new", "wörld"]);
    assert_eq!(printed.status, 0);
    assert_eq!(printed.stdout, "Hello, brave new wörld!\n");
    assert_eq!(printed.stderr, "");
    assert_eq!(run_app("hello", &[]).stdout, "Hello from wharf!\n");
}

#[test]
fn a_package_is_built_and_run_in_one_command() {
    let Some(_) = kvm() else { return };
    let printed = output(&mut wharf([
        "run",
        "guest-kernel/apps#hello",
        "--",
        "again",
    ]));
    assert_eq!(
        (printed.status, printed.stdout.as_str()),
        (0, "Hello, again!\n")
    );
}

#[test]
fn a_fixed_image_runs_like_a_relocatable_one() {
    let Some(_) = kvm() else { return };
    let built = output(&mut wharf(["build", "--no-pie", "guest-kernel/apps#hello"]));
    assert_eq!(built.status, 0, "{}", built.stderr);
    let elf = fs::read(built.stdout.trim_end()).unwrap();
    assert_eq!(elf[16], 2, "ET_EXEC");
    let printed =
        output(wharf(["run", built.stdout.trim_end(), "--", "fixed"]).stdin(Stdio::null()));
    assert_eq!(
        (printed.status, printed.stdout.as_str()),
        (0, "Hello, fixed!\n")
    );
}

#[test]
fn timers_of_async_tasks_fire_in_order() {
    let Some(_) = kvm() else { return };
    let printed = run_app("sleep", &["20", "2", "3"]);
    assert_eq!(printed.status, 0, "{}", printed.stderr);
    let slept: Vec<&str> = printed.stdout.lines().collect();
    assert_eq!(slept.len(), 7);
    assert!(
        slept[0].starts_with("task 1 round 1 slept_us 20000 "),
        "{slept:?}"
    );
    assert_eq!(slept[6], "all awake");
}

#[test]
fn spin_counts() {
    let Some(_) = kvm() else { return };
    let printed = run_app("spin", &["1000"]);
    assert_eq!(printed.status, 0, "{}", printed.stderr);
    assert!(
        printed.stdout.starts_with("steps 1000 checksum "),
        "{}",
        printed.stdout
    );
}

/// Every way to die that the example knows, with the status and what the report
/// must say.
#[test]
fn every_way_to_die_is_reported() {
    let Some(_) = kvm() else { return };
    let ways = [
        ("exit-7", 7, ""),
        (
            "panic",
            101,
            "panicked at guest-kernel/apps/src/bin/faults.rs:",
        ),
        ("nested-panic", 101, "panicked at "),
        ("heap-exhausted", 101, "memory allocation of "),
        ("allocation-too-large", 101, "memory allocation of "),
        (
            "null-read",
            139,
            "read of a page that is not mapped\n  cr2 0x0000000000000000  null page",
        ),
        ("null-write", 139, "write of a page that is not mapped"),
        ("null-jump", 139, "execute of a page that is not mapped"),
        (
            "noncanonical-read",
            139,
            "general protection (#GP, vector 13)",
        ),
        ("top-of-memory-read", 139, "page fault (#PF, vector 14)"),
        ("write-text", 139, "write of a page that does not allow it"),
        (
            "write-rodata",
            139,
            "write of a page that does not allow it",
        ),
        (
            "write-boot-page",
            139,
            "write of a page that does not allow it",
        ),
        (
            "execute-rodata",
            139,
            "execute of a page that does not allow it",
        ),
        (
            "execute-data",
            139,
            "execute of a page that does not allow it",
        ),
        (
            "execute-stack",
            139,
            "execute of a page that does not allow it",
        ),
        (
            "execute-heap",
            139,
            "execute of a page that does not allow it",
        ),
        (
            "execute-boot-page",
            139,
            "execute of a page that does not allow it",
        ),
        (
            "read-stack-guard",
            139,
            "stack overflow: the guard page below the stack",
        ),
        (
            "stack-overflow",
            139,
            "stack overflow: the guard page below the stack",
        ),
        ("stack-gone", 139, "invalid opcode (#UD, vector 6)"),
        ("stack-noncanonical", 139, "fault: "),
        ("divide", 139, "divide error (#DE, vector 0)"),
        ("invalid-opcode", 139, "invalid opcode (#UD, vector 6)"),
        ("breakpoint", 139, "breakpoint (#BP, vector 3)"),
        ("single-step", 139, "debug (#DB, vector 1)"),
        ("unaligned-sse", 139, "general protection (#GP, vector 13)"),
        (
            "simd-exception",
            139,
            "SIMD floating-point error (#XM, vector 19)",
        ),
        (
            "x87-exception",
            139,
            "x87 floating-point error (#MF, vector 16)",
        ),
        ("halt", 139, "general protection (#GP, vector 13)"),
        (
            "return-to-ring-0",
            139,
            "general protection (#GP, vector 13)",
        ),
        ("port", 139, "general protection (#GP, vector 13)"),
        (
            "hand-over-of-nobodys",
            139,
            "bad pointer in a hypercall (0x10, 16 bytes)",
        ),
        (
            "hypercall-in",
            139,
            "no such hypercall (in from port 0xe2, 1 bytes)",
        ),
        (
            "hypercall-16-bit-across",
            139,
            "no such hypercall (out to port 0xe1, 2 bytes)",
        ),
        (
            "console-null",
            139,
            "bad pointer in a hypercall (0x0, 1 bytes)",
        ),
        (
            "console-wraps-around",
            139,
            "bad pointer in a hypercall (0xfffffffffffffffe, 16 bytes)",
        ),
        ("console-stack-guard", 139, "bad pointer in a hypercall"),
    ];
    let faults = app("faults");
    // The example lists what it knows; what the table leaves out is an attack
    // that tests/hostile.rs makes itself, or one whose end the platform chooses.
    let known = output(wharf(["run"]).arg(&faults)).stdout;
    for (way, ..) in &ways[1..] {
        assert!(
            known.lines().any(|line| line == *way),
            "{way} is not in {known}"
        );
    }
    for way in known
        .lines()
        .filter(|way| !ways.iter().any(|(name, ..)| name == way))
    {
        if matches!(way, "exit-N" | "loop" | "wait-for-ever") {
            continue;
        }
        let printed = output(wharf(["run"]).arg(&faults).args(["--", way]));
        assert_eq!(printed.status, 139, "{way}: {printed:?}");
        assert!(
            printed.stderr.starts_with("wharf: faults: fault: "),
            "{way}: {printed:?}"
        );
    }
    for (way, status, message) in ways {
        let printed = output(wharf(["run"]).arg(&faults).args(["--", way]));
        assert_eq!(printed.status, status, "{way}: {printed:?}");
        let all = format!("{}{}", printed.stdout, printed.stderr);
        assert!(all.contains(message), "{way}: {all}");
    }
}

#[test]
fn a_report_names_functions_and_their_callers() {
    let Some(_) = kvm() else { return };
    let printed = output(
        wharf(["run"])
            .arg(app("faults"))
            .args(["--", "stack-overflow"]),
    );
    let rip = printed
        .stderr
        .lines()
        .find(|line| line.starts_with("  rip "))
        .unwrap();
    assert!(rip.contains("faults::") && rip.contains(" + 0x"), "{rip}");
    assert!(
        printed.stderr.contains("\n  called from\n"),
        "{}",
        printed.stderr
    );
    assert!(printed.stderr.contains("rsp "), "{}", printed.stderr);
}

#[test]
fn a_time_limit_ends_whatever_the_guest_does() {
    let Some(_) = kvm() else { return };
    let spins = raw(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(again)
    });
    let waits = raw(|a| call(a, Hypercall::Wait, FOREVER, Interest::STOP.bits()));
    for guest in [&spins, &waits] {
        let printed = output(&mut run_file(guest, &["--timeout", "50ms"]));
        assert_eq!(printed.status, 124);
        assert_eq!(
            printed.stderr,
            "wharf: test: ended: the time limit is over\n"
        );
    }
}

/// Writes one byte, then does `rest`.
fn says_so_and(
    rest: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> NamedTempFile {
    raw(|a| {
        call(a, Hypercall::ConsoleWrite, DATA, 1)?;
        rest(a)
    })
}

#[test]
fn ctrl_c_ends_a_guest_that_spins_waits_or_writes() {
    let Some(_) = kvm() else { return };
    let spins = says_so_and(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(again)
    });
    let waits = says_so_and(|a| call(a, Hypercall::Wait, FOREVER, 0));
    let writes = says_so_and(flood);
    for guest in [&spins, &waits, &writes] {
        for (sent, expected) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
            let mut child = started(&mut run_file(guest, &[]));
            signal(&child, sent);
            assert_eq!(status(&mut child), expected);
        }
    }
}

/// Writes a page at a time, for ever.
fn flood(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    call(a, Hypercall::ConsoleWrite, DATA, 4096)?;
    a.jmp(again)
}

#[test]
fn a_guest_that_asked_is_told_to_stop_and_may_finish() {
    let Some(_) = kvm() else { return };
    // The first wait, over at once, says that it wants to be told.
    let asks = |a: &mut CodeAssembler| {
        call(a, Hypercall::Wait, 0, Interest::STOP.bits())?;
        call(a, Hypercall::ConsoleWrite, DATA, 1)
    };
    let polite = raw(|a| {
        asks(a)?;
        call(a, Hypercall::Wait, FOREVER, Interest::STOP.bits())?;
        // Exit with the ready bits.
        a.mov(rdi, iced_x86::code_asm::rdx)?;
        a.out(i32::from(Hypercall::Exit.port()), al)
    });
    let mut child = started(&mut run_file(&polite, &[]));
    signal(&child, Signal::SIGTERM);
    assert_eq!(
        status(&mut child),
        i32::try_from(Interest::STOP.bits()).unwrap()
    );

    let deaf = raw(|a| {
        asks(a)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        call(a, Hypercall::Wait, FOREVER, Interest::STOP.bits())?;
        call(a, Hypercall::ConsoleWrite, DATA, 1)?;
        a.jmp(again)
    });
    let mut child = started(&mut run_file(&deaf, &[]));
    signal(&child, Signal::SIGINT);
    // It has been told when it writes again; the second signal then ends it.
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    signal(&child, Signal::SIGINT);
    assert_eq!(status(&mut child), 130);
}

#[test]
fn a_flood_that_nobody_reads_costs_the_host_nothing() {
    let Some(_) = kvm() else { return };
    let mut child = started(&mut run_file(&says_so_and(flood), &[]));
    // The pipe is full when the child sleeps and has stopped using the CPU.
    let start = Instant::now();
    let mut last = state_and_ticks(pid(&child));
    loop {
        assert!(start.elapsed() < PATIENCE, "the writer never blocks");
        std::thread::sleep(Duration::from_millis(50));
        let now = state_and_ticks(pid(&child));
        if now == last && now.0 == "S" {
            break;
        }
        last = now;
    }
    let status_file = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let rss: u64 = status_file
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .unwrap()
        .parse()
        .unwrap();
    assert!(rss < 16 * 1024, "{rss} KiB");
    signal(&child, Signal::SIGINT);
    assert_eq!(status(&mut child), 130);
}

#[test]
fn a_reader_that_goes_away_ends_the_task() {
    let Some(_) = kvm() else { return };
    let mut child = started(&mut run_file(&says_so_and(flood), &[]));
    drop(child.stdout.take());
    assert_eq!(status(&mut child), 141);
}

#[test]
fn a_full_disk_loses_output_and_nothing_else() {
    let Some(_) = kvm() else { return };
    let guest = says_so_and(|a| exit(a, 5));
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let status = run_file(&guest, &[]).stdout(full).status().unwrap();
    assert_eq!(status.code(), Some(5));
}

#[test]
fn waiting_burns_no_cpu() {
    let Some(_) = kvm() else { return };
    // Says x, then waits a second ten times, and says x again each time.
    let guest = says_so_and(|a| {
        let mut again = a.create_label();
        a.mov(iced_x86::code_asm::r12, 0_u64)?;
        a.set_label(&mut again)?;
        a.add(iced_x86::code_asm::r12, 100_000_000)?;
        a.mov(rdi, iced_x86::code_asm::r12)?;
        a.mov(rsi, 0_u64)?;
        a.out(i32::from(Hypercall::Wait.port()), al)?;
        call(a, Hypercall::ConsoleWrite, DATA, 1)?;
        a.jmp(again)
    });
    let mut child = started(&mut run_file(&guest, &[]));
    let before = Instant::now();
    let ticks_before = cpu_ticks(pid(&child));
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0; 10])
        .unwrap();
    let ticks = cpu_ticks(pid(&child)) - ticks_before;
    assert!(before.elapsed() > Duration::from_millis(500));
    // A second of spinning would be a hundred.
    assert!(ticks < 20, "{ticks} ticks of 10 ms");
    signal(&child, Signal::SIGINT);
    assert_eq!(status(&mut child), 130);
}

#[test]
fn a_guest_reads_its_circumstances_from_the_boot_page() {
    let Some(_) = kvm() else { return };
    let guest = raw(|a| {
        a.mov(rsi, 184_u64)?;
        a.out(i32::from(Hypercall::ConsoleWrite.port()), al)?;
        exit(a, 0)
    });
    let page = || {
        let bytes = run_file(&guest, &["--memory", "8MiB", "--", "a", "bc"])
            .output()
            .unwrap()
            .stdout;
        BootPage::read_from_bytes(&bytes).unwrap()
    };
    let (first, second) = (page(), page());
    assert_eq!(first.magic, BootPage::MAGIC);
    assert_eq!(first.abi, AbiVersion::CURRENT);
    assert_eq!((first.size, first.generation), (184, 1));
    assert_eq!((first.arg_count, first.args.len), (2, 5));
    assert_eq!(first.stack.len, 256 << 10);
    assert!(first.heap.len > 6 << 20, "{:#x}", first.heap.len);
    assert_ne!(first.seed, second.seed);
    assert_ne!(first.seed, [0; 32]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let wall = Duration::from_nanos(first.clock.wall_base_ns);
    assert!(now.abs_diff(wall) < PATIENCE, "{wall:?}, and it is {now:?}");
    assert!(first.clock.monotonic_ns(first.clock.tsc_base) == 0);
}

#[test]
fn wharf_refuses_in_one_line_and_with_125() {
    let not_elf = file(b"#!/bin/sh\necho no\n");
    let empty = file(b"");
    let wants = Manifest::new("kv", "1.0").with_device(DeviceKind::Block, "data");
    let wants = file(&ElfBuilder::guest(&[0xF4]).manifest(wants).build());
    let needs = Manifest::new("big", "1.0").with_memory_min_kib(1 << 20);
    let needs = file(&ElfBuilder::guest(&[0xF4]).manifest(needs).build());
    let good = file(&ElfBuilder::guest(&[0xF4]).build());
    let long = "x".repeat(70_000);
    let path = |file: &NamedTempFile| file.path().to_str().unwrap().to_owned();
    let mut refusals = vec![
        (
            vec!["/nonexistent/image.elf".to_owned()],
            "/nonexistent/image.elf",
        ),
        (vec!["/dev/zero".to_owned()], "not a regular file"),
        (vec![path(&not_elf)], "ELF"),
        (vec![path(&empty)], "ELF"),
        (vec!["guest-kernel/apps#nonsense".to_owned()], "nonsense"),
        (vec!["tests/tests".to_owned()], "Cargo.toml"),
    ];
    if kvm().is_some() {
        refusals.extend([
            (vec![path(&wants)], "block device \"data\""),
            (vec![path(&needs)], "the image needs 1048576 KiB"),
            (
                vec![path(&good), "--memory".into(), "4KiB".into()],
                "the image needs",
            ),
            (
                vec![path(&good), "--memory".into(), "4097B".into()],
                "4 KiB",
            ),
            (
                vec![path(&good), "--memory".into(), "2TiB".into()],
                "too large",
            ),
            (vec![path(&good), "--".into(), long], "arguments"),
        ]);
    }
    for (args, message) in refusals {
        let printed = output(wharf(["run"]).args(&args));
        assert_eq!(printed.status, 125, "{args:?}: {printed:?}");
        assert!(printed.stderr.starts_with("wharf: "), "{printed:?}");
        assert!(printed.stderr.contains(message), "{message}: {printed:?}");
        assert_eq!(printed.stderr.lines().count(), 1, "{printed:?}");
        assert_eq!(printed.stdout, "");
    }
}

#[test]
fn bad_usage_is_status_2() {
    for args in [
        vec!["run"],
        vec!["run", "--memory", "32", "x"],
        vec!["nonsense"],
        vec![],
    ] {
        assert_eq!(output(&mut wharf(&args)).status, 2, "{args:?}");
    }
}

#[test]
fn the_tsc_is_the_hosts() {
    let Some(_) = kvm() else { return };
    // The guest exits with 0 when RDTSC is at or after the base in its boot page,
    // by less than 2^36 ticks (at least ten seconds).
    let guest = raw(|a| {
        a.rdtsc()?;
        a.shl(iced_x86::code_asm::rdx, 32)?;
        a.or(iced_x86::code_asm::rax, iced_x86::code_asm::rdx)?;
        a.sub(iced_x86::code_asm::rax, qword_ptr(rdi + 24))?;
        a.shr(iced_x86::code_asm::rax, 36)?;
        a.mov(rdi, iced_x86::code_asm::rax)?;
        a.out(i32::from(Hypercall::Exit.port()), al)
    });
    assert_eq!(output(&mut run_file(&guest, &[])).status, 0);
}

/// `wharf run guest 2>&1 | reader-that-is-stuck`: the last message finds no room,
/// and that keeps nobody from ending.
#[test]
fn a_full_pipe_on_both_outputs_does_not_keep_a_run_alive() {
    let Some(_) = kvm() else { return };
    let guest = raw(flood);
    for (args, sent, expected) in [
        (&[][..], Some(Signal::SIGTERM), 143),
        (&["--timeout", "300ms"], None, 124),
    ] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let both: std::os::fd::OwnedFd = writer.into();
        let mut child = run_file(&guest, args)
            .stdout(both.try_clone().unwrap())
            .stderr(both)
            .spawn()
            .unwrap();
        reader.read_exact(&mut [0]).unwrap();
        if let Some(sent) = sent {
            signal(&child, sent);
        }
        assert_eq!(status(&mut child), expected);
    }
}

#[test]
fn output_that_is_lost_is_said_once_at_the_end() {
    let Some(_) = kvm() else { return };
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let guest = raw(flood);
    let printed = output(
        run_file(&guest, &["--timeout", "200ms"])
            .stderr(Stdio::piped())
            .stdout(Stdio::null()),
    );
    assert_eq!(printed.stderr.lines().count(), 1);
    let lost = run_file(&guest, &["--timeout", "200ms"])
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    let stderr = String::from_utf8(lost.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
    assert!(
        stderr.contains("bytes of console output were lost: No space left"),
        "{stderr}"
    );
}

#[test]
fn tasks_that_share_a_pipe_can_all_be_ended() {
    let Some(_) = kvm() else { return };
    let guest = raw(flood);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let writer: std::os::fd::OwnedFd = writer.into();
    let mut children: Vec<_> = (0..8)
        .map(|_| {
            let out = writer.try_clone().unwrap();
            run_file(&guest, &[])
                .stdout(out)
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    // Room for one write, again and again, for which eight compete.
    for _ in 0..300 {
        reader.read_exact(&mut [0; 4096]).unwrap();
    }
    for child in &mut children {
        signal(child, Signal::SIGTERM);
        assert_eq!(status(child), 143);
    }
}

#[test]
fn a_signal_that_was_ignored_stays_so() {
    let Some(_) = kvm() else { return };
    let guest = says_so_and(|a| call(a, Hypercall::Wait, FOREVER, 0));
    let mut nohup = Command::new("nohup");
    let run = run_file(&guest, &[]);
    nohup.arg(run.get_program()).args(run.get_args());
    let mut child = started(&mut nohup);
    signal(&child, Signal::SIGHUP);
    signal(&child, Signal::SIGTERM);
    assert_eq!(status(&mut child), 143);
}

#[test]
fn zeroes_of_an_image_are_not_made_resident_before_the_start() {
    let Some(_) = kvm() else { return };
    let code = assemble(|a| exit(a, 5));
    let elf = ElfBuilder::new()
        .segment(0x1000, R | X, &code, code.len() as u64)
        .segment(0x1_0000, R, &[1], (1 << 30) - 0x2_0000)
        .relocatable()
        .build();
    let image = wharf_machine::image::Image::parse(elf).unwrap();
    let config = BootConfig {
        memory: 2 << 30,
        ..Default::default()
    };
    let resident = || {
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let kvm = kvm().unwrap();
    let before = resident();
    let _machine = wharf_machine::Machine::boot(&kvm, &image, &config, Vec::new()).unwrap();
    // Other tests of this process need some memory too, but not so much.
    assert!(resident().saturating_sub(before) < 256 << 20);
}

/// A RELR table names 63 words with 8 bytes: a file of 15 MB could have 118
/// million relocations, and a boot of 15 seconds.
#[test]
fn an_image_with_absurdly_many_relocations_is_refused() {
    const LEN: u64 = 64 << 20;
    let bitmaps = usize::try_from(LEN / 8 / 63).unwrap();
    let relr: Vec<u64> = [0x1_0000]
        .into_iter()
        .chain(vec![u64::MAX; bitmaps - 1])
        .collect();
    let elf = ElfBuilder::new()
        .segment(0x1000, R | X, &[0xF4], 1)
        .segment(0x1_0000, R | W, &[1], LEN)
        .relr(&relr)
        .relocatable()
        .build();
    let refusal = wharf_machine::image::Image::parse(elf).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "too many relocations: the most is 1000000"
    );
}

/// Runs an app with this on its standard input.
fn with_input(args: &[&str], input: &[u8]) -> Printed {
    let mut child = wharf(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = std::thread::spawn(move || {
        // A guest may end before it has read all.
        let _ = stdin.write_all(&input);
    });
    let printed = printed(child.wait_with_output().unwrap());
    writing.join().unwrap();
    printed
}

#[test]
fn a_guest_reads_what_is_typed_or_piped_until_its_end() {
    let Some(_) = kvm() else { return };
    let cat = app("cat");
    let cat = cat.to_str().unwrap();
    // More than a pipe holds, and than a buffer of the guest's.
    let long: String = (0..40_000).map(|number| format!("{number}\n")).collect();
    for text in ["", "one line\n", "no end of a line", &long] {
        let printed = with_input(&["run", "--timeout", "60s", cat], text.as_bytes());
        assert_eq!((printed.status, printed.stderr.as_str()), (0, ""));
        assert!(printed.stdout == text, "{} bytes", printed.stdout.len());
    }
    let closed = output(wharf(["run", "--timeout", "60s", cat]).stdin(Stdio::null()));
    assert_eq!((closed.status, closed.stdout.as_str()), (0, ""));
}

#[test]
fn a_guest_that_does_not_read_leaves_the_input_alone() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("input");
    fs::write(&path, "for whoever comes next\n").unwrap();
    let mut file = fs::File::open(&path).unwrap();
    let input = file.try_clone().unwrap();
    let printed = output(wharf(["run", app("hello").to_str().unwrap()]).stdin(input));
    assert_eq!(printed.status, 0, "{}", printed.stderr);
    let mut left = String::new();
    file.read_to_string(&mut left).unwrap();
    assert_eq!(left, "for whoever comes next\n");
}

#[test]
fn entropy_is_as_long_as_asked_for_and_never_the_same() {
    let Some(_) = kvm() else { return };
    let rng = app("rng");
    let draw = |count: usize| {
        let count_text = count.to_string();
        let args = [
            "run",
            "--timeout",
            "60s",
            rng.to_str().unwrap(),
            "--",
            &count_text,
        ];
        let printed = output(&mut wharf(args));
        assert_eq!(printed.status, 0, "{}", printed.stderr);
        assert_eq!(printed.stdout.len(), 2 * count + 1);
        printed.stdout
    };
    assert_ne!(draw(32), draw(32));
    // More than one buffer: no byte of it is left out.
    let many = draw(20_000);
    let bytes = many.trim_end().as_bytes().chunks(2);
    let zeroes = bytes.filter(|it| *it == b"00").count();
    // 78 are expected; a buffer that was not filled would be 4096 of them.
    assert!((20..300).contains(&zeroes), "{zeroes}");
}
