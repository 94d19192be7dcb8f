//! The real `wharf` with guests in files, as an operator has them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, dword_ptr, dx, eax, ecx, esp, qword_ptr, r12, r13, rax, rbx, rcx, rdi, rdx, rsi,
    rsp, word_ptr,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wharf_tests::command::{Printed, output, wharf};
use wharf_tests::elf::{CODE_ADDR, ElfBuilder};
use wharf_tests::guest::{assemble, kvm};
use wharf_tests::host::{Host, objects, poll, status};
use wharf_tests::hvt::{
    BLOCK, BLOCK_READ, BLOCK_WRITE, HALT, HvtBuilder, NET, NET_READ, NET_WRITE, POLL, PORT_BASE,
    PUTS, TABLES, abi_note, call, call_with, halt, puts, puts_stack, start_up, tables,
};

use crate::start::with_handler;

const DATA: u64 = 0x60_0000;

/// Writes instructions.
type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// An image in a file that is gone with the value.
struct File {
    directory: tempfile::TempDir,
    path: std::path::PathBuf,
}

fn file(builder: &HvtBuilder) -> File {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest.hvt");
    fs::write(&path, builder.build()).unwrap();
    File { directory, path }
}

fn guest(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> HvtBuilder {
    HvtBuilder::guest(&assemble(write))
}

fn run(image: &Path, args: &[&str]) -> Printed {
    let mut command = wharf(["run"]);
    output(command.arg(image).args(args))
}

#[test]
fn a_guests_status_is_that_of_the_command() {
    if kvm().is_none() {
        return;
    }
    for (status, expected) in [(0, 0), (1, 1), (7, 7), (255, 255), (256, 0)] {
        let image = file(&guest(|a| halt(a, status)));
        let printed = run(&image.path, &[]);
        assert_eq!((printed.status, printed.stderr.as_str()), (expected, ""));
    }
}

#[test]
fn a_guest_prints_its_arguments() {
    if kvm().is_none() {
        return;
    }
    let image = file(&guest(|a| {
        a.mov(rax, qword_ptr(rdi + 24))?;
        a.push(17)?;
        a.push(rax)?;
        a.mov(eax, esp)?;
        a.mov(dx, u32::from(PORT_BASE + PUTS))?;
        a.out(dx, eax)?;
        halt(a, 0)
    }));
    let printed = run(&image.path, &["--", "--solo5:quiet", "a b"]);
    assert_eq!(printed.stdout, "--solo5:quiet a b");
    assert_eq!((printed.status, printed.stderr.as_str()), (0, ""));
}

/// What a guest did to end is told with the names of its functions.
#[test]
fn a_fault_is_reported_and_has_a_status_of_its_own() {
    if kvm().is_none() {
        return;
    }
    #[rustfmt::skip]
    let faults: &[(Write, &str)] = &[
        (|a| a.rdmsr(), "privileged instruction that is not emulated (rdmsr)"),
        (|a| a.hlt(), "hlt, which nothing would ever end"),
        (|a| call(a, 9, 0), "no such hypercall (out to port 0x509, 4 bytes)"),
        (|a| call(a, 1, 0x1000), "bad pointer in a hypercall (0x1000, 8 bytes)"),
        (|a| a.mov(qword_ptr(CODE_ADDR), rax), "page fault (#PF, vector 14)"),
        (|a| a.ud2(), "invalid opcode (#UD, vector 6)"),
    ];
    for (write, told) in faults {
        let culprit = guest(|a| {
            write(a)?;
            a.nop()
        });
        let image = file(&culprit.symbol("culprit", CODE_ADDR, 64));
        let printed = run(&image.path, &[]);
        assert_eq!(printed.status, 139, "{}", printed.stderr);
        let expected = format!("wharf: guest: fault: {told}\n");
        assert!(printed.stderr.starts_with(&expected), "{}", printed.stderr);
        assert!(printed.stderr.contains("  culprit"), "{}", printed.stderr);
    }
}

#[test]
fn what_cannot_be_run_is_refused_in_one_line() {
    let image = file(&guest(|a| halt(a, 0)).device(BLOCK, "storage"));
    let path = image.path.display().to_string();
    let spt = image.directory.path().join("spt.hvt");
    fs::write(&spt, guest(|a| halt(a, 0)).abi(&abi_note(2, 1)).build()).unwrap();
    let long = "x".repeat(8000);
    let disk = image.directory.path().join("disk.img");
    fs::write(&disk, [0; 512]).unwrap();
    let attach = format!("storage={}", disk.display());
    let other = format!("data={}", disk.display());
    let publish = format!("127.0.0.1:{}:80", wharf_tests::net::port());
    #[rustfmt::skip]
    let refused: &[(&[&str], &str)] = &[
        (&[&path], "declares the block device \"storage\", and nothing is configured for it"),
        (&[&path, "--block", &other], "nothing is configured for it"),
        (&[&path, "--block", &attach, "--publish", &publish],
         "declares no stream device"),
        (&[&path, "--block", &attach, "--memory", "4MiB"],
         "memory of 4096 KiB is too small: the image needs 4104 KiB"),
        (&[&path, "--block", &attach, "--memory", "5GiB"],
         "memory of 5 GiB is too large: the most is 4 GiB"),
        (&[&path, "--block", &attach, "--", &long, &long[..191]],
         "arguments of 8192 bytes are too long for an hvt guest: the most is 8191"),
        (&[spt.to_str().unwrap()], "the image was built for Solo5's target spt: build it for hvt"),
    ];
    if kvm().is_none() {
        return;
    }
    for (args, told) in refused {
        let printed = output(wharf(["run"]).args(*args));
        assert_eq!(
            (printed.status, printed.stdout.as_str()),
            (125, ""),
            "{args:?}"
        );
        assert!(printed.stderr.contains(told), "{}", printed.stderr);
        assert_eq!(printed.stderr.lines().count(), 1, "{}", printed.stderr);
    }
}

/// Copies block 0 to block 1, and ends with the status of the write.
fn copier() -> HvtBuilder {
    guest(|a| {
        call_with(a, BLOCK_READ, &[1, 0, DATA, 512, 0])?;
        call_with(a, BLOCK_WRITE, &[1, 512, DATA, 512, 0])?;
        a.mov(eax, dword_ptr(esp + 32))?;
        a.push(rax)?;
        a.push(0)?;
        a.mov(eax, esp)?;
        a.mov(dx, u32::from(PORT_BASE + 8))?;
        a.out(dx, eax)
    })
    .data(DATA, &[0; 512])
    .device(BLOCK, "storage")
}

#[test]
fn disks_are_the_same_as_other_guests() {
    if kvm().is_none() {
        return;
    }
    let image = file(&copier());
    let disk = image.directory.path().join("disk.img");
    let bytes: Vec<u8> = (0..512_usize).map(|n| (n % 251) as u8).collect();
    for (mode, status, written) in [("", 0, true), (",ro", 3, false), (",cow", 0, false)] {
        fs::write(&disk, [&bytes[..], &[0; 512]].concat()).unwrap();
        let block = format!("storage={}{mode}", disk.display());
        let printed = run(&image.path, &["--block", &block]);
        assert_eq!(
            (printed.status, printed.stderr.as_str()),
            (status, ""),
            "{mode}"
        );
        let after = fs::read(&disk).unwrap();
        assert_eq!(after[512..] == bytes, written, "{mode}");
    }
}

/// Guests that keep the host busy with each of their steps.
fn circles() -> Vec<(&'static str, HvtBuilder)> {
    let emulated = guest(|a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.cli()?;
        a.jmp(here)
    });
    let calls = guest(|a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        call(a, 1, DATA)?;
        a.jmp(here)
    })
    .data(DATA, &[0; 8]);
    let empty_writes = guest(|a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        puts(a, 0, 0)?;
        a.jmp(here)
    });
    let long_writes = guest(|a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        puts(a, 1 << 20, 4 << 20)?;
        a.jmp(here)
    });
    let faults = with_handler(|a| a.ud2(), |a| a.iretq());
    let lost = HvtBuilder::guest(&assemble(|a| {
        start_up(a)?;
        a.ud2()
    }))
    .data(TABLES, &tables(0x4000_0000))
    .data(TABLES + 0x1000, &[0; 4096]);
    let spin = guest(|a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.jmp(here)
    });
    let polls = guest(|a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        call(a, POLL, DATA)?;
        a.jmp(here)
    })
    .data(DATA, &[0; 24]);
    vec![
        ("emulated", emulated),
        ("calls", calls),
        ("writes", empty_writes),
        ("long-writes", long_writes),
        ("faults", faults),
        ("lost", lost),
        ("spin", spin),
        ("polls", polls),
    ]
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn a_guest_in_a_circle_ends_when_it_has_to() {
    if kvm().is_none() {
        return;
    }
    for (what, builder) in circles() {
        let image = file(&builder);
        let mut limited = wharf(["run", "--timeout", "100ms"]);
        limited.arg(&image.path).stdout(Stdio::null());
        assert_eq!(output(&mut limited).status, 124, "{what}");
        for (sent, expected) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
            // Long enough for the guest to run; should it not yet, the signal ends the
            // command all the same.
            let mut command = wharf(["run"]);
            command
                .arg(&image.path)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            std::thread::sleep(Duration::from_millis(50));
            signal(&child, sent);
            let ended = poll(|| status(&mut child));
            if ended.is_none() {
                child.kill().unwrap();
            }
            assert_eq!(ended, Some(expected), "{what}");
        }
    }
}

