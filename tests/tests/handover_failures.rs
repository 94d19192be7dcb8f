//! The host that is not put in the place of another: because the other is none, dies or
//! refuses, or because something else is going on. Everything goes on where it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wharf_tests::command::{app, output, policy};
use wharf_tests::guest::kvm;
use wharf_tests::handover::{
    Meanwhile, hand_over, router, service, spinners, try_program, wrapper,
};
use wharf_tests::host::{Host, poll, poll_for};
use wharf_tests::http::{Client, text};
use wharf_tests::load::Load;
use wharf_tests::net::port;
use wharf_tests::process::open_files;

/// Whatever the program does instead, everything goes on, and it is said in one line.
#[test]
fn a_program_that_is_no_host_changes_nothing() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let toml = service("web", &app("http"), at, "replicas = 3");
    let host = Host::up(directory.path(), &toml);
    let pid = host.pid();
    let load = Load::thinking(at, 6, "/", Duration::from_millis(2));
    load.until_more(100);
    let files = open_files(pid.unwrap());
    let wrapped = |name: &str, script: &str| wrapper(directory.path(), name, script);
    let unusable = directory.path().join("wharf.toml");
    let mut failed = 0;
    for (program, why) in [
        (
            PathBuf::from("/bin/true"),
            "ended (exit status: 0): is it a",
        ),
        (wrapped("dead", "kill -9 $$"), "ended (signal: 9"),
        (unusable, "cannot start"),
        (directory.path().to_owned(), "cannot start"),
        // Writes back what it reads.
        (PathBuf::from("/bin/cat"), "has ended"),
        (
            wrapped("garbage", "head -c 65536 /dev/zero >&0; cat >/dev/null"),
            "not",
        ),
        (
            wrapped(
                "huge",
                "printf '\\377\\377\\377\\377\\377\\377\\377\\377%016d' 0 >&0; cat >/dev/null",
            ),
            "no message",
        ),
        (
            wrapped(
                "other",
                "printf '\\050\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0{\"hello\":{\"format\":999,\"version\":\"9.0\"}}' >&0; cat >/dev/null",
            ),
            "format 999",
        ),
        // Could not be ended with its guests.
        (wrapped("parent", "$host \"$@\"; true"), "has to become it"),
        // Cannot open what is passed to it.
        (wrapped("poor", "ulimit -n 24; exec $host \"$@\""), ""),
        // Has no memory for a guest.
        (wrapped("small", "ulimit -v 200000; exec $host \"$@\""), ""),
    ] {
        let printed = try_program(&host, &program);
        let refusal = printed.refusal();
        assert!(refusal.contains(why), "{program:?}: {refusal}");
        assert_eq!(host.pid(), pid, "{program:?}");
        load.until_more(100);
        failed += 1;
        let events = host.events();
        let kinds = events.iter().map(|it| it.text("kind"));
        let told = kinds.filter(|it| *it == "handover-failed").count();
        assert_eq!(told, failed, "{program:?}: {events:?}");
    }
    for refused in [
        host.post("/v1/handover", "{}").0,
        host.post("/v1/handover", "{\"program\":\"relative\"}").0,
        host.post("/v1/handover", "{\"program\":\"/bin/true\",\"more\":1}")
            .0,
    ] {
        assert_eq!(refused, 400);
    }
    assert!(
        try_program(&host, Path::new("/no/such"))
            .refusal()
            .contains("cannot find")
    );
    for task in host.tasks() {
        assert_eq!((task.number("generation"), task.number("restarts")), (1, 0));
    }
    // Machines take a moment to be closed, and clients of the load come and go.
    host.until("nothing is left open", || {
        (open_files(pid.unwrap()) <= files + 2).then_some(())
    });
    // And then to one that is.
    hand_over(&host);
    load.until_more(100);
    load.end();
}

