//! Guests frozen into files, and others made of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wharf_tests::command::{Printed, app, output, policy, wharf};
use wharf_tests::guest::kvm;
use wharf_tests::host::{self, Host, objects, poll};
use wharf_tests::http::{Client, text};
use wharf_tests::net::port;

/// A host with one task, and where it is published.
fn service(directory: &Path, origin: &str, more: &str) -> (Host, u16) {
    let at = port();
    let task = format!("[[task]]\nname = \"web\"\n{origin}\npublish = [\"{at}:80\"]\n{more}\n");
    (Host::up(directory, &task), at)
}

fn snapshot(host: &Host, task: &str, file: &Path) -> Printed {
    host.try_ask(&["snapshot", task, file.to_str().unwrap(), "--json"])
}

/// A snapshot of the first version of `session`, which keeps "kept" under "a".
fn frozen(directory: &Path) -> PathBuf {
    let file = directory.join("web.snap");
    let home = tempfile::tempdir().unwrap();
    let (host, at) = service(home.path(), &format!("image = {:?}", app("session")), "");
    let mut client = Client::of(at);
    text(client.ask("PUT", "/k/a", b"kept"));
    text(client.ask("GET", "/token", b""));
    let printed = snapshot(&host, "web", &file);
    assert_eq!(printed.status, 0, "{}", printed.stderr);
    file
}

#[test]
fn a_guest_goes_on_and_its_clones_go_their_own_ways() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let image = format!("image = {:?}\nmemory = \"16MiB\"", app("session"));
    let (host, at) = service(directory.path(), &image, "");
    let mut old = Client::of(at);
    text(old.ask("PUT", "/k/a", b"kept"));
    let mut tokens = BTreeSet::from([text(old.ask("GET", "/token", b""))]);
    let file = directory.path().join("web.snap");
    let printed = snapshot(&host, "web", &file);
    assert_eq!(printed.status, 0, "{}", printed.stderr);
    let told = &objects(&format!("[{}]", printed.stdout))[0];
    assert_eq!(told.text("task"), "web.0");
    assert_eq!(told.text("file"), file.to_str().unwrap());
    assert!((64 << 10..16 << 20).contains(&told.number("memory_bytes")));
    assert!((1..1_000_000_000).contains(&told.number("pause_ns")));
    assert!(
        host.until_event("web.0", "snapshotted", 0)
            .text("detail")
            .contains("web.snap")
    );
    // It goes on, and so does its connection.
    tokens.insert(text(old.ask("GET", "/token", b"")));
    assert_eq!(text(old.ask("GET", "/k/a", b"")), "kept");
    text(old.ask("PUT", "/k/a", b"later"));

    let home = tempfile::tempdir().unwrap();
    let (clones, at) = service(home.path(), &format!("from = {file:?}"), "replicas = 3");
    for replica in ["web.0", "web.1", "web.2"] {
        clones.until_task(replica, |it| it.state() == "waiting");
    }
    let mut clients = [Client::of(at), Client::of(at), Client::of(at)];
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(text(client.ask("GET", "/k/a", b"")), "kept");
        let own = number.to_string();
        text(client.ask("PUT", "/k/a", own.as_bytes()));
    }
    // Each connection is another replica's.
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(text(client.ask("GET", "/k/a", b"")), number.to_string());
        tokens.insert(text(client.ask("GET", "/token", b"")));
    }
    assert_eq!(tokens.len(), 5, "{tokens:?}");
    for task in clones.tasks() {
        assert_eq!(task.number("memory_bytes"), 16 << 20);
        assert_eq!(task.text("image"), file.to_str().unwrap());
    }
    assert_eq!(text(old.ask("GET", "/k/a", b"")), "later");
}

#[test]
fn a_clone_is_upgraded_and_rolled_back_like_any_other() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = frozen(directory.path());
    let plugin = policy("session-formats");
    let more = format!("[policy.upgrader]\nplugin = {plugin:?}\n");
    let (host, at) = service(directory.path(), &format!("from = {file:?}"), &more);
    let mut client = Client::of(at);
    assert_eq!(text(client.ask("GET", "/version", b"")), "1");
    let second = app("session2");
    let upgraded = host.try_ask(&["upgrade", "web", "--image", second.to_str().unwrap()]);
    assert_eq!(upgraded.status, 0, "{}", upgraded.stderr);
    assert_eq!(text(client.ask("GET", "/version", b"")), "2");
    assert_eq!(text(client.ask("GET", "/k/a", b"")), "kept");
    text(client.ask("PUT", "/k/b", b"more"));
    let undone = host.try_ask(&["rollback", "web"]);
    assert_eq!(undone.status, 0, "{}", undone.stderr);
    assert_eq!(text(client.ask("GET", "/version", b"")), "1");
    assert_eq!(text(client.ask("GET", "/k/b", b"")), "more");
    // Another life is a clone again, and knows nothing of that.
    let _ = host.ask(&["restart", "web"]);
    let is_new = |it: &host::Object| it.number("generation") == 4 && it.state() == "waiting";
    host.until_task("web.0", is_new);
    let mut client = Client::of(at);
    assert_eq!(text(client.ask("GET", "/k", b"")), "a\n");
}

