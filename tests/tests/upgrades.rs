//! Another version in the place of what runs: what clients, operators and the old
//! version see of it, and of its going wrong.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use wharf_tests::command::{another_version, app, policy};
use wharf_tests::guest::kvm;
use wharf_tests::host::{Host, Object, objects, poll};
use wharf_tests::http::{Client, text};
use wharf_tests::load::Load;
use wharf_tests::net::port;
use wharf_tests::process::open_files;

/// A task that is published at a port, and what else is said of it.
fn service(image: &Path, port: u16, more: &str) -> String {
    format!("[[task]]\nname = \"web\"\nimage = {image:?}\npublish = [\"{port}:80\"]\n{more}\n")
}

fn with_plugin(slot: &str, plugin: &Path, config: &str) -> String {
    format!("[policy.{slot}]\nplugin = {plugin:?}\nconfig = {{ {config} }}\n")
}

fn upgrade(host: &Host, image: &Path) -> wharf_tests::command::Printed {
    host.try_ask(&["upgrade", "web", "--image", image.to_str().unwrap()])
}

/// Why an upgrade was refused, having changed nothing.
fn refusal(host: &Host, image: &Path) -> String {
    upgrade(host, image).refusal().to_owned()
}

#[test]
fn state_and_connections_go_over_to_the_new_version_and_back() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let (first, second) = (app("session"), app("session2"));
    let toml = with_plugin("upgrader", &policy("session-formats"), "") + &service(&first, at, "");
    let host = Host::up(directory.path(), &toml);
    let mut clients: Vec<Client> = (0..8).map(|_| Client::of(at)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        text(client.ask("PUT", &format!("/k/{number}"), b"kept"));
        assert_eq!(text(client.ask("GET", "/version", b"")), "1");
    }
    // One is in the middle of a request.
    clients[7].begin("PUT", "/k/half", 8).unwrap();
    clients[7].send(b"half").unwrap();

    let report = upgrade(&host, &second);
    assert_eq!(report.status, 0, "{}", report.stderr);
    assert!(
        report.stdout.contains("1 of 1 upgraded"),
        "{}",
        report.stdout
    );
    assert!(report.stdout.contains("8 connections"), "{}", report.stdout);
    clients[7].send(b"half").unwrap();
    assert_eq!(clients[7].answer().unwrap().0, 200);
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(text(client.ask("GET", "/version", b"")), "2");
        assert_eq!(
            text(client.ask("GET", &format!("/k/{number}"), b"")),
            "kept"
        );
        assert_eq!(text(client.ask("GET", "/k/half", b"")), "halfhalf");
    }
    let task = host.task("web.0");
    assert_eq!((task.number("generation"), task.number("restarts")), (2, 0));
    assert_eq!(task.text("image"), second.to_str().unwrap());
    assert_eq!(task.number("connections"), 8);
    assert_eq!(host.tasks().len(), 1);
    host.until_event("web.0", "upgraded", 0);

    let back = host.try_ask(&["rollback", "web"]);
    assert_eq!(back.status, 0, "{}", back.stderr);
    for client in &mut clients {
        assert_eq!(text(client.ask("GET", "/version", b"")), "1");
        assert_eq!(text(client.ask("GET", "/k/7", b"")), "kept");
    }
    // A new life of it is what was rolled back to.
    let _ = host.ask(&["restart", "web"]);
    host.until_task("web.0", |it| it.number("generation") == 4);
    assert_eq!(text(Client::of(at).ask("GET", "/version", b"")), "1");
}

#[test]
fn no_request_fails_while_versions_come_and_go() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let image = app("http");
    let toml = service(&image, at, "replicas = 2");
    let host = Host::up(directory.path(), &toml);
    let load = Load::start(at, 16, "/");
    for number in 1..=6 {
        load.until_more(500);
        let report = upgrade(&host, &another_version(directory.path(), &image, number));
        assert_eq!(report.status, 0, "{}", report.stderr);
        assert!(report.stdout.contains("2 of 2"), "{}", report.stdout);
    }
    load.until_more(500);
    assert!(load.end() > 3500);
    for replica in ["web.0", "web.1"] {
        let task = host.task(replica);
        assert_eq!(task.number("generation"), 7);
        assert_eq!(task.number("connection_errors"), 0);
    }
}