/// The new process dies at some moment. Whoever has a guest by then, the service comes
/// back, and what the new one did not have goes on as it was.
#[test]
fn a_process_that_dies_in_the_middle_takes_no_more_with_it_than_it_had() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let toml = service("web", &app("http"), at, "replicas = 16\nmemory = \"8MiB\"");
    let host = Host::up(directory.path(), &toml);
    host.until_started();
    let mut outcomes = [0, 0];
    for round in 0..12_u32 {
        let pause = f64::from(round) * 0.006;
        let script = format!("(sleep {pause:.3}; kill -9 $$) & exec $host \"$@\"");
        let program = wrapper(directory.path(), "dying", &script);
        let pid = host.pid();
        let printed = try_program(&host, &program);
        match printed.status {
            // It was faster: the host has died with it, as any that is killed.
            0 => {
                outcomes[0] += 1;
                break;
            }
            _ => {
                outcomes[1] += 1;
                assert_eq!(host.pid(), pid, "{}", host.said());
                assert!(!printed.refusal().is_empty());
            }
        }
        host.until("all serve again", || {
            host.tasks()
                .iter()
                .all(|it| it.state() == "waiting")
                .then_some(())
        });
        text(Client::of(at).ask("GET", "/", b""));
    }
    assert!(outcomes[1] > 0, "{outcomes:?}");
}

#[test]
fn what_cannot_be_handed_over_now_is_refused() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let green = policy("blue-green");
    let toml =
        format!("[policy.upgrader]\nplugin = {green:?}\n") + &service("web", &app("http"), at, "");
    let host = Host::up(directory.path(), &toml);
    let mut client = Client::of(at);
    text(client.ask("GET", "/", b""));
    // Both versions run for as long as this connection lasts.
    let second = app("http2");
    let image = second.to_str().unwrap();
    let _ = host.ask(&["upgrade", "web", "--no-wait", "--image", image]);
    host.until("both run", || (host.tasks().len() == 2).then_some(()));
    let refused = host.try_ask(&["handover"]);
    assert!(
        refused.refusal().contains("being upgraded"),
        "{}",
        refused.stderr
    );
    drop(client);
    host.until("the old one has gone", || {
        (host.tasks().len() == 1).then_some(())
    });
    let handed = host.until("it is over", || {
        let printed = host.try_ask(&["handover"]);
        (printed.status == 0).then_some(printed)
    });
    assert!(
        handed.stdout.contains("is the host: 1 guests"),
        "{}",
        handed.stdout
    );
}

/// The new process has some guests when it finds that it cannot go on: they come back, with
/// their connections.
#[test]
fn who_refuses_in_the_middle_gives_back_what_it_has() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let ports = [port(), port()];
    let toml = service("few", &app("session"), ports[0], "")
        + &service("many", &app("session"), ports[1], "");
    let host = Host::up(directory.path(), &toml);
    let pid = host.pid();
    let clients = |at: u16, count: usize| -> Vec<Client> {
        let mut clients: Vec<Client> = (0..count).map(|_| Client::of(at)).collect();
        for client in &mut clients {
            text(client.ask("PUT", "/k/a", b"kept"));
        }
        clients
    };
    let mut clients = [clients(ports[0], 5), clients(ports[1], 200)];
    let wrapped = |name: &str, script: &str| wrapper(directory.path(), name, script);
    for (program, why) in [
        // The second guest has more sockets than it may open.
        (
            wrapped("poor", "ulimit -n 150; exec $host \"$@\""),
            "raise `ulimit -n`",
        ),
        // It may write to no file, as it has to in the end.
        (
            wrapped("unable", "trap '' XFSZ; ulimit -f 0; exec $host \"$@\""),
            "too large",
        ),
    ] {
        let refusal = try_program(&host, &program).refusal().to_owned();
        assert!(refusal.contains(why), "{program:?}: {refusal}");
        assert!(!refusal.contains("lost"), "{refusal}");
        assert_eq!(host.pid(), pid);
        for client in clients.iter_mut().flatten() {
            assert_eq!(text(client.ask("GET", "/k/a", b"")), "kept");
        }
        for task in host.tasks() {
            assert_eq!((task.number("generation"), task.number("restarts")), (1, 0));
            assert_eq!(task.number("connection_errors"), 0);
        }
        text(Client::of(ports[0]).ask("GET", "/k/a", b""));
    }
    hand_over(&host);
    for client in clients.iter_mut().flatten() {
        assert_eq!(text(client.ask("GET", "/k/a", b"")), "kept");
    }
}

