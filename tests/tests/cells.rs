//! `wharf up` as an operator knows it: many tasks, looked at and acted on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, rdi};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use wharf_abi::hypercall::FOREVER;
use wharf_abi::{Hypercall, Interest};
use wharf_tests::command::{output, wharf};
use wharf_tests::elf::ElfBuilder;
use wharf_tests::guest::{assemble, call, exit, kvm};
use wharf_tests::host::Host;

const DATA: u64 = 0x50_0000;

/// Puts an image of raw code with a page of `x` into the directory.
fn image(
    directory: &Path,
    name: &str,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    let elf = ElfBuilder::guest(&assemble(write)).data(DATA, &[b'x'; 4096]);
    fs::write(directory.join(name), elf.build()).unwrap();
}

/// The images that the files below name.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    image(path, "waits", |a| {
        call(a, Hypercall::ConsoleWrite, DATA, 1)?;
        call(a, Hypercall::Wait, FOREVER, Interest::STOP.bits())?;
        exit(a, 7)
    });
    image(path, "deaf", |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(again)
    });
    image(path, "fails", |a| exit(a, 3));
    image(path, "ends", |a| exit(a, 0));
    image(path, "floods", |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        call(a, Hypercall::ConsoleWrite, DATA, 4096)?;
        a.jmp(again)
    });
    image(path, "ticks", |a| {
        // Says x every 20 ms.
        let mut again = a.create_label();
        a.mov(iced_x86::code_asm::r12, 0_u64)?;
        a.set_label(&mut again)?;
        a.add(iced_x86::code_asm::r12, 20_000_000)?;
        a.mov(rdi, iced_x86::code_asm::r12)?;
        a.mov(iced_x86::code_asm::rsi, 0_u64)?;
        a.out(i32::from(Hypercall::Wait.port()), al)?;
        call(a, Hypercall::ConsoleWrite, DATA, 1)?;
        a.jmp(again)
    });
    directory
}

#[test]
fn replicas_come_up_and_show_what_they_do() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let host = Host::up(
        directory.path(),
        "[[task]]\nname = \"web\"\nimage = \"waits\"\nreplicas = 2\n",
    );
    for replica in ["web.0", "web.1"] {
        let task = host.until_task(replica, |task| {
            task.state() == "waiting" && task.number("console_bytes") == 1
        });
        assert_eq!((task.number("generation"), task.number("restarts")), (1, 0));
        assert_eq!(task.number("memory_bytes"), 32 << 20);
        assert_eq!(task.optional("exit_status"), None);
        assert!(task.number("run_ns") > 0 && task.text("image").ends_with("waits"));
        host.until_event(replica, "started", 0);
    }
    assert_eq!(host.ask(&["logs", "web.1"]).trim_end(), "x");
    assert!(host.ask(&["ps"]).contains("web.1"));
    assert!(host.ask(&["top"]).contains("web.0"));
}

#[test]
fn a_stopped_task_stays_so_and_a_restarted_one_is_another_generation() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let host = Host::up(
        directory.path(),
        "[[task]]\nname = \"polite\"\nimage = \"waits\"\nrestart = \"always\"\n\
         [[task]]\nname = \"deaf\"\nimage = \"deaf\"\nstop-timeout = \"100ms\"\n",
    );
    host.until_task("polite.0", |task| task.state() == "waiting");
    let _ = host.ask(&["stop", "polite"]);
    let polite = host.until_task("polite.0", |task| task.state() == "stopped");
    assert_eq!(
        polite.optional("exit_status"),
        Some(7),
        "it was told, and ended"
    );
    let _ = host.ask(&["stop", "deaf"]);
    let deaf = host.until_task("deaf.0", |task| task.state() == "stopped");
    assert_eq!(deaf.optional("exit_status"), Some(143));
    let _ = host.ask(&["restart", "polite"]);
    let polite = host.until_task("polite.0", |task| task.number("generation") == 2);
    assert_eq!(polite.number("restarts"), 1);
    assert_eq!(host.task("deaf.0").number("generation"), 1);
}

#[test]
fn what_fails_backs_off_and_keeps_nobody_else_from_running() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let host = Host::up(
        directory.path(),
        "[[task]]\nname = \"fails\"\nimage = \"fails\"\n\
         [[task]]\nname = \"gone\"\nimage = \"nowhere.elf\"\nrestart = \"never\"\n\
         [[task]]\nname = \"once\"\nimage = \"ends\"\n\
         [[task]]\nname = \"good\"\nimage = \"waits\"\n",
    );
    host.until_event("fails.0", "backing-off", 0);
    let fails = host.until_task("fails.0", |task| task.number("restarts") >= 2);
    assert!(fails.number("restarts") < 10, "{fails:?}");
    assert_eq!(fails.optional("exit_status"), Some(3));
    let gone = host.until_task("gone.0", |task| task.state() == "faulted");
    assert!(gone.text("reason").contains("nowhere.elf"), "{gone:?}");
    let once = host.until_task("once.0", |task| task.state() == "stopped");
    assert_eq!(
        (once.optional("exit_status"), once.number("restarts")),
        (Some(0), 0)
    );
    host.until_task("good.0", |task| task.state() == "waiting");

    let strict = output(&mut host.up_command(&["--strict"]));
    assert_eq!(strict.status, 125);
}

