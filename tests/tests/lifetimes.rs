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