/// However long the new process takes to start, this one serves everybody until guests go.
#[test]
fn everything_goes_on_while_another_process_gets_ready() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let toml = service("web", &app("http"), at, "replicas = 2")
        + &format!("[[task]]\nname = \"other\"\nimage = {:?}\n", app("http"));
    let host = Host::up(directory.path(), &toml);
    text(Client::of(at).ask("GET", "/", b""));
    let slow = wrapper(directory.path(), "slow", "sleep 3; exec $host \"$@\"");
    thread::scope(|scope| {
        let start = Instant::now();
        let handed = scope.spawn(|| try_program(&host, &slow));
        thread::sleep(Duration::from_millis(300));
        let refused = host.try_ask(&["handover"]);
        assert!(
            refused.refusal().contains("handed over already"),
            "{}",
            refused.stderr
        );
        let _ = host.ask(&["restart", "web.1"]);
        host.until_task("web.1", |it| it.number("generation") == 2);
        let _ = host.ask(&["stop", "other"]);
        host.until_task("other.0", |it| it.state() == "stopped");
        let canary = policy("canary");
        let _ = host.ask(&["policy", "swap", "router", canary.to_str().unwrap()]);
        text(Client::of(at).ask("GET", "/", b""));
        assert!(start.elapsed() < Duration::from_secs(3), "nothing waits");
        let handed = handed.join().unwrap();
        assert_eq!(handed.status, 0, "{}", handed.stderr);
    });
    assert_eq!(host.task("web.1").number("generation"), 2);
    assert_eq!(host.task("other.0").state(), "stopped");
    assert_eq!(router(&host).text("plugin"), "canary");
    text(Client::of(at).ask("GET", "/", b""));
}

/// What an operator is told is done is done, in whichever process.
#[test]
fn nothing_that_was_done_meanwhile_is_lost() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let toml = service("web", &app("http"), at, "replicas = 4")
        // Who is told to end and does not listen is over at its next turn.
        + &spinners(4, "");
    let host = Host::up(directory.path(), &toml);
    host.until_started();
    let meanwhile = Meanwhile::default();
    let swaps = AtomicU32::new(0);
    thread::scope(|scope| {
        let until = meanwhile.until();
        scope.spawn(|| {
            let canary = policy("canary");
            while meanwhile.goes_on() {
                let done = swaps.load(Ordering::Relaxed);
                let (plugin, name) = [
                    (canary.as_path(), "canary"),
                    (Path::new("built-in"), "built-in"),
                ][usize::from(done % 2 == 1)];
                let printed = host.try_ask(&["policy", "swap", "router", plugin.to_str().unwrap()]);
                assert_eq!(printed.status, 0, "{}", printed.stderr);
                assert_eq!(router(&host).text("plugin"), name, "{}", host.said());
                swaps.store(done + 1, Ordering::Relaxed);
            }
        });
        let restarted = scope.spawn(|| {
            let mut generation = 1;
            while meanwhile.goes_on() {
                generation += 1;
                for (task, wanted) in [("web.3", "waiting"), ("spin.3", "ready running")] {
                    let _ = host.ask(&["restart", task]);
                    host.until_task(task, |it| {
                        assert!(it.number("generation") <= generation, "{it:?}");
                        it.number("generation") == generation && wanted.contains(it.state())
                    });
                }
            }
            generation
        });
        let mut handed = 0;
        while handed < 8 || swaps.load(Ordering::Relaxed) < 3 {
            hand_over(&host);
            handed += 1;
            assert!(handed < 100, "swaps are not made at all");
        }
        drop(until);
        assert_eq!(
            host.task("web.3").number("generation"),
            restarted.join().unwrap()
        );
    });
}

/// Whoever hears it: a host that is told to end ends.
#[test]
fn a_signal_in_the_middle_ends_the_host_wherever_it_is() {
    let Some(_) = kvm() else { return };
    let mut was_heard = 0;
    for round in 0..8_u64 {
        let directory = tempfile::tempdir().unwrap();
        let at = port();
        let toml = service("web", &app("http"), at, "replicas = 8\nmemory = \"8MiB\"");
        let mut host = Host::up(directory.path(), &toml);
        host.until_started();
        let old = host.pid().unwrap();
        let printed = thread::scope(|scope| {
            let handed = scope.spawn(|| host.try_ask(&["handover"]));
            thread::sleep(Duration::from_millis(4 * round));
            kill(old, Signal::SIGTERM).unwrap();
            handed.join().unwrap()
        });
        assert_eq!(host.status(), 0, "{}", host.said());
        let mut has_ended = || (!host.socket().exists()).then_some(());
        let said = || panic!("{}{}", printed.stdout, host.said());
        match poll_for(Duration::from_secs(3), &mut has_ended) {
            Some(()) => was_heard += 1,
            // It was for a process that had nothing to do any more.
            None => {
                assert_eq!(printed.status, 0, "{}", printed.stderr);
                host.signal(Signal::SIGTERM);
                poll(has_ended).unwrap_or_else(said);
            }
        }
        assert!(Client::connect(at).is_err());
    }
    assert!(was_heard >= 3, "{was_heard} of 8");
}

