//! The host in the place of another: what clients, guests, operators and disks see of it,
//! when all goes well.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wharf_tests::command::{app, output, policy};
use wharf_tests::guest::kvm;
use wharf_tests::handover::{Meanwhile, hand_over, service, spinners};
use wharf_tests::host::{Host, Object, objects, poll};
use wharf_tests::http::{Client, text};
use wharf_tests::load::Load;
use wharf_tests::net::port;

#[test]
fn guests_go_on_with_their_state_and_clients_with_their_connections() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (web, session) = (port(), port());
    let toml = service("web", &app("http"), web, "replicas = 3")
        + &service("session", &app("session"), session, "");
    let mut host = Host::up(directory.path(), &toml);
    let old = host.pid().unwrap();
    let mut clients: Vec<Client> = (0..9).map(|_| Client::of(web)).collect();
    let mut kept = Client::of(session);
    text(kept.ask("PUT", "/k/a", b"kept"));
    // One is in the middle of a request.
    kept.begin("PUT", "/k/half", 8).unwrap();
    kept.send(b"half").unwrap();
    for client in &mut clients {
        text(client.ask("GET", "/", b""));
    }
    let before = host.tasks();

    let report = hand_over(&host);
    assert_eq!(
        (report.number("guests"), report.number("connections")),
        (4, 10)
    );
    assert!(report.number("pause_median_ns") > 0);
    assert_eq!(host.status(), 0, "the old process ends in order");
    kept.send(b"half").unwrap();
    assert_eq!(kept.answer().unwrap().0, 200);
    assert_eq!(text(kept.ask("GET", "/k/a", b"")), "kept");
    assert_eq!(text(kept.ask("GET", "/k/half", b"")), "halfhalf");
    for client in &mut clients {
        text(client.ask("GET", "/", b""));
    }
    text(Client::of(web).ask("GET", "/", b""));
    for (was, is) in before.iter().zip(host.tasks()) {
        assert_eq!(is.replica(), was.replica());
        for same in ["generation", "restarts", "memory_bytes", "weight"] {
            assert_eq!(is.number(same), was.number(same), "{same}");
        }
        for more in [
            "run_ns",
            "exits",
            "connections_total",
            "received_bytes",
            "console_bytes",
        ] {
            assert!(is.number(more) >= was.number(more), "{more}: {is:?}");
        }
    }
    assert_eq!(host.task("session.0").number("connections"), 1);
    // What had happened before is known, with the same numbers.
    let events = host.events();
    let numbers: Vec<u64> = events.iter().map(|it| it.number("seq")).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let handed = events
        .iter()
        .find(|it| it.text("kind") == "handed-over")
        .unwrap();
    assert!(
        handed.text("detail").starts_with("4 guests go on"),
        "{handed:?}"
    );
    assert_eq!(
        events
            .iter()
            .filter(|it| it.text("kind") == "started")
            .count(),
        4
    );

    // What a life of a task was, its next is.
    let _ = host.ask(&["restart", "session"]);
    host.until_task("session.0", |it| {
        it.number("generation") == 2 && it.state() == "waiting"
    });
    let _ = host.ask(&["down"]);
    assert!(!host.socket().exists() && kill(old, None).is_err());
    assert!(TcpStream::connect(("127.0.0.1", web)).is_err());
}

/// 32 guests on few cores, one after the other, while all are asked.
#[test]
fn nobody_notices_who_asks_all_the_time() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let toml = service("web", &app("http"), at, "replicas = 32\nmemory = \"8MiB\"");
    let host = Host::up(directory.path(), &toml);
    host.until_started();
    let load = Load::start(at, 64, "/");
    load.until_more(500);
    for _ in 0..3 {
        let report = hand_over(&host);
        assert_eq!(report.number("guests"), 32, "{}", host.said());
        load.until_more(500);
    }
    load.end();
    for task in host.tasks() {
        assert_eq!((task.number("generation"), task.number("restarts")), (1, 0));
    }
}