/// Guests in circles beside one that has something to do now and then, all on one
/// worker: slices hold, and each is stopped.
#[test]
fn slices_hold_against_guests_in_circles() {
    if kvm().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let ticks = guest(|a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        call_with(a, POLL, &[1_000_000, 0, 0])?;
        puts(a, DATA, 5)?;
        a.jmp(here)
    })
    .data(DATA, b"tick\n");
    let mut all = circles();
    all.push(("ticks", ticks));
    let mut toml = "[host]\nworkers = 1\n".to_owned();
    for (name, builder) in &all {
        let image = directory.path().join(format!("{name}.hvt"));
        fs::write(&image, builder.build()).unwrap();
        toml += &format!("[[task]]\nname = \"{name}\"\nimage = {image:?}\nmemory = \"8MiB\"\n");
    }
    let mut host = Host::up(directory.path(), &toml);
    host.until("it ticks", || {
        let log = host.ask(&["logs", "ticks"]);
        (log.lines().count() >= 20).then_some(())
    });
    for (name, _) in &all {
        let replica = format!("{name}.0");
        host.until_task(&replica, |task| task.number("run_ns") > 0);
        // They are told nothing, since nothing in their contract could tell them.
        let _ = host.ask(&["stop", name]);
        let task = host.until_task(&replica, |task| task.state() == "stopped");
        assert_eq!(task.number("restarts"), 0, "{name}");
    }
    host.signal(Signal::SIGTERM);
    assert_eq!(host.status(), 0);
}

