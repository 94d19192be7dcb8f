//! The host is killed in the middle of something: what was answered lasts, files are whole,
//! and the next host goes on with them.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use wharf_tests::command::{another_version, app};
use wharf_tests::guest::kvm;
use wharf_tests::handover::service;
use wharf_tests::host::Host;
use wharf_tests::http::{Client, text};
use wharf_tests::net::port;

/// A key-value service on a disk.
fn kv(at: u16) -> String {
    service("kv", &app("kv"), at, "")
        + "[[task.block]]\ndevice = \"data\"\nfile = \"kv.img\"\nsize = \"8MiB\"\n"
}

/// Has the host killed after a moment, while it is asked for something; returns what whoever
/// asked was told.
fn killed_after(host: &mut Host, moment: Duration, args: &[&str]) -> (i32, String) {
    let its = &*host;
    let told = thread::scope(|scope| {
        let asked = scope.spawn(|| its.try_ask(args));
        thread::sleep(moment);
        its.signal(Signal::SIGKILL);
        let printed = asked.join().unwrap();
        (printed.status, printed.stderr)
    });
    // Its ports are closed when it is gone.
    let _ = host.status();
    told
}

/// Whoever asked was told the truth, in one line.
fn is_told((status, said): &(i32, String)) {
    assert!(
        *status == 0 || said.lines().count() == 1,
        "{status}: {said}"
    );
}

#[test]
fn in_an_upgrade_what_was_stored_is_there_with_the_next_host() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let mut host = Host::up(directory.path(), &kv(at));
    let next = another_version(directory.path(), &app("kv"), 2);
    let next = next.to_str().unwrap();
    let mut keys = String::new();
    for round in 0..10_u32 {
        text(Client::of(at).ask("PUT", &format!("/k/{round}"), b"kept"));
        keys.push_str(&format!("{round}\n"));
        let moment = Duration::from_micros(1_500) * round * round;
        is_told(&killed_after(
            &mut host,
            moment,
            &["upgrade", "kv", "--image", next],
        ));
        // The socket, its lock and the disk's are free again, and the disk is whole.
        host.start();
        assert_eq!(text(Client::of(at).ask("GET", "/k", b"")), keys, "{round}");
    }
    // And now it is upgraded as if nothing had been.
    let printed = host.try_ask(&["upgrade", "kv", "--image", next]);
    assert_eq!(printed.status, 0, "{}", printed.stderr);
    assert_eq!(text(Client::of(at).ask("GET", "/k", b"")), keys);
}

#[test]
fn in_a_snapshot_the_file_is_the_one_before_or_the_new_one() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let mut host = Host::up(
        directory.path(),
        &service("web", &app("session"), at, "memory = \"64MiB\""),
    );
    let file = directory.path().join("web.snap");
    let name = file.to_str().unwrap();
    let clone_port = port();
    let from =
        format!("[[task]]\nname = \"clone\"\nfrom = {file:?}\npublish = [\"{clone_port}:80\"]\n");
    let kept = |at: u16| text(Client::of(at).ask("GET", "/k/round", b""));
    let mut before = "0".to_owned();
    text(Client::of(at).ask("PUT", "/k/round", b"0"));
    let _ = host.ask(&["snapshot", "web", name]);
    for round in 1..8_u32 {
        let now = round.to_string();
        text(Client::of(at).ask("PUT", "/k/round", now.as_bytes()));
        let moment = Duration::from_millis(3) * (round - 1);
        let told = killed_after(&mut host, moment, &["snapshot", "web", name]);
        is_told(&told);
        let apart = tempfile::tempdir().unwrap();
        let clone = Host::up(apart.path(), &from);
        let found = kept(clone_port);
        let _ = clone.ask(&["down"]);
        assert!(
            found == now || (found == before && told.0 != 0),
            "{found} in {round}"
        );
        before = found;
        host.start();
    }
    // And nothing is left of what was half written.
    let names = fs::read_dir(directory.path()).unwrap();
    let half = names
        .map(|it| it.unwrap().file_name())
        .filter(|it| it.to_string_lossy().starts_with(".snapshot-"));
    assert_eq!(half.count(), 0);
}