#[test]
fn a_disk_goes_over_with_what_is_on_it() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let image = app("kv");
    let disk = "[[task.block]]\ndevice = \"data\"\nfile = \"kv.img\"\nsize = \"8MiB\"";
    let host = Host::up(directory.path(), &service(&image, at, disk));
    let mut client = Client::of(at);
    for round in 1..=3 {
        text(client.ask("PUT", &format!("/k/{round}"), b"kept"));
        let report = upgrade(&host, &another_version(directory.path(), &image, round));
        assert_eq!(report.status, 0, "{}", report.stderr);
        let mut keys = String::new();
        (1..=round).for_each(|it| writeln!(keys, "{it}").unwrap());
        assert_eq!(text(client.ask("GET", "/k", b"")), keys);
    }
    // It is still one's alone.
    let other = service(&image, port(), disk).replace("web", "other");
    let apart = tempfile::tempdir().unwrap();
    let other = other.replace("kv.img", directory.path().join("kv.img").to_str().unwrap());
    let refused = Host::new(apart.path(), &other)
        .up_command(&[])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("in use"), "{said}");
    let _ = host.ask(&["restart", "web"]);
    host.until_task("web.0", |it| it.number("generation") == 5);
    let mut client = Client::of(at);
    assert_eq!(text(client.ask("GET", "/k", b"")), "1\n2\n3\n");
}

#[test]
fn what_cannot_take_over_leaves_the_old_version_as_it_was() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let (first, second) = (app("session"), app("session2"));
    let faulty = service(&first, at, "args = [\"--fault\"]");
    let toml = with_plugin("upgrader", &policy("session-formats"), "") + &faulty;
    let host = Host::up(directory.path(), &toml);
    let mut client = Client::of(at);
    text(client.ask("PUT", "/k/a", b"kept"));

    let no_image = directory.path().join("no.elf");
    fs::write(&no_image, "no image").unwrap();
    let same = refusal(&host, &first);
    assert!(same.contains("runs") && same.contains("already"), "{same}");
    assert!(refusal(&host, &no_image).contains("is refused"));
    let other = refusal(&host, &app("kv"));
    assert!(other.contains("data") && other.contains("web"), "{other}");
    let deaf = refusal(&host, &app("hello"));
    assert!(deaf.contains("stream"), "{deaf}");
    let faulted = refusal(&host, &second);
    assert!(
        faulted.contains("web.0: the new version exited with status 101"),
        "{faulted}"
    );

    assert_eq!(text(client.ask("GET", "/version", b"")), "1");
    assert_eq!(text(client.ask("GET", "/k/a", b"")), "kept");
    let task = host.task("web.0");
    assert_eq!((task.number("generation"), task.number("restarts")), (1, 0));
    assert_eq!(host.tasks().len(), 1);
    let back = host.try_ask(&["rollback", "web"]);
    assert_eq!(back.status, 125);
    assert!(
        back.stderr.contains("nothing to go back to"),
        "{}",
        back.stderr
    );
    let nobody = host.try_ask(&["upgrade", "nobody", "--image", second.to_str().unwrap()]);
    assert!(
        nobody.stderr.contains("no task is called nobody"),
        "{}",
        nobody.stderr
    );
}

#[test]
fn without_who_turns_the_state_into_the_other_format_nothing_changes() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let (first, second) = (app("session"), app("session2"));
    let host = Host::up(directory.path(), &service(&first, at, ""));
    let mut client = Client::of(at);
    text(client.ask("PUT", "/k/a", b"kept"));
    let why = refusal(&host, &second);
    assert!(
        why.contains("format 1") && why.contains("format 2"),
        "{why}"
    );
    assert_eq!(text(client.ask("GET", "/k/a", b"")), "kept");
    // The policy can be had without a restart.
    let plugin = policy("session-formats");
    let _ = host.ask(&["policy", "swap", "upgrader", plugin.to_str().unwrap()]);
    assert_eq!(upgrade(&host, &second).status, 0);
    assert_eq!(text(client.ask("GET", "/k/a", b"")), "kept");
    assert_eq!(text(client.ask("GET", "/version", b"")), "2");
}