/// A long text is written in pieces, between which the slice may end: whoever is due
/// beside the guest waits for a slice and not for the text.
#[test]
fn a_long_text_holds_nobody_up() {
    if kvm().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // All of its memory, of which it may read nearly all.
    let long = guest(|a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        puts(a, 1 << 20, 100 << 20)?;
        a.jmp(here)
    });
    // Waits a millisecond fifty times, and ends with how many it took on the average.
    let ticks = guest(|a| {
        a.mov(r12, rdi)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.mov(r13, rax)?;
        a.mov(rbx, 50_u64)?;
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        call_with(a, POLL, &[1_000_000, 0, 0])?;
        a.add(rsp, 24)?;
        a.sub(rbx, 1)?;
        a.jne(here)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.sub(rax, r13)?;
        // Cycles of fifty milliseconds.
        a.mov(r13, rax)?;
        a.mov(rax, qword_ptr(r12 + 16))?;
        a.mov(rdx, 0_u64)?;
        a.mov(rcx, 20_u64)?;
        a.div(rcx)?;
        a.mov(rcx, rax)?;
        a.mov(rax, r13)?;
        a.mov(rdx, 0_u64)?;
        a.div(rcx)?;
        a.mov(rcx, 255_u64)?;
        a.cmp(rax, rcx)?;
        a.cmova(rax, rcx)?;
        a.push(rax)?;
        a.push(0)?;
        a.mov(eax, esp)?;
        a.mov(dx, u32::from(PORT_BASE + HALT))?;
        a.out(dx, eax)
    });
    let mut toml = "[host]\nworkers = 1\n".to_owned();
    for (name, builder, memory) in [("long", long, "128MiB"), ("ticks", ticks, "8MiB")] {
        let image = directory.path().join(format!("{name}.hvt"));
        fs::write(&image, builder.build()).unwrap();
        toml += &format!(
            "[[task]]\nname = \"{name}\"\nimage = {image:?}\nmemory = {memory:?}\n\
             restart = \"never\"\n"
        );
    }
    let host = Host::up(directory.path(), &toml);
    let ticks = host.until_task("ticks.0", |task| task.state() == "stopped");
    let average = ticks.optional("exit_status").unwrap();
    assert!(average < 20, "{average} ms");
    let long = host.task("long.0");
    assert!(long.number("run_ns") > 0, "{long:?}");
    let _ = host.ask(&["stop", "long"]);
    host.until_task("long.0", |task| task.state() == "stopped");
}