#[test]
fn warm_clones_are_taken_and_made_again() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = frozen(directory.path());
    let origin = format!("from = {file:?}\nwarm = 2");
    let (host, at) = service(directory.path(), &origin, "replicas = 2");
    let mut after = 0;
    for round in 0..4 {
        // Those that are kept ready are made again before long.
        thread::sleep(Duration::from_millis(500));
        for replica in ["web.0", "web.1"] {
            let _ = host.ask(&["restart", replica]);
            let started = poll(|| {
                let events = host.events();
                let mut events = events.into_iter().filter(|it| it.number("seq") > after);
                events
                    .find(|it| it.text("kind") == "started" && it.optional("generation") > Some(1))
            });
            let started = started.expect("it starts again");
            after = started.number("seq");
            let detail = started.text("detail");
            assert!(detail.ends_with(", a warm clone"), "{round}: {detail}");
        }
        assert_eq!(text(Client::of(at).ask("GET", "/k/a", b"")), "kept");
    }
    // Another snapshot of the same name is what the next life is made of.
    let home = tempfile::tempdir().unwrap();
    let (other, other_at) = service(home.path(), &format!("image = {:?}", app("session")), "");
    text(Client::of(other_at).ask("PUT", "/k/other", b""));
    assert_eq!(snapshot(&other, "web.0", &file).status, 0);
    for replica in ["web.0", "web.1"] {
        let _ = host.ask(&["restart", replica]);
    }
    let keys = || Some(text(Client::of(at).ask("GET", "/k", b"")));
    poll(|| keys().filter(|it| it == "other\n")).expect("it is made of the new one");
}

#[test]
fn one_guest_is_run_from_a_snapshot() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = frozen(directory.path());
    let at = port();
    let (published, from) = (format!("{at}:80"), file.to_str().unwrap());
    let mut child = wharf(["run", "--from", from, "--publish", &published])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(text(Client::of(at).ask("GET", "/k/a", b"")), "kept");
    kill(
        Pid::from_raw(child.id().try_into().unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    let status = poll(|| host::status(&mut child));
    assert_eq!(status, Some(143));
}

#[test]
fn no_request_fails_while_snapshots_are_taken() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (host, at) = service(
        directory.path(),
        &format!("image = {:?}", app("session")),
        "",
    );
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = || {
            let (mut client, mut answers) = (Client::of(at), 0);
            while !over.load(Ordering::Relaxed) {
                text(client.ask("GET", "/version", b""));
                answers += 1;
            }
            answers
        };
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(load)).collect();
        for number in 0..8 {
            let file = directory.path().join(format!("{number}.snap"));
            let printed = snapshot(&host, "web", &file);
            assert_eq!(printed.status, 0, "{}", printed.stderr);
        }
        over.store(true, Ordering::Relaxed);
        for client in clients {
            assert!(client.join().unwrap() > 0);
        }
    });
    // Taken in the middle of requests, it serves others.
    let home = tempfile::tempdir().unwrap();
    let file = directory.path().join("7.snap");
    let (_clones, at) = service(home.path(), &format!("from = {file:?}"), "");
    assert_eq!(text(Client::of(at).ask("GET", "/version", b"")), "1");
}

#[test]
fn what_cannot_be_frozen_or_written_is_told_and_goes_on() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let toml = format!(
        "[[task]]\nname = \"web\"\nimage = {:?}\npublish = [\"{at}:80\"]\nreplicas = 2\n",
        app("session")
    );
    let mut host = Host::new(directory.path(), &toml);
    // Blocks of 1 KiB: less than its image alone.
    host.start_after("ulimit -f 64");
    let mut client = Client::of(at);
    text(client.ask("PUT", "/k/a", b"kept"));
    let good = directory.path().join("good.snap");
    let refused = |task, file: &Path| snapshot(&host, task, file).refusal().to_owned();
    for (task, file, why) in [
        ("nope", good.as_path(), "no task is called nope"),
        ("web", &good, "web has 2 replicas: name one, such as web.0"),
        ("web.0", directory.path(), "is not a regular file"),
        ("web.0", Path::new("/dev/null"), "is not a regular file"),
        (
            "web.0",
            Path::new("/nowhere/at/all.snap"),
            "cannot write snapshot",
        ),
        ("web.0", &good, "no room for snapshot"),
    ] {
        let told = refused(task, file);
        assert!(told.contains(why), "{task} {file:?}: {told}");
    }
    assert_eq!(text(client.ask("GET", "/k/a", b"")), "kept");
    let _ = host.ask(&["stop", "web.1"]);
    let told = refused("web.1", &good);
    assert!(
        told.contains("web.1 does not run: start it first"),
        "{told}"
    );
    let leftovers: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("snap"))
        .collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
    let (status, answer) = host.post("/v1/tasks/web.0/snapshot", "{\"file\":\"web.snap\"}");
    assert_eq!(status, 400, "{answer}");
}