/// Who connects while a guest is between two processes waits for it.
#[test]
fn who_connects_meanwhile_is_served() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let host = Host::up(directory.path(), &service("web", &app("http"), at, ""));
    text(Client::of(at).ask("GET", "/", b""));
    let meanwhile = Meanwhile::default();
    thread::scope(|scope| {
        let until = meanwhile.until();
        let asked = scope.spawn(|| {
            let mut count = 0;
            while meanwhile.goes_on() {
                let mut client = Client::connect(at).expect("somebody always listens");
                text(client.ask("GET", "/", b""));
                count += 1;
            }
            count
        });
        for _ in 0..5 {
            hand_over(&host);
        }
        drop(until);
        assert!(asked.join().unwrap() > 5);
    });
    assert_eq!(host.task("web.0").number("connection_errors"), 0);
}

#[test]
fn bytes_under_way_in_both_directions_arrive_once_and_in_order() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let echo = service("web", &app("echo"), at, "").replace(":80", ":7");
    let host = Host::up(directory.path(), &echo);
    let mut to = poll(|| TcpStream::connect(("127.0.0.1", at)).ok()).unwrap();
    to.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut from = to.try_clone().unwrap();
    let byte = |at: usize| (at.wrapping_mul(2_654_435_761) >> 13) as u8;
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let writer = thread::spawn(move || {
        let mut written = 0;
        while !is_over.load(Ordering::Relaxed) {
            let bytes: Vec<u8> = (written..written + (1 << 20)).map(byte).collect();
            to.write_all(&bytes).unwrap();
            written += bytes.len();
        }
        to.shutdown(std::net::Shutdown::Write).unwrap();
        written
    });
    let reader = thread::spawn(move || {
        let mut seen = 0;
        let mut piece = vec![0; 64 << 10];
        loop {
            let len = from.read(&mut piece).unwrap();
            if len == 0 {
                return seen;
            }
            for byte_read in &piece[..len] {
                assert_eq!(*byte_read, byte(seen), "at {seen}");
                seen += 1;
            }
        }
    });
    for _ in 0..3 {
        hand_over(&host);
    }
    over.store(true, Ordering::Relaxed);
    let written = writer.join().unwrap();
    assert_eq!(reader.join().unwrap(), written);
    assert!(written > 0);
}

#[test]
fn policies_go_along_with_their_state() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let (canary, fair) = (policy("canary"), policy("fair-share"));
    let toml = format!(
        "[policy.router]\nplugin = {canary:?}\nconfig = {{ seed = 7 }}\n\
         [policy.scheduler]\nplugin = {fair:?}\n"
    ) + &service("web", &app("http"), at, "replicas = 2");
    let host = Host::up(directory.path(), &toml);
    for _ in 0..10 {
        text(Client::of(at).ask("GET", "/", b""));
    }
    let slots = || objects(&host.ask(&["policy", "ls", "--json"]));
    let before = slots();
    hand_over(&host);
    let after = slots();
    for (was, is) in before.iter().zip(&after) {
        for same in ["slot", "plugin", "version", "digest"] {
            assert_eq!(is.text(same), was.text(same));
        }
        assert_eq!(is.number("swaps"), was.number("swaps"));
        assert!(is.number("calls") >= was.number("calls"), "{is:?}");
    }
    let router = |slots: &[Object]| {
        let found = slots.iter().find(|it| it.text("slot") == "router");
        found.unwrap().number("calls")
    };
    assert!(router(&before) >= 10);
    text(Client::of(at).ask("GET", "/", b""));
    assert!(router(&slots()) > router(&after), "it is asked here, too");
    // And it can be gone back from.
    let _ = host.ask(&["policy", "rollback", "router"]);
    text(Client::of(at).ask("GET", "/", b""));
}