/// A guest that polls is parked: it takes no time, and is there again at once when there
/// is a frame.
#[test]
fn frames_go_from_one_guest_to_another() {
    if kvm().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // A broadcast of 64 bytes every 10 ms, under the address that the manifest says.
    let sends = guest(|a| {
        a.mov(rax, qword_ptr(rdi + 32))?;
        a.lea(rsi, qword_ptr(rax + 8 + 104 + 72))?;
        a.mov(rdi, DATA + 6)?;
        a.mov(ecx, 6)?;
        a.rep().movsb()?;
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        call_with(a, NET_WRITE, &[1, DATA, 64, 0])?;
        call_with(a, POLL, &[10_000_000, 0, 0])?;
        a.add(rbx, 0)?;
        a.jmp(here)
    })
    .data(
        DATA,
        &[
            &[0xFF; 6][..],
            &[0; 6],
            b"\x88\xb5hello from next door",
            &[0; 30],
        ]
        .concat(),
    )
    .device(NET, "service");
    let receives = guest(|a| {
        let mut here = a.create_label();
        let mut other = a.create_label();
        a.set_label(&mut here)?;
        call_with(a, POLL, &[u64::MAX, 0, 0])?;
        call_with(a, NET_READ, &[1, DATA, 1514, 0])?;
        // What else is on the switch is of no interest.
        a.mov(rcx, DATA)?;
        a.cmp(word_ptr(rcx + 12), 0xB588_u32 as i32)?;
        a.jne(other)?;
        puts(a, DATA + 14, 20)?;
        halt(a, 0)?;
        a.set_label(&mut other)?;
        a.jmp(here)
    })
    .data(DATA, &[0; 2048])
    .device(NET, "service");
    let mut toml = "[host]\nworkers = 1\n".to_owned();
    for (name, builder) in [("receives", receives), ("sends", sends)] {
        let image = directory.path().join(format!("{name}.hvt"));
        fs::write(&image, builder.build()).unwrap();
        toml += &format!("[[task]]\nname = \"{name}\"\nimage = {image:?}\nmemory = \"8MiB\"\n");
    }
    let host = Host::up(directory.path(), &toml);
    let task = host.until_task("receives.0", |task| task.state() == "stopped");
    assert_eq!(task.optional("exit_status"), Some(0));
    assert_eq!(
        host.ask(&["logs", "receives"]).trim_end(),
        "hello from next door"
    );
    host.until_task("sends.0", |task| task.state() == "waiting");
}