#[test]
fn a_guest_in_an_upgrade_is_not_frozen() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let more = "args = [\"--mute\"]\n[policy.upgrader]\nplugin = ";
    let more = format!("{more}{:?}\n", policy("session-formats"));
    let origin = format!("image = {:?}", app("session"));
    let (host, at) = service(directory.path(), &origin, &more);
    text(Client::of(at).ask("PUT", "/k/a", b"kept"));
    let second = app("session2");
    let second = second.to_str().unwrap();
    let _ = host.ask(&["upgrade", "web", "--image", second, "--no-wait"]);
    poll(|| (host.tasks().len() == 2).then_some(())).expect("both are there");
    let file = directory.path().join("web.snap");
    let told = snapshot(&host, "web", &file);
    assert!(
        told.refusal().contains("web.0: it is being upgraded"),
        "{told:?}"
    );
    assert!(!file.exists());
}

#[test]
fn a_file_that_is_no_good_snapshot_is_refused_in_one_line() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = frozen(directory.path());
    let bytes = fs::read(&file).unwrap();
    let bad = directory.path().join("bad.snap");
    let mut flipped = bytes.clone();
    let last = flipped.iter().rposition(|byte| *byte != 0).unwrap();
    flipped[last] ^= 1;
    let mut versioned = bytes.clone();
    versioned[8] = 9;
    for (bytes, why) in [
        (&bytes[..bytes.len() - 1], "copy it again or take a new one"),
        (&flipped, "its memory fails the checksum"),
        (&versioned, "of format 9"),
        (&fs::read(app("session")).unwrap(), "not a snapshot"),
        (b"".as_slice(), "has 0 bytes and should have 48"),
    ] {
        fs::write(&bad, bytes).unwrap();
        let run = output(&mut wharf(["run", "--from", bad.to_str().unwrap()]));
        let told = run.refusal();
        assert!(told.contains(why) && told.contains("bad.snap"), "{told}");
        // In a host it is the task's own trouble.
        let toml =
            format!("[[task]]\nname = \"web\"\nrestart = \"never\"\nfrom = {bad:?}\nwarm = 1\n");
        let home = tempfile::tempdir().unwrap();
        let host = Host::up(home.path(), &toml);
        let event = host.until_event("web.0", "start-failed", 0);
        assert!(event.text("detail").contains(why), "{event:?}");
        assert_eq!(host.task("web.0").state(), "faulted");
    }
    let missing = output(&mut wharf(["run", "--from", "/nowhere.snap"]));
    assert!(missing.refusal().contains("/nowhere.snap"), "{missing:?}");
    for usage in [
        ["run", "--from", "a.snap", "b.elf"].as_slice(),
        &["run", "--from", "a.snap", "--memory", "1MiB"],
        &["run", "--from", "a.snap", "--", "x"],
        &["run"],
    ] {
        assert_eq!(output(&mut wharf(usage)).status, 2, "{usage:?}");
    }
}

#[test]
fn a_disk_is_one_guests_and_not_its_clones() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("data.img");
    let block = |mode: &str| {
        format!(
            "[[task.block]]\ndevice = \"data\"\nfile = {disk:?}\nsize = \"4MiB\"\nmode = \"{mode}\"\n"
        )
    };
    let origin = format!("image = {:?}", app("kv"));
    let (host, at) = service(directory.path(), &origin, &block("rw"));
    let mut old = Client::of(at);
    let (status, _) = old.ask("PUT", "/k/a", b"kept").unwrap();
    assert!((200..300).contains(&status));
    let file = directory.path().join("kv.snap");
    let printed = snapshot(&host, "web", &file);
    assert_eq!(printed.status, 0, "{}", printed.stderr);
    let origin = format!("from = {file:?}\nrestart = \"never\"");
    // Two writers of one file are refused.
    let home = tempfile::tempdir().unwrap();
    let toml = format!("[[task]]\nname = \"web\"\n{origin}\n{}", block("rw"));
    let refused = output(&mut Host::new(home.path(), &toml).up_command(&[]));
    assert!(refused.refusal().contains("data.img"), "{refused:?}");
    // With writes of its own it goes on with what was on the disk.
    let home = tempfile::tempdir().unwrap();
    let copy = directory.path().join("copy.img");
    fs::copy(&disk, &copy).unwrap();
    let own = block("cow").replace("data.img", "copy.img");
    let (_clone, at) = service(home.path(), &origin, &own);
    let mut new = Client::of(at);
    assert_eq!(text(new.ask("GET", "/k/a", b"")), "kept");
    new.ask("PUT", "/k/b", b"own").unwrap();
    assert_eq!(text(new.ask("GET", "/k/b", b"")), "own");
    assert_eq!(text(old.ask("GET", "/k/a", b"")), "kept");
    assert_eq!(old.ask("GET", "/k/b", b"").unwrap().0, 404);
}
