//! Hosts that come and go at one socket, or before they serve: who is told what, and who
//! is left.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wharf_abi::Hypercall;
use wharf_abi::hypercall::FOREVER;
use wharf_tests::command::{output, wharf};
use wharf_tests::elf::ElfBuilder;
use wharf_tests::guest::{assemble, call, kvm};
use wharf_tests::host::{Host, poll};
use wharf_tests::plugin::PluginWat;

/// A host, not yet started, of one guest that waits.
fn host(directory: &Path, more: &str) -> Host {
    let waits = assemble(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        call(a, Hypercall::Wait, FOREVER, 0)?;
        a.jmp(again)
    });
    fs::write(directory.join("waits"), ElfBuilder::guest(&waits).build()).unwrap();
    let task =
        "[[task]]\nname = \"web\"\nimage = \"waits\"\nmemory = \"4MiB\"\nstop-timeout = \"1ms\"\n";
    Host::new(directory, &format!("{more}{task}"))
}

#[test]
fn down_ends_when_another_host_takes_the_place() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let host = host(directory.path(), "");
    assert_eq!(output(&mut host.up_command(&["--detach"])).status, 0);
    let first = host.pid().unwrap();
    thread::scope(|scope| {
        let up = || (output(&mut host.up_command(&["--detach"])).status == 0).then_some(());
        let next = scope.spawn(move || poll(up));
        let mut down = host
            .command(&["down"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let status = poll(|| wharf_tests::host::status(&mut down));
        let _ = down.kill();
        assert_eq!(status, Some(0));
        assert!(next.join().unwrap().is_some(), "another serves");
    });
    assert_ne!(host.pid(), Some(first));
    assert_eq!(host.tasks().len(), 1);
    let _ = host.ask(&["down"]);
}

#[test]
fn of_two_detached_at_once_one_is_up_and_the_other_says_who_is() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let host = host(directory.path(), "");
    let up = || output(&mut host.up_command(&["--detach"]));
    let (one, two) = thread::scope(|scope| {
        let (one, two) = (scope.spawn(up), scope.spawn(up));
        (one.join().unwrap(), two.join().unwrap())
    });
    let (good, refused) = if one.status == 0 {
        (one, two)
    } else {
        (two, one)
    };
    assert_eq!((good.status, refused.status), (0, 125), "{refused:?}");
    assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
    let pid = host.pid().unwrap();
    let who = format!("process {pid} serves");
    assert!(refused.stderr.contains(&who), "{refused:?}");
    let _ = host.ask(&["down"]);
    assert_eq!(host.pid(), None, "nobody takes over later");
}

/// Its plugin takes seconds to compile.
#[test]
fn a_signal_ends_a_host_that_does_not_serve_yet() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let slow = "(block (loop (br_if 1 (i32.eqz (local.get 0))) (br 0)))".repeat(40);
    let slow = format!("(func (param i32) {slow})").repeat(1000);
    PluginWat::new("scheduler")
        .item(&slow)
        .write(&directory.path().join("slow.wasm"));
    let policy = "[policy.scheduler]\nplugin = \"slow.wasm\"\n";
    let host = host(directory.path(), policy);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut command = host.up_command(&[]);
        command.env("XDG_CACHE_HOME", directory.path().join("none"));
        let mut up = command.stderr(Stdio::null()).spawn().unwrap();
        let pid = up.id();
        // It compiles: the thread that hears signals is there, and nobody serves.
        host.until("it hears signals", || {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
            let mut names =
                threads.filter_map(|it| fs::read_to_string(it.ok()?.path().join("comm")).ok());
            names.any(|name| name == "signals\n").then_some(())
        });
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
        let status = poll(|| wharf_tests::host::status(&mut up));
        let _ = up.kill();
        assert_eq!(status, Some(128 + signal as i32));
        assert!(!host.socket().exists());
    }
}

#[test]
fn a_directory_whose_name_is_no_text_is_as_good_as_any() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let strange = directory.path().join(OsStr::from_bytes(b"x\xffy"));
    fs::create_dir(&strange).unwrap();
    let host = host(&strange, "");
    let up = output(&mut host.up_command(&["--detach"]));
    assert_eq!(up.status, 0, "{up:?}");
    let (status, body) = host.http("GET", "/v1/host");
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("x\u{fffd}y/wharf.toml"), "{body}");
    assert_eq!(host.ask(&["down"]), "");
}

#[test]
fn a_check_refuses_a_socket_that_could_not_be_made() {
    let directory = tempfile::tempdir().unwrap();
    let _ = host(directory.path(), "");
    let long = directory.path().join("x".repeat(120));
    for (socket, reason) in [
        (long.as_path(), "the kernel takes 107"),
        (directory.path(), "is there and no socket"),
        (Path::new("/dev/null"), "is there and no socket"),
    ] {
        let mut check = wharf(["up", "--check", "--socket"]);
        check.arg(socket).arg(directory.path().join("wharf.toml"));
        let printed = output(&mut check);
        assert_eq!(printed.status, 125, "{printed:?}");
        assert!(printed.stderr.contains(reason), "{printed:?}");
        assert_eq!(printed.stderr.lines().count(), 1, "{printed:?}");
    }
    assert!(!Path::new("/dev/null.lock").exists());
}

#[test]
fn a_file_does_not_command_the_terminal() {
    let directory = tempfile::tempdir().unwrap();
    let strange = directory.path().join("e\u{1b}[31mX\u{202e}");
    fs::create_dir(&strange).unwrap();
    let host = host(&strange, "");
    let mut check = host.up_command(&["--check"]);
    let printed = output(check.stdout(Stdio::piped()));
    assert_eq!(printed.status, 0, "{printed:?}");
    assert!(
        printed.stdout.contains("e\\u{1b}[31mX\\u{202e}/wharf.toml"),
        "{printed:?}"
    );
}