#[test]
fn a_guest_that_polls_forever_takes_no_time() {
    if kvm().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("polls.hvt");
    let polls = guest(|a| {
        call_with(a, POLL, &[u64::MAX, 0, 0])?;
        halt(a, 1)
    });
    fs::write(&image, polls.build()).unwrap();
    let host = Host::up(
        directory.path(),
        &format!("[[task]]\nname = \"polls\"\nimage = {image:?}\n"),
    );
    let before = host.until_task("polls.0", |task| task.state() == "waiting");
    std::thread::sleep(Duration::from_millis(300));
    let after = host.task("polls.0");
    assert_eq!(after.state(), "waiting");
    assert_eq!(after.number("run_ns"), before.number("run_ns"));
}

/// Two images, of guests that have one word each.
fn two_versions(directory: &Path, of: impl Fn(&[u8; 4]) -> HvtBuilder) -> [PathBuf; 2] {
    [("1.hvt", b"one\n"), ("2.hvt", b"two\n")].map(|(name, word)| {
        let image = directory.join(name);
        fs::write(&image, of(word).build()).unwrap();
        image
    })
}

/// It does not stand still for who comes after it, so nobody has its disk meanwhile.
#[test]
fn a_guest_hands_nothing_over_and_keeps_its_disk() {
    if kvm().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let [one, two] = two_versions(directory.path(), |word| {
        let builder = guest(|a| {
            call_with(a, BLOCK_WRITE, &[1, 0, DATA, 512, 0])?;
            puts(a, DATA, 4)?;
            call_with(a, POLL, &[u64::MAX, 0, 0])?;
            halt(a, 1)
        });
        let builder = builder.data(DATA, &[&word[..], &[0; 508]].concat());
        builder.device(BLOCK, "storage")
    });
    let disk = directory.path().join("disk.img");
    fs::write(&disk, [0; 512]).unwrap();
    let host = Host::up(
        directory.path(),
        &format!(
            "[[task]]\nname = \"web\"\nimage = {one:?}\n\
             [[task.block]]\ndevice = \"storage\"\nfile = {disk:?}\n"
        ),
    );
    host.until_task("web.0", |task| task.state() == "waiting");
    // It would write beside the new one.
    let refused = host.try_ask(&["upgrade", "web", "--image", two.to_str().unwrap()]);
    let told = refused.refusal();
    assert!(
        told.contains("would write its disk beside the new one"),
        "{told}"
    );
    assert_eq!(host.task("web.0").number("generation"), 1);
    assert_eq!(fs::read(&disk).unwrap()[..4], *b"one\n");
    // A clone of it would not know that it is one.
    let file = directory.path().join("web.snap");
    let refused = host.try_ask(&["snapshot", "web", file.to_str().unwrap()]);
    let told = refused.refusal();
    assert!(
        told.contains("guests of Solo5's cannot be frozen"),
        "{told}"
    );
    assert!(!file.exists());
    let _ = host.ask(&["restart", "web"]);
    host.until_task("web.0", |task| {
        // The one that was refused had a number, too.
        task.number("generation") == 3 && task.state() == "waiting"
    });
}