#[test]
fn disks_stay_locked_and_written() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (file, cow, memory) = (port(), port(), port());
    let disk = directory.path().join("kv.img");
    let base = directory.path().join("base.img");
    let toml = service("kv", &app("kv"), file, "")
        + &format!("[[task.block]]\ndevice = \"data\"\nfile = {disk:?}\nsize = \"8MiB\"\n")
        + &service("cow", &app("kv"), cow, "")
        + &format!("[[task.block]]\ndevice = \"data\"\nfile = {base:?}\nmode = \"cow\"\n")
        + &service("memory", &app("kv"), memory, "")
        + "[[task.block]]\ndevice = \"data\"\nmode = \"memory\"\nsize = \"8MiB\"\n";
    fs::write(&base, vec![0; 8 << 20]).unwrap();
    let host = Host::up(directory.path(), &toml);
    let ports = [file, cow, memory];
    for at in ports {
        text(Client::of(at).ask("PUT", "/k/a", b"kept"));
    }
    for round in 0..2 {
        hand_over(&host);
        let key = format!("/k/{round}");
        for at in ports {
            assert_eq!(text(Client::of(at).ask("GET", "/k/a", b"")), "kept");
            text(Client::of(at).ask("PUT", &key, b"later"));
        }
    }
    // Somebody else cannot have the file, then as now.
    let other = tempfile::tempdir().unwrap();
    let printed = output(
        wharf_tests::command::wharf(["run", "--block"])
            .arg(format!("data={}", disk.display()))
            .arg(app("kv")),
    );
    assert!(printed.refusal().contains("in use"), "{}", printed.stderr);
    drop(other);
    assert!(fs::read(&base).unwrap().iter().all(|byte| *byte == 0));
    // It is this host's to open again.
    let _ = host.ask(&["restart", "kv"]);
    host.until_task("kv.0", |it| {
        it.number("generation") == 2 && it.state() == "waiting"
    });
    assert_eq!(text(Client::of(file).ask("GET", "/k/1", b"")), "later");
}

#[test]
fn what_does_not_live_and_what_was_upgraded_is_known_there_too() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let toml = service("web", &app("http"), at, "args = [\"--greeting\", \"one\"]")
        + &format!(
            "[[task]]\nname = \"once\"\nimage = {:?}\nrestart = \"never\"\n",
            app("hello")
        )
        + &format!(
            "[[task]]\nname = \"again\"\nimage = {:?}\nargs = [\"null-read\"]\n",
            app("faults")
        );
    let host = Host::up(directory.path(), &toml);
    host.until_task("once.0", |it| it.state() == "stopped");
    host.until_event("again.0", "backing-off", 0);
    let mut client = Client::of(at);
    text(client.ask("GET", "/", b""));
    let second = app("http2");
    let upgraded = host.try_ask(&["upgrade", "web", "--image", second.to_str().unwrap()]);
    assert_eq!(upgraded.status, 0, "{}", upgraded.stderr);
    let new = text(client.ask("GET", "/", b""));
    hand_over(&host);
    assert_eq!(text(client.ask("GET", "/", b"")), new);
    let once = host.task("once.0");
    assert_eq!(
        (once.state(), once.optional("exit_status")),
        ("stopped", Some(0))
    );
    assert_eq!(host.ask(&["logs", "once"]), "Hello from wharf!\n");
    let restarts = host.task("again.0").number("restarts");
    host.until_task("again.0", |it| it.number("restarts") > restarts);
    assert_eq!(host.task("web.0").number("generation"), 2);
    let back = host.try_ask(&["rollback", "web"]);
    assert_eq!(back.status, 0, "{}", back.stderr);
    assert_ne!(text(client.ask("GET", "/", b"")), new);
}