/// Guests that computed, and so moved between workers, come back to where they are told to
/// end.
#[test]
fn who_has_come_back_can_be_stopped_still() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let toml = spinners(7, "") + &service("many", &app("session"), at, "");
    let mut host = Host::up(directory.path(), &toml);
    let mut clients: Vec<Client> = (0..200).map(|_| Client::of(at)).collect();
    for client in &mut clients {
        text(client.ask("PUT", "/k/a", b"kept"));
    }
    // All the others have gone when this one turns out to have too many sockets.
    let poor = wrapper(directory.path(), "poor", "ulimit -n 150; exec $host \"$@\"");
    for _ in 0..6 {
        let printed = try_program(&host, &poor);
        assert!(
            printed.refusal().contains("ulimit -n"),
            "{}",
            printed.stderr
        );
    }
    for client in &mut clients {
        assert_eq!(text(client.ask("GET", "/k/a", b"")), "kept");
    }
    for index in 0..7 {
        let name = format!("spin.{index}");
        assert_eq!(host.ask(&["stop", &name]), format!("{name} stopped\n"));
    }
    let _ = host.ask(&["down"]);
    assert_eq!(host.status(), 0);
}

/// Whoever is to go on and does not: with this host it ends.
#[test]
fn nobody_is_left_behind_who_was_to_go_on() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::up(directory.path(), &service("web", &app("http"), port(), ""));
    let pid = directory.path().join("pid");
    let script = format!("echo $$ > {}; exec sleep 1000", pid.display());
    let hangs = wrapper(directory.path(), "hangs", &script);
    let process = thread::scope(|scope| {
        let asked = scope.spawn(|| try_program(&host, &hangs));
        let process = poll(|| fs::read_to_string(&pid).ok()?.trim().parse().ok());
        let _ = host.ask(&["down"]);
        assert!(!asked.join().unwrap().refusal().is_empty());
        Pid::from_raw(process.expect("it runs"))
    });
    assert_eq!(host.status(), 0);
    assert!(kill(process, None).is_err(), "{process} runs still");
}

/// The new process stops, or dies with a child that keeps its end of the link, while guests
/// move: nobody waits for it longer than a moment when this host is to end, or it has.
#[test]
fn a_process_that_stops_in_the_middle_does_not_keep_the_host_from_ending() {
    let Some(_) = kvm() else { return };
    for (script, ends) in [
        ("(sleep 0.2; kill -STOP $$) & exec $host \"$@\"", false),
        (
            "exec 9<&0; sleep 30 <&9 & exec 9<&-; (sleep 0.2; kill -9 $$) & exec $host \"$@\"",
            true,
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        // Guests that compute make moves slow.
        let toml = spinners(60, "memory = \"8MiB\"");
        let mut host = Host::up(directory.path(), &toml);
        host.until_started();
        let program = wrapper(directory.path(), "stops", script);
        let start = Instant::now();
        let pid = host.pid().unwrap();
        let end = || {
            if host.pid() == Some(pid) {
                host.signal(Signal::SIGTERM);
            } else {
                let _ = host.ask(&["down"]);
            }
        };
        thread::scope(|scope| {
            let asked = scope.spawn(|| try_program(&host, &program));
            if ends {
                let _ = asked.join().unwrap();
            } else {
                thread::sleep(Duration::from_secs(1));
            }
            end();
        });
        assert_eq!(host.status(), 0, "{}", host.said());
        assert!(
            start.elapsed() < Duration::from_secs(25),
            "{:?} {ends}: {}",
            start.elapsed(),
            host.said()
        );
    }
}

/// The process that has handed over may have something to do still: the next host does not
/// wait for that.
#[test]
fn what_was_handed_over_can_be_ended_and_started_again_at_once() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let toml = service(
        "web",
        &app("http"),
        port(),
        "replicas = 8\nmemory = \"8MiB\"",
    );
    for _ in 0..5 {
        let host = Host::new(directory.path(), &toml);
        let up = output(&mut host.up_command(&["-d"]));
        assert_eq!(up.status, 0, "{}", up.stderr);
        hand_over(&host);
        let _ = host.ask(&["down"]);
    }
}