#[test]
fn who_never_serves_is_given_up_and_can_be_stopped_meanwhile() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let (first, second) = (app("session"), app("session2"));
    let mute = service(&first, at, "args = [\"--mute\"]");
    let toml = with_plugin("upgrader", &policy("session-formats"), "") + &mute;
    let host = Host::up(directory.path(), &toml);
    let mut client = Client::of(at);
    text(client.ask("PUT", "/k/a", b"kept"));
    let image = second.to_str().unwrap();
    let _ = host.ask(&["upgrade", "web", "--image", image, "--no-wait"]);
    let is_next = |it: &wharf_tests::host::Object| it.optional("generation") == Some(2);
    poll(|| host.tasks().iter().any(is_next).then_some(())).expect("both are there");
    let twice = refusal(&host, &second);
    assert!(twice.contains("is being upgraded"), "{twice}");
    // It stands still, and whoever asks is answered in the end.
    client.begin("GET", "/k/a", 0).unwrap();
    let why = host.until_event("web.0", "upgrade-refused", 0);
    assert!(why.text("detail").contains("not ready within 10 s"));
    assert_eq!(text(client.answer()), "kept");

    let _ = host.ask(&["upgrade", "web", "--image", image, "--no-wait"]);
    poll(|| (host.tasks().len() == 2).then_some(())).expect("both are there");
    let _ = host.ask(&["stop", "web"]);
    assert_eq!(host.task("web.0").state(), "stopped");
    poll(|| (host.tasks().len() == 1).then_some(())).expect("the new one is gone");
    let down = refusal(&host, &second);
    assert!(down.contains("does not run"), "{down}");
}

#[test]
fn one_that_is_called_off_at_any_moment_leaves_nothing_behind() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let image = app("http");
    let host = Host::up(directory.path(), &service(&image, at, "replicas = 2"));
    text(Client::of(at).ask("GET", "/", b""));
    let pid = host.pid().expect("it runs");
    let before = open_files(pid);
    let images = [1, 2].map(|number| another_version(directory.path(), &image, number));
    for (round, image) in (0..24).zip(images.iter().cycle()) {
        // Without the time that a command takes to start, so that it is called off
        // once while the image is read, once while the guest is made, and so on.
        let asked = host.post("/v1/tasks/web/upgrade", &format!("{{\"image\":{image:?}}}"));
        assert_eq!(asked.0, 202, "{}", asked.1);
        thread::sleep(Duration::from_micros(500 * round));
        let (status, answer) = host.http("POST", "/v1/tasks/web/restart");
        assert_eq!(status, 202, "{answer}");
        let are_two = || host.tasks().len() == 2;
        poll(|| are_two().then_some(())).expect("no version stays beside another");
        // One that was being put in place just then was called off too late.
        let upgrades = || objects(&host.http("GET", "/v1/upgrades").1);
        poll(|| {
            upgrades()
                .iter()
                .all(|it| it.state() != "running")
                .then_some(())
        })
        .expect("it is over");
        for replica in ["web.0", "web.1"] {
            host.until_task(replica, |it| it.state() == "waiting");
        }
    }
    poll(|| (open_files(pid) <= before).then_some(())).expect("nothing is kept open");
    let rollouts = objects(&host.http("GET", "/v1/upgrades").1);
    assert_eq!(rollouts.len(), 24);
    for rollout in &rollouts {
        let whole = rollout.number("done") == rollout.number("replicas");
        let state = rollout.state();
        assert!(state != "running", "{rollout:?}");
        assert_eq!(state == "kept", whole, "{rollout:?}");
    }
    let is_called_off = |it: &Object| it.state() == "refused";
    assert!(rollouts.iter().any(is_called_off), "{rollouts:?}");
}