#[test]
fn clones_go_along_and_share_their_snapshot_still() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let file = directory.path().join("web.snap");
    let mut host = Host::up(directory.path(), &service("web", &app("session"), at, ""));
    text(Client::of(at).ask("PUT", "/k/a", b"kept"));
    let _ = host.ask(&["snapshot", "web", file.to_str().unwrap()]);
    let _ = host.ask(&["down"]);
    assert_eq!(host.status(), 0);
    let at = port();
    let toml =
        format!("[[task]]\nname = \"web\"\nfrom = {file:?}\nwarm = 1\npublish = [\"{at}:80\"]\n");
    let host = Host::up(directory.path(), &toml);
    let mut client = Client::of(at);
    assert_eq!(text(client.ask("GET", "/k/a", b"")), "kept");
    text(client.ask("PUT", "/k/b", b"own"));
    for _ in 0..2 {
        hand_over(&host);
        assert_eq!(text(client.ask("GET", "/k/a", b"")), "kept");
        assert_eq!(text(client.ask("GET", "/k/b", b"")), "own");
    }
    // It is frozen and cloned there as it would have been here.
    let again = directory.path().join("again.snap");
    let _ = host.ask(&["snapshot", "web", again.to_str().unwrap()]);
    let _ = host.ask(&["restart", "web"]);
    host.until_task("web.0", |it| {
        it.number("generation") == 2 && it.state() == "waiting"
    });
    assert_eq!(text(Client::of(at).ask("GET", "/k/a", b"")), "kept");
}

#[test]
fn signals_and_followers_find_the_new_process() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let mut host = Host::up(directory.path(), &service("web", &app("http"), at, ""));
    text(Client::of(at).ask("GET", "/", b""));
    let followed = directory.path().join("followed");
    let mut follower = host
        .command(&["events", "-f", "--json"])
        .stdout(fs::File::create(&followed).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let report = hand_over(&host);
    assert_eq!(host.status(), 0);
    let kinds = || {
        let told = fs::read_to_string(&followed).unwrap();
        let whole = told.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let kinds = objects(whole)
            .into_iter()
            .map(|it| it.text("kind").to_owned());
        kinds.collect::<Vec<_>>()
    };
    poll(|| kinds().contains(&"handed-over".to_owned()).then_some(())).unwrap();
    let new = Pid::from_raw(i32::try_from(report.number("pid")).unwrap());
    kill(new, Signal::SIGTERM).unwrap();
    poll(|| kinds().contains(&"down".to_owned()).then_some(())).expect("it is told of the end");
    assert!(follower.wait().unwrap().success());
    // No event is told twice.
    let told = objects(&fs::read_to_string(&followed).unwrap());
    let numbers: Vec<u64> = told.iter().map(|it| it.number("seq")).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    poll(|| (!host.socket().exists()).then_some(())).expect("the socket's file goes");
}

/// A guest that computes is taken out of its computation.
#[test]
fn a_guest_that_never_waits_goes_on_too() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let toml = spinners(4, "");
    let host = Host::up(directory.path(), &toml);
    for index in 0..4 {
        host.until_task(&format!("spin.{index}"), |it| it.number("run_ns") > 0);
    }
    let start = Instant::now();
    for _ in 0..3 {
        assert_eq!(hand_over(&host).number("guests"), 4);
    }
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
    let ran = host.task("spin.0").number("run_ns");
    host.until_task("spin.0", |it| it.number("run_ns") > ran);
    assert_eq!(host.task("spin.0").number("restarts"), 0);
}

/// What a guest says is in its log, in order, from whichever process.
#[test]
fn logs_go_where_they_went() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("sleep.log");
    let toml = format!(
        "[[task]]\nname = \"sleep\"\nimage = {:?}\nargs = [\"5\", \"1000000\", \"1\"]\n\
         [task.log]\nfile = {log:?}\n",
        app("sleep")
    );
    let host = Host::up(directory.path(), &toml);
    let lines = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    for _ in 0..3 {
        let before = lines();
        host.until("it says more", || (lines() > before + 3).then_some(()));
        hand_over(&host);
    }
    let _ = host.ask(&["stop", "sleep"]);
    let said = host.ask(&["logs", "sleep"]);
    host.until("all is written", || {
        (fs::read_to_string(&log).ok()? == said).then_some(())
    });
}