/// The next version takes the place of the one before, which knows of nothing; what
/// neither could hand over is not asked for.
#[test]
fn a_guest_is_upgraded_though_it_hands_nothing_over() {
    if kvm().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let [one, two] = two_versions(directory.path(), |word| {
        let builder = guest(|a| {
            puts(a, DATA, 4)?;
            call_with(a, POLL, &[u64::MAX, 0, 0])?;
            halt(a, 1)
        });
        builder.data(DATA, word)
    });
    let toml = format!("[[task]]\nname = \"web\"\nimage = {one:?}\n");
    let host = Host::up(directory.path(), &toml);
    host.until_task("web.0", |task| task.state() == "waiting");
    let _ = host.ask(&["upgrade", "web", "--image", two.to_str().unwrap()]);
    let task = host.until_task("web.0", |task| task.state() == "waiting");
    assert_eq!(task.number("generation"), 2);
    host.until("it says so", || {
        host.ask(&["logs", "web"]).contains("two\n").then_some(())
    });
    // And one that starts anew is as good as any other.
    let _ = host.ask(&["restart", "web"]);
    host.until_task("web.0", |task| {
        task.number("generation") == 3 && task.state() == "waiting"
    });
}

#[test]
fn the_memory_that_an_image_is_said_to_need_is_enough_and_no_less_is() {
    if kvm().is_none() {
        return;
    }
    let image = file(
        &guest(|a| {
            // The lowest byte that is the stack's.
            a.mov(rax, DATA + 4096)?;
            a.mov(qword_ptr(rax), rax)?;
            halt(a, 7)
        })
        .data(DATA, &[0; 100]),
    );
    let path = image.path.to_str().unwrap();
    let inspect = |args: &[&str]| output(wharf(["image", "inspect"]).args(args)).stdout;
    let text = inspect(&[path]);
    let line = text.lines().find_map(|line| line.strip_prefix("memory "));
    let least = line.unwrap().trim().strip_suffix(" at least").unwrap();
    let bytes = objects(&inspect(&["--json", path]))[0].number("memory_min_bytes");
    let given = |memory: &str| output(wharf(["run", "--memory", memory]).arg(path));
    assert_eq!(given(least).status, 7, "{least}");
    assert_eq!(given(&format!("{bytes}B")).status, 7);
    let printed = given(&format!("{}B", bytes - 4096));
    assert_eq!(printed.status, 125);
    let told = format!("too small: the image needs {} KiB", bytes / 1024);
    assert!(printed.stderr.contains(&told), "{}", printed.stderr);
}

#[test]
fn an_image_can_be_looked_at() {
    let image = file(
        &guest(|a| puts_stack(a, 1))
            .data(DATA, &[0; 100])
            .device(BLOCK, "storage")
            .device(NET, "service")
            .symbol("_start", CODE_ADDR, 8),
    );
    let inspect = |args: &[&str]| output(wharf(["image", "inspect"]).args(args));
    let path = image.path.to_str().unwrap();
    let text = inspect(&[path]).stdout;
    for line in [
        "name      guest\n",
        "contract  solo5-hvt 2\n",
        "entry     0x400000  _start\n",
        "placement fixed\n",
        "segments  0x400000  rx  ",
        "          0x600000  rw  100 bytes, 100 of them in the file\n",
        "devices   block storage\n          net service\n",
        "symbols   1\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    let json = inspect(&["--json", path]);
    let object = &objects(&json.stdout)[0];
    assert_eq!(object.text("contract"), "solo5-hvt");
    assert_eq!(object.text("contract_version"), "2");
    assert_eq!(object.number("entry"), CODE_ADDR);
    assert_eq!(object.number("memory_min_bytes"), DATA + 2 * 4096);
    assert_eq!(object.0["devices"][1]["kind"], "net");

    let native = image.directory.path().join("native.elf");
    fs::write(&native, ElfBuilder::guest(&[0xF4]).build()).unwrap();
    let text = inspect(&[native.to_str().unwrap()]).stdout;
    assert!(text.contains("contract  wharf 1."), "{text}");
    assert!(
        text.contains("version   1.0\n") && text.contains("stack     256KiB\n"),
        "{text}"
    );

    let bad = image.directory.path().join("bad.hvt");
    fs::write(&bad, [0; 100]).unwrap();
    let printed = inspect(&[bad.to_str().unwrap()]);
    assert_eq!((printed.status, printed.stdout.as_str()), (125, ""));
    assert_eq!(printed.stderr.lines().count(), 1, "{}", printed.stderr);
}