#[test]
fn a_canary_gets_its_share_and_the_rest_when_it_is_good() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let image = app("http");
    let config = "steps = [20, 60], period = \"1s\", connections = 0, p99-factor = 20";
    let toml = with_plugin("upgrader", &policy("canary-judge"), config) + &service(&image, at, "");
    let host = Host::up(directory.path(), &toml);
    let mut old = Client::of(at);
    text(old.ask("GET", "/", b""));
    let new_image = another_version(directory.path(), &image, 1);
    let new_image = new_image.to_str().unwrap();
    let _ = host.ask(&["upgrade", "web", "--image", new_image, "--no-wait"]);
    host.until_event("web.0", "upgrade-shared", 0);
    for _ in 0..100 {
        text(Client::of(at).ask("GET", "/", b""));
    }
    host.until_event("web.0", "upgraded", 0);
    // Both took part; who was there before is still with the old one.
    text(old.ask("GET", "/", b""));
    let tasks = host.tasks();
    let row = |generation| {
        let mut rows = tasks.iter();
        rows.find(|it| it.number("generation") == generation)
            .unwrap_or_else(|| panic!("{tasks:?}"))
    };
    assert_eq!((row(2).number("share"), row(1).number("share")), (100, 0));
    assert_eq!(row(1).text("beside"), "last");
    assert_eq!(row(1).number("connections"), 1);
    let took = row(2).number("connections_total");
    assert!((5..=60).contains(&took), "{took} of 100");
    drop(old);
    host.until_task("web.0", |it| it.number("generation") == 2);
    poll(|| (host.tasks().len() == 1).then_some(())).expect("the old one ends");
    assert_eq!(host.task("web.0").number("connections_total"), 101);
    let shared = objects(&host.ask(&["events", "--json"]));
    let shares = shared
        .iter()
        .filter(|it| it.text("kind") == "upgrade-shared");
    assert_eq!(shares.count(), 2);
}

/// Of two versions that run beside each other, an operator reaches each.
#[test]
fn either_of_two_lives_is_looked_at_and_stopped_by_its_generation() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let image = app("http");
    let config = "steps = [50], period = \"60s\"";
    let toml = with_plugin("upgrader", &policy("canary-judge"), config) + &service(&image, at, "");
    let host = Host::up(directory.path(), &toml);
    let mut old = Client::of(at);
    text(old.ask("GET", "/", b""));
    let rows = |of: &str| objects(&host.ask(&["ps", of, "--json"]));
    let refused = |args: &[&str]| {
        let printed = host.try_ask(args);
        printed.refusal().to_owned()
    };
    assert!(refused(&["stop", "web.0@2"]).contains("no task is called web.0@2"));
    assert!(refused(&["logs", "web.0@1"]).contains("a replica's"));
    let begin = |number| {
        let next = another_version(directory.path(), &image, number);
        let _ = host.ask(&[
            "upgrade",
            "web",
            "--image",
            next.to_str().unwrap(),
            "--no-wait",
        ]);
        host.until("both run", || (rows("web").len() == 2).then_some(()));
    };

    // The new one is taken back, and nobody notices.
    begin(1);
    host.until("the new one serves", || {
        let row = rows("web.0@2");
        (row.first()?.number("share") == 50).then_some(())
    });
    assert_eq!(rows("web.0@1")[0].number("generation"), 1);
    assert!(refused(&["stop", "web.0@1"]).contains("until the upgrade is through"));
    let mut new: Vec<Client> = (0..20).map(|_| Client::of(at)).collect();
    for client in &mut new {
        text(client.ask("GET", "/", b""));
    }
    assert!(rows("web.0@2")[0].number("connections") > 0);
    assert_eq!(host.ask(&["stop", "web.0@2"]), "web.0@2 stopped\n");
    assert!(refused(&["ps", "web.0@2"]).contains("no task is called"));
    text(old.ask("GET", "/", b""));
    let left = rows("web");
    assert_eq!((left.len(), left[0].number("share")), (1, 100));
    let upgrades = host.events();
    let told = upgrades
        .iter()
        .find(|it| it.text("kind") == "upgrade-rolled-back");
    assert!(
        told.is_some_and(|it| it.text("detail").contains("web.0@2 was stopped")),
        "{upgrades:?}"
    );

    // What only is that life is restarted, and another is not.
    let generation = left[0].number("generation");
    assert_eq!(generation, 1);
    assert!(refused(&["restart", "web.0@2"]).contains("no task is called"));
    let _ = host.ask(&["restart", "web.0@1"]);
    host.until_task("web.0", |it| {
        it.number("generation") > 1 && it.state() == "waiting"
    });
}