#[test]
fn a_host_that_is_told_to_end_stops_its_tasks_from_last_to_first() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let mut host = Host::up(
        directory.path(),
        "[[task]]\nname = \"first\"\nimage = \"waits\"\n\
         [[task]]\nname = \"last\"\nimage = \"waits\"\n",
    );
    for replica in ["first.0", "last.0"] {
        host.until_task(replica, |task| task.state() == "waiting");
    }
    host.signal(Signal::SIGTERM);
    assert_eq!(host.status(), 0);
    let said = host.said();
    let at = |what: &str| {
        said.find(what)
            .unwrap_or_else(|| panic!("{what} is not in {said}"))
    };
    assert!(at("last.0: exited") < at("first.0: exited"), "{said}");
    assert!(!host.socket().exists());
}

#[test]
fn a_second_signal_does_not_wait_for_the_deaf() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    image(directory.path(), "ignores", |a| {
        let mut again = a.create_label();
        call(a, Hypercall::Wait, 0, Interest::STOP.bits())?;
        call(a, Hypercall::ConsoleWrite, DATA, 1)?;
        a.set_label(&mut again)?;
        a.jmp(again)
    });
    let mut host = Host::up(
        directory.path(),
        "[[task]]\nname = \"t\"\nimage = \"ignores\"\nstop-timeout = \"1h\"\n",
    );
    host.until_task("t.0", |task| task.number("console_bytes") == 1);
    host.signal(Signal::SIGINT);
    host.signal(Signal::SIGTERM);
    assert_eq!(host.status(), 0);
}

#[test]
fn one_socket_has_one_host_and_a_dead_one_blocks_nobody() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let mut host = Host::up(
        directory.path(),
        "[[task]]\nname = \"t\"\nimage = \"waits\"\n",
    );
    let mode = fs::metadata(host.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let pid = host.pid().unwrap().to_string();
    let second = output(&mut host.up_command(&[]));
    assert_eq!(second.status, 125, "{second:?}");
    assert!(second.stderr.contains(&pid), "{second:?}");

    host.signal(Signal::SIGKILL);
    assert_eq!(host.status(), 137);
    host.start();
    host.until_task("t.0", |task| task.state() == "waiting");
}

#[test]
fn bad_requests_get_a_reason_and_change_nothing() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let host = Host::up(
        directory.path(),
        "[[task]]\nname = \"t\"\nimage = \"waits\"\n",
    );
    host.until_task("t.0", |task| task.state() == "waiting");
    for (method, path, status) in [
        ("GET", "/v1/tasks", 200),
        ("GET", "/metrics", 200),
        ("POST", "/v1/tasks/nobody/stop", 404),
        ("POST", "/v1/tasks/t.7/restart", 404),
        ("POST", "/v1/tasks/t.x/stop", 400),
        ("GET", "/v1/nonsense", 404),
        ("DELETE", "/v1/tasks", 405),
        ("GET", "/v1/events?after=x", 400),
    ] {
        let (got, body) = host.http(method, path);
        assert_eq!(got, status, "{method} {path}: {body}");
        assert!(status == 200 || body.contains("error"), "{body}");
    }
    let task = host.task("t.0");
    assert_eq!((task.state(), task.number("generation")), ("waiting", 1));
    let refusal = host.try_ask(&["stop", "nobody"]);
    assert_eq!((refusal.status, refusal.stderr.lines().count()), (125, 1));
}

#[test]
fn a_flood_slows_only_itself() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let host = Host::up(
        directory.path(),
        "[host]\nworkers = 1\n[[task]]\nname = \"floods\"\nimage = \"floods\"\n\
         [[task]]\nname = \"ticks\"\nimage = \"ticks\"\n",
    );
    // The one that ticks goes on while the other has written megabytes.
    host.until_task("floods.0", |task| task.number("console_bytes") > 8 << 20);
    let ticks = host.task("ticks.0").number("console_bytes");
    host.until_task("ticks.0", |task| task.number("console_bytes") > ticks + 10);
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid().unwrap())).unwrap();
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kib: u64 = rss.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 64 << 10, "{kib} KiB");
}

#[test]
fn sixty_four_tasks_start_and_end() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let host = Host::up(
        directory.path(),
        "[[task]]\nname = \"t\"\nimage = \"ends\"\nreplicas = 64\nrestart = \"never\"\n",
    );
    for index in 0..64 {
        let task = host.until_task(&format!("t.{index}"), |task| task.state() == "stopped");
        assert_eq!(task.optional("exit_status"), Some(0));
    }
}

/// Found by hand: who asked while the host ended waited for ever.
#[test]
fn many_tasks_go_down_while_somebody_watches() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let mut host = Host::up(
        directory.path(),
        "[[task]]\nname = \"t\"\nimage = \"waits\"\nreplicas = 64\n",
    );
    for index in 0..64 {
        host.until_task(&format!("t.{index}"), |task| task.state() == "waiting");
    }
    let mut down = host.command(&["down"]).spawn().unwrap();
    // Asks again and again, until nobody answers.
    while host.try_ask(&["ps"]).status == 0 {}
    assert!(down.wait().unwrap().success());
    assert_eq!(host.status(), 0);
}

#[test]
fn a_check_names_line_and_column_and_starts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wharf.toml");
    fs::write(
        &file,
        "[[task]]\nname = \"web\"\nimage = \"x\"\nmemory = \"32\"\nrepicas = 2\n",
    )
    .unwrap();
    let printed = output(wharf(["up", "--check"]).arg(&file));
    assert_eq!(printed.status, 125);
    for problem in ["wharf.toml:4:10: ", "wharf.toml:5:1: "] {
        assert!(printed.stderr.contains(problem), "{}", printed.stderr);
    }
    assert!(printed.stderr.contains("replicas"), "{}", printed.stderr);
    fs::write(&file, "[[task]]\nname = \"web\"\nimage = \"x\"\n").unwrap();
    assert_eq!(output(wharf(["up", "--check"]).arg(&file)).status, 0);
}
