//! What an operator is promised of `wharf up` beyond what `cells.rs` tells: what is
//! printed, when tasks start again, where their output goes, who else may ask.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, r12, r13, rdi, rsi};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use wharf_abi::hypercall::FOREVER;
use wharf_abi::{Hypercall, Interest};
use wharf_tests::command::{app, output, wharf, wharf_path};
use wharf_tests::elf::ElfBuilder;
use wharf_tests::guest::{assemble, call, exit, kvm};
use wharf_tests::host::{Host, Object, PATIENCE, objects, poll, status};

const DATA: u64 = 0x50_0000;

/// Puts an image of raw code into the directory, with `said` at [`DATA`].
fn image(
    directory: &Path,
    name: &str,
    said: &[u8],
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    let elf = ElfBuilder::guest(&assemble(write)).data(DATA, said);
    fs::write(directory.join(name), elf.build()).unwrap();
}

/// Writes the first `len` bytes at [`DATA`].
fn say(a: &mut CodeAssembler, len: u64) -> Result<(), IcedError> {
    call(a, Hypercall::ConsoleWrite, DATA, len)
}

fn for_ever(
    a: &mut CodeAssembler,
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    body(a)?;
    a.jmp(again)
}

/// The images that the files below name.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    // Ends by itself when it is told to.
    image(path, "polite", b"up\n", |a| {
        say(a, 3)?;
        call(a, Hypercall::Wait, FOREVER, Interest::STOP.bits())?;
        exit(a, 7)
    });
    // Hears that it is to end, says so, and does not.
    image(path, "deaf", b"told\n", |a| {
        call(a, Hypercall::Wait, FOREVER, Interest::STOP.bits())?;
        say(a, 5)?;
        for_ever(a, |_| Ok(()))
    });
    // Never says that it would hear.
    image(path, "waits", b"", |a| {
        for_ever(a, |a| call(a, Hypercall::Wait, FOREVER, 0))
    });
    image(path, "spins", b"", |a| for_ever(a, |_| Ok(())));
    image(path, "crashes", b"", |a| a.ud2());
    image(path, "floods", &[b'x'; 4096], |a| {
        for_ever(a, |a| say(a, 4096))
    });
    for status in [0, 1, 3] {
        image(path, &format!("exits{status}"), b"", |a| exit(a, status));
    }
    directory
}

/// A task of an image in the directory, with these further lines.
fn task(name: &str, image: &str, lines: &str) -> String {
    format!("[[task]]\nname = \"{name}\"\nimage = \"{image}\"\n{lines}\n")
}

/// A client in the background, which ends with the test.
struct Client(Child);

impl Client {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// What it prints, line by line.
    fn lines(&mut self) -> impl Iterator<Item = String> + use<> {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        lines.map(Result::unwrap)
    }

    fn status(&mut self) -> i32 {
        poll(|| status(&mut self.0)).expect("it ends")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Says aloud what is not tested here. Not `eprintln!`, which the harness swallows.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

fn seconds_between(earlier: &Object, later: &Object) -> f64 {
    let ns = later
        .number("time_ns")
        .saturating_sub(earlier.number("time_ns"));
    Duration::from_nanos(ns).as_secs_f64()
}

#[test]
fn a_detached_host_is_up_when_the_command_returns_and_down_ends_it() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let toml = task("web", "polite", "replicas = 3\nmemory = \"8MiB\"");
    let host = Host::new(directory.path(), &toml);
    let up = output(host.up_command(&["--detach"]).stdout(Stdio::piped()));
    assert_eq!((up.status, up.stderr.as_str()), (0, ""));
    let pid = host.pid().expect("it goes on");
    let socket = host.socket();
    assert_eq!(
        up.stdout,
        format!("3 replicas, pid {pid}, socket {}\n", socket.display())
    );
    assert_eq!(host.tasks().len(), 3);

    assert_eq!(host.ask(&["down"]), "");
    assert!(!socket.exists());
    assert_eq!(host.pid(), None, "it has ended");
    let again = host.try_ask(&["down"]);
    assert_eq!((again.status, again.stdout.as_str()), (125, ""));
    assert_eq!(again.stderr.lines().count(), 1, "{}", again.stderr);
    assert!(again.stderr.contains("wharf up"), "{}", again.stderr);
}

#[test]
fn ps_prints_every_field_that_was_promised() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let toml = [
        task("waits", "polite", "memory = \"8MiB\""),
        task("busy", "spins", ""),
        task("over", "exits3", "restart = \"never\""),
        task("broken", "crashes", "restart = \"never\""),
    ];
    let host = Host::up(directory.path(), &toml.concat());
    for (replica, state, status) in [
        ("waits.0", "waiting", None),
        ("busy.0", "running", None),
        ("over.0", "stopped", Some(3)),
        ("broken.0", "faulted", Some(139)),
    ] {
        let task = host.until_task(replica, |task| task.state() == state);
        assert_eq!(task.optional("exit_status"), status, "{task:?}");
        assert_eq!((task.number("index"), task.number("generation")), (0, 1));
        assert_eq!(task.number("restarts"), 0);
        assert!(task.number("run_ns") > 0, "{task:?}");
        assert!(Path::new(task.text("image")).is_file(), "{task:?}");
        let memory = if replica == "waits.0" { 8 } else { 32 };
        assert_eq!(task.number("memory_bytes"), memory << 20);
    }
    let json = host.ask(&["ps", "--json"]);
    assert!(json.starts_with('[') && json.ends_with("]\n"), "{json}");
    let table = host.ask(&["ps"]);
    let row = table.lines().find(|line| line.starts_with("broken.0 "));
    assert!(row.is_some_and(|row| row.contains("faulted")), "{table}");
}

#[test]
fn top_without_a_terminal_prints_a_table_and_ends() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let toml = task("busy", "spins", "") + &task("idle", "polite", "");
    let host = Host::up(directory.path(), &toml);
    host.until_task("busy.0", |task| task.state() == "running");
    host.until_task("idle.0", |task| task.state() == "waiting");
    let table = host.ask(&["top"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("NAME") && lines[0].contains("CPU%"),
        "{table}"
    );
    assert!(
        lines[1].starts_with("busy.0") && lines[2].starts_with("idle.0"),
        "{table}"
    );
    assert!(!table.contains('\x1b'));
    let usages = objects(&host.ask(&["top", "--json"]));
    let cpu = |usage: &Object| usage.float("cpu_percent");
    // How much it gets is up to the machine.
    assert!(cpu(&usages[0]) > 0.0, "{usages:?}");
    assert!(cpu(&usages[1]) < cpu(&usages[0]) / 4.0, "{usages:?}");
}

#[test]
fn logs_of_replicas_are_told_apart_and_followed_until_the_host_ends() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let mut host = Host::up(directory.path(), &task("web", "polite", "replicas = 2"));
    for replica in ["web.0", "web.1"] {
        host.until_task(replica, |task| task.number("console_bytes") == 3);
    }
    let all = host.ask(&["logs", "web"]);
    let mut lines: Vec<&str> = all.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["web.0 | up", "web.1 | up"]);
    assert_eq!(host.ask(&["logs", "web.1"]), "up\n");

    let mut follower = Client::start(&mut host.command(&["logs", "web.1", "-f"]));
    let mut lines = follower.lines();
    assert_eq!(lines.next().as_deref(), Some("up"));
    // Over restarts: the next generation says it anew.
    let _ = host.ask(&["restart", "web.1"]);
    assert_eq!(lines.next().as_deref(), Some("up"));
    host.signal(Signal::SIGTERM);
    assert_eq!(host.status(), 0);
    assert_eq!(lines.next(), None);
    assert_eq!(follower.status(), 0);
}

#[test]
fn a_guest_that_is_told_to_stop_has_its_time_and_no_more() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let toml = task("polite", "polite", "stop-timeout = \"1h\"")
        + &task("deaf", "deaf", "stop-timeout = \"300ms\"")
        + &task("waits", "waits", "stop-timeout = \"1h\"");
    let host = Host::up(directory.path(), &toml);
    for replica in ["polite.0", "deaf.0", "waits.0"] {
        host.until_task(replica, |task| task.state() == "waiting");
    }
    // The command returns when it is done.
    assert_eq!(host.ask(&["stop", "polite"]), "polite.0 stopped\n");
    assert_eq!(host.task("polite.0").optional("exit_status"), Some(7));
    host.until_event("polite.0", "exited", 0);

    let start = std::time::Instant::now();
    assert_eq!(host.ask(&["stop", "deaf"]), "deaf.0 stopped\n");
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(300), "{took:?}");
    assert!(took < PATIENCE, "{took:?}");
    assert_eq!(host.ask(&["logs", "deaf"]), "told\n");
    let deaf = host.task("deaf.0");
    assert_eq!(deaf.optional("exit_status"), Some(143), "{deaf:?}");
    host.until_event("deaf.0", "stopped", 0);

    // One that never said that it listens need not be waited for.
    assert_eq!(host.ask(&["stop", "waits"]), "waits.0 stopped\n");
    // Stopping what is stopped is no mistake.
    assert_eq!(host.ask(&["stop", "deaf"]), "deaf.0 stopped\n");
}

#[test]
fn a_stopped_task_is_not_started_by_its_policy_but_by_its_operator() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let toml = task("kept", "polite", "restart = \"always\"\nreplicas = 2")
        + &task("clock", "exits0", "restart = \"always\"");
    let host = Host::up(directory.path(), &toml);
    host.until_task("kept.1", |task| task.state() == "waiting");
    let _ = host.ask(&["stop", "kept.1"]);
    // It would be back by the time that another one is for the third time.
    let before = host.task("clock.0").number("restarts");
    host.until_task("clock.0", |task| task.number("restarts") >= before + 3);
    let kept = host.task("kept.1");
    assert_eq!((kept.state(), kept.number("generation")), ("stopped", 1));
    assert_eq!(host.task("kept.0").state(), "waiting", "it was not meant");

    assert_eq!(
        host.ask(&["restart", "kept"]),
        "kept.0 restarting\nkept.1 restarting\n"
    );
    for replica in ["kept.0", "kept.1"] {
        let kept = host.until_task(replica, |task| {
            task.number("generation") == 2 && task.state() == "waiting"
        });
        assert_eq!(kept.number("restarts"), 1);
    }
}

#[test]
fn a_policy_starts_again_what_it_says() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let table = [
        ("never", "exits0", false),
        ("never", "exits1", false),
        ("never", "crashes", false),
        ("on-failure", "exits0", false),
        ("on-failure", "exits1", true),
        ("on-failure", "crashes", true),
        ("always", "exits0", true),
        ("always", "exits1", true),
        ("always", "crashes", true),
    ];
    let name = |policy: &str, image: &str| format!("{policy}-{image}");
    let toml: String = table
        .iter()
        .map(|(policy, image, _)| {
            task(
                &name(policy, image),
                image,
                &format!("restart = \"{policy}\""),
            )
        })
        .collect();
    let host = Host::up(directory.path(), &toml);
    // Those that come back do so before the others are looked at.
    for wanted in [true, false] {
        for (policy, image, again) in table.iter().filter(|row| row.2 == wanted) {
            let replica = name(policy, image) + ".0";
            if *again {
                host.until_task(&replica, |task| task.number("restarts") >= 2);
            } else {
                let task = host.task(&replica);
                assert_eq!(task.number("restarts"), 0, "{task:?}");
                let state = if *image == "crashes" {
                    "faulted"
                } else {
                    "stopped"
                };
                assert_eq!(task.state(), state, "{task:?}");
            }
        }
    }
}

#[test]
fn a_crash_loop_comes_back_more_and_more_slowly() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let host = Host::up(directory.path(), &task("t", "crashes", ""));
    host.until_task("t.0", |task| task.number("restarts") >= 3);
    let events = host.events();
    let of = |kind: &str| -> Vec<Object> {
        let of_kind = events.iter().filter(|event| event.text("kind") == kind);
        of_kind.cloned().collect()
    };
    let (started, paused) = (of("started"), of("backing-off"));
    assert_eq!(paused[0].text("detail"), "starts again in 100 ms");
    assert_eq!(paused[1].text("detail"), "starts again in 200 ms");
    assert_eq!(paused[2].text("detail"), "starts again in 400 ms");
    for (at, pause) in [(0, 0.1), (1, 0.2), (2, 0.4)] {
        assert!(
            seconds_between(&started[at], &started[at + 1]) >= pause,
            "{started:?}"
        );
    }
    assert!(
        of("faulted")[0].text("detail").contains("invalid opcode"),
        "{events:?}"
    );
}

#[test]
fn a_task_that_backs_off_says_why_it_failed() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let toml = task("crashes", "crashes", "") + &task("gone", "nowhere.elf", "");
    let host = Host::up(directory.path(), &toml);
    for (replica, reason) in [("crashes.0", "invalid opcode"), ("gone.0", "nowhere.elf")] {
        let task = host.until_task(replica, |task| {
            task.state() == "starting" && task.number("restarts") >= 1
        });
        assert!(task.text("reason").contains(reason), "{task:?}");
    }
}

#[test]
fn up_says_which_tasks_cannot_be_started_and_strictly_starts_none() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    fs::write(directory.path().join("text"), "no image").unwrap();
    let good = task("good", "polite", "");
    for (image, reason) in [("nowhere.elf", "nowhere.elf"), ("text", "text")] {
        let toml = task("bad", image, "restart = \"never\"") + &good;
        let host = Host::new(directory.path(), &toml);
        let strict = output(&mut host.up_command(&["--strict"]));
        assert_eq!(strict.status, 125, "{strict:?}");
        assert_eq!(strict.stderr.lines().count(), 1, "{strict:?}");
        for word in ["bad", reason] {
            assert!(strict.stderr.contains(word), "{strict:?}");
        }
        let strict = output(&mut host.up_command(&["--strict", "--detach"]));
        assert_eq!(
            (strict.status, strict.stderr.lines().count()),
            (125, 1),
            "{strict:?}"
        );
        assert!(strict.stderr.contains(reason), "{strict:?}");
        assert!(!host.socket().exists());

        let up = output(&mut host.up_command(&["--detach"]));
        assert_eq!(up.status, 0, "{up:?}");
        assert!(
            up.stderr.contains("bad.0") && up.stderr.contains(reason),
            "{up:?}"
        );
        let bad = host.task("bad.0");
        assert_eq!(bad.state(), "faulted");
        assert!(bad.text("reason").contains(reason), "{bad:?}");
        host.until_event("bad.0", "start-failed", 0);
        host.until_task("good.0", |task| task.state() == "waiting");
        let _ = host.ask(&["down"]);
    }
}

#[test]
fn up_says_what_it_cannot_start_even_if_it_tries_again() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let toml = task("bad", "nowhere.elf", "") + &task("good", "polite", "");
    let host = Host::new(directory.path(), &toml);
    let up = output(&mut host.up_command(&["--detach"]));
    assert_eq!(up.status, 0, "{up:?}");
    assert!(
        up.stderr.contains("bad.0") && up.stderr.contains("nowhere.elf"),
        "{up:?}"
    );
    // An image that appears is found.
    fs::copy(
        directory.path().join("polite"),
        directory.path().join("nowhere.elf"),
    )
    .unwrap();
    host.until_task("bad.0", |task| task.state() == "waiting");
}

#[test]
fn ctrl_c_stops_tasks_in_reverse_order_and_a_follower_sees_it() {
    let Some(_) = kvm() else { return };
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let directory = directory();
        // Each of another kind, so that the last is the slowest and not the first.
        let toml = task("one", "waits", "")
            + &task("two", "spins", "")
            + &task("three", "deaf", "stop-timeout = \"200ms\"\nreplicas = 2");
        let mut host = Host::up(directory.path(), &toml);
        for replica in ["one.0", "three.0", "three.1"] {
            host.until_task(replica, |task| task.state() == "waiting");
        }
        host.until_task("two.0", |task| task.state() == "running");
        let mut follower = Client::start(&mut host.command(&["events", "-f", "--json"]));
        let mut lines = follower.lines();
        let first = objects(&lines.next().unwrap());
        assert_eq!(first[0].text("kind"), "up");

        host.signal(signal);
        assert_eq!(host.status(), 0);
        assert!(!host.socket().exists());
        let events: Vec<Object> = lines.flat_map(|line| objects(&line)).collect();
        assert_eq!(follower.status(), 0);
        let stopped = events
            .iter()
            .filter(|event| event.text("kind") == "stopped");
        let mut order: Vec<&str> = stopped.map(|event| event.text("task")).collect();
        order[..2].sort_unstable();
        assert_eq!(order, ["three.0", "three.1", "two.0", "one.0"]);
        assert_eq!(events.last().unwrap().text("kind"), "down");
        // The same is said where the operator sits.
        let said = host.said();
        let at = |what: &str| {
            said.find(what)
                .unwrap_or_else(|| panic!("no {what}: {said}"))
        };
        assert!(at("three.0: stopped") < at("two.0: stopped"), "{said}");
        assert!(at("two.0: stopped") < at("one.0: stopped"), "{said}");
    }
}

#[test]
fn two_versions_of_a_service_run_side_by_side() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    for (name, said) in [("web-v1", b"v1\n"), ("web-v2", b"v2\n")] {
        image(directory.path(), name, said, |a| {
            say(a, 3)?;
            call(a, Hypercall::Wait, FOREVER, 0)
        });
    }
    let toml = task("old", "web-v1", "") + &task("new", "web-v2", "");
    let host = Host::up(directory.path(), &toml);
    for (name, image, said) in [("old", "web-v1", "v1\n"), ("new", "web-v2", "v2\n")] {
        let task = host.until_task(&format!("{name}.0"), |task| task.state() == "waiting");
        assert!(task.text("image").ends_with(image), "{task:?}");
        assert_eq!(host.ask(&["logs", name]), said);
    }
}

#[test]
fn a_flood_leaves_the_timers_of_a_neighbour_alone() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let sleep = app("sleep");
    let toml = "[host]\nworkers = 1\n".to_owned()
        + &task("floods", "floods", "")
        + &task(
            "sleeps",
            sleep.to_str().unwrap(),
            "args = [\"10\", \"100\", \"1\"]",
        );
    let host = Host::up(directory.path(), &toml);
    host.until_task("sleeps.0", |task| task.state() == "stopped");
    let logs = host.ask(&["logs", "sleeps"]);
    let mut late: Vec<u64> = logs
        .lines()
        .filter_map(|line| line.split("late_us ").nth(1)?.parse().ok())
        .collect();
    assert_eq!(late.len(), 100, "{logs}");
    late.sort_unstable();
    // Not a benchmark: half of them in time is what tells it from a queue.
    assert!(late[50] < 5_000, "{late:?}");
    let flood = host.task("floods.0").number("console_bytes");
    assert!(flood > 1 << 20, "{flood} bytes were no flood");
    // Memory that the host keeps of it is bounded, as is what `logs` prints.
    assert!(host.ask(&["logs", "floods"]).len() <= 256 << 10);
}

#[test]
fn a_log_file_is_rotated_and_its_old_parts_go() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let log = "log = { file = \"web.log\", size = \"64KiB\", keep = 2 }";
    let host = Host::up(directory.path(), &task("web", "floods", log));
    host.until_task("web.0", |task| task.number("console_bytes") > 1 << 20);
    let _ = host.ask(&["down"]);
    let size = |suffix: &str| {
        let file = directory.path().join(format!("web.log{suffix}"));
        fs::metadata(file).ok().map(|metadata| metadata.len())
    };
    assert!(
        size("").is_some_and(|size| size <= 64 << 10),
        "{:?}",
        size("")
    );
    assert_eq!([size(".1"), size(".2")], [Some(64 << 10); 2]);
    assert_eq!(size(".3"), None);
}

#[test]
fn work_moves_to_a_worker_that_has_none_and_goes_on() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    // Counts aloud, so that what is lost, twice there or begun anew is seen.
    const LETTERS: &[u8; 26] = b"abcdefghijklmnopqrstuvwxyz";
    image(directory.path(), "counts", LETTERS, |a| {
        let mut round = a.create_label();
        a.set_label(&mut round)?;
        a.mov(r13, DATA)?;
        let (mut letter, mut step) = (a.create_label(), a.create_label());
        a.set_label(&mut letter)?;
        a.mov(r12, 1_000_000_u64)?;
        a.set_label(&mut step)?;
        a.dec(r12)?;
        a.jnz(step)?;
        a.mov(rdi, r13)?;
        a.mov(rsi, 1_u64)?;
        a.out(i32::from(Hypercall::ConsoleWrite.port()), al)?;
        a.inc(r13)?;
        a.cmp(r13, i32::try_from(DATA).unwrap() + 26)?;
        a.jne(letter)?;
        a.jmp(round)
    });
    let toml = "[host]\nworkers = 2\n".to_owned() + &task("busy", "counts", "replicas = 3");
    let host = Host::up(directory.path(), &toml);
    let busy = host.until("all run", || {
        let tasks = host.tasks();
        tasks
            .iter()
            .all(|task| task.number("console_bytes") > 26)
            .then_some(tasks)
    });
    let worker = |task: &Object| task.optional("worker").unwrap();
    let load = busy.iter().fold(BTreeMap::new(), |mut load, task| {
        *load.entry(worker(task)).or_insert(0) += 1;
        load
    });
    let alone = busy.iter().find(|task| load[&worker(task)] == 1).unwrap();
    let seq = host.events().last().unwrap().number("seq");
    let _ = host.ask(&["stop", &alone.replica()]);
    let moved = host.until("a move", || {
        let mut events = host.events().into_iter();
        events.find(|event| event.number("seq") > seq && event.text("kind") == "moved")
    });
    assert_eq!(moved.text("detail"), format!("to worker {}", worker(alone)));
    let replica = moved.text("task");
    // It is not running all the time, and may be on its way when the event is there.
    let there = host.until_task(replica, |task| {
        task.state() == "running" && task.optional("worker") == Some(worker(alone))
    });
    assert_eq!(there.number("generation"), 1, "it is the same");
    let before = busy.iter().find(|task| task.replica() == replica).unwrap();
    assert!(there.number("run_ns") > before.number("run_ns"));
    host.until_task(replica, |task| {
        task.number("console_bytes") > there.number("console_bytes") + 26
            && task.number("run_ns") > there.number("run_ns")
    });
    let said = host.ask(&["logs", replica]);
    let mut letters = LETTERS.iter().cycle();
    assert!(
        said.bytes().all(|byte| letters.next() == Some(&byte)),
        "{said}"
    );
    // It can be told to end where it is now.
    assert_eq!(host.ask(&["stop", replica]), format!("{replica} stopped\n"));
}

/// Those that sleep leave a worker idle while the others come up, so that some of
/// these are on their way when they are told.
#[test]
fn a_stop_reaches_a_guest_that_moves() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let toml = "[host]\nworkers = 2\n".to_owned()
        + &task("waits", "waits", "replicas = 4")
        + &task("busy", "spins", "replicas = 16");
    let mut host = Host::new(directory.path(), &toml);
    for _ in 0..40 {
        host.start();
        let (status, _) = host.http("POST", "/v1/tasks/busy/restart");
        assert_eq!(status, 202);
        host.until("the next generation", || {
            let tasks = objects(&host.http("GET", "/v1/tasks/busy").1);
            let is_next = |task: &Object| task.number("generation") == 2;
            tasks.iter().all(is_next).then_some(())
        });
        host.signal(Signal::SIGTERM);
        assert_eq!(host.status(), 0);
    }
}

#[test]
fn sixty_four_hellos_greet_and_end() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let hello = app("hello");
    let lines = "replicas = 64\nargs = [\"all\"]\nmemory = \"8MiB\"";
    let host = Host::up(
        directory.path(),
        &task("hello", hello.to_str().unwrap(), lines),
    );
    host.until("all have ended", || {
        let tasks = host.tasks();
        assert_eq!(tasks.len(), 64);
        let ended = |task: &Object| task.state() == "stopped";
        tasks.iter().all(ended).then_some(())
    });
    for task in host.tasks() {
        assert_eq!(task.optional("exit_status"), Some(0), "{task:?}");
        assert_eq!(task.number("restarts"), 0, "{task:?}");
    }
    let logs = host.ask(&["logs", "hello"]);
    assert_eq!(logs.lines().count(), 64);
    assert!(logs.contains("hello.63 | Hello, all!\n"), "{logs}");
}

#[test]
fn a_check_of_a_good_file_leaves_nothing_behind() {
    let directory = directory();
    let host = Host::new(directory.path(), &task("web", "polite", "replicas = 2"));
    let names = || {
        let entries = fs::read_dir(directory.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let check = output(host.up_command(&["--check"]).stdout(Stdio::piped()));
    assert_eq!((check.status, check.stderr.as_str()), (0, ""));
    assert!(
        check.stdout.ends_with("wharf.toml: 1 task, good\n"),
        "{}",
        check.stdout
    );
    fs::write(
        directory.path().join("wharf.toml"),
        "[[task]]\nname = \"a b\"\n",
    )
    .unwrap();
    for args in [&[][..], &["--detach"], &["--check"]] {
        let refused = output(host.up_command(args).stdout(Stdio::piped()));
        assert_eq!(
            (refused.status, refused.stdout.as_str()),
            (125, ""),
            "{args:?}"
        );
        assert!(
            refused.stderr.contains("wharf.toml:1:1: "),
            "{}",
            refused.stderr
        );
    }
    assert_eq!(names(), before);
}

#[test]
fn nobody_answers_where_no_host_is() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    for args in [
        &["ps"][..],
        &["top"],
        &["events"],
        &["down"],
        &["logs", "web"],
        &["stop", "web"],
        &["restart", "web"],
    ] {
        let refused = output(wharf(args).arg("--socket").arg(&socket));
        assert_eq!(
            (refused.status, refused.stdout.as_str()),
            (125, ""),
            "{args:?}"
        );
        assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
        assert!(refused.stderr.contains("none.sock"), "{}", refused.stderr);
    }
}

#[test]
fn curl_speaks_to_the_socket() {
    let Some(_) = kvm() else { return };
    if Command::new("curl").arg("--version").output().is_err() {
        skipped("there is no curl");
        return;
    }
    let directory = directory();
    let host = Host::up(directory.path(), &task("web", "polite", ""));
    host.until_task("web.0", |task| task.state() == "waiting");
    let curl = |args: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--max-time",
            "30",
            "--write-out",
            "%{http_code}",
        ]);
        curl.arg("--unix-socket").arg(host.socket()).args(args);
        output(&mut curl).stdout
    };
    let tasks = curl(&["http://wharf/v1/tasks"]);
    assert!(tasks.ends_with("]200"), "{tasks}");
    assert_eq!(objects(tasks.trim_end_matches("200"))[0].replica(), "web.0");
    for (args, status) in [
        (
            &["-X", "POST", "http://wharf/v1/tasks/nobody/stop"][..],
            "404",
        ),
        (&["http://wharf/v1/nonsense"], "404"),
        (&["-X", "DELETE", "http://wharf/v1/tasks"], "405"),
    ] {
        let answer = curl(args);
        assert!(
            answer.contains("\"error\"") && answer.ends_with(status),
            "{answer}"
        );
    }
    assert_eq!(host.task("web.0").state(), "waiting");
    let stopped = curl(&["-X", "POST", "http://wharf/v1/tasks/web/stop"]);
    assert!(stopped.ends_with("202"), "{stopped}");
    host.until_task("web.0", |task| task.state() == "stopped");
}

/// `cargo run` builds the program that it runs and no other: the first command of a new
/// checkout has the other one built.
#[test]
fn the_program_of_the_hosts_commands_is_built_by_the_cargo_that_runs_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("target/release");
    fs::create_dir_all(&target).unwrap();
    let program = target.join("wharf");
    fs::copy(wharf_path(), &program).unwrap();
    let cargo = directory.path().join("cargo");
    let host = wharf_path().with_file_name("wharf-host");
    let script = format!(
        "#!/bin/sh\necho \"$@\" > {}\n[ -z \"$FAILS\" ] && cp {} {}\n",
        directory.path().join("asked").display(),
        host.display(),
        target.join("wharf-host").display()
    );
    fs::write(&cargo, script).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let ps = |package: &str, fails: &str| {
        let mut command = Command::new(&program);
        command
            .args(["ps", "--socket"])
            .arg(directory.path().join("s"))
            .env("CARGO", &cargo)
            .env("CARGO_PKG_NAME", package)
            .env("CARGO_MANIFEST_DIR", "/checkout/host/wharf")
            .env("FAILS", fails);
        let printed = output(&mut command);
        (printed.status, printed.stderr)
    };
    // Not when something else of Cargo's runs it, which then says what to do.
    let (status, said) = ps("other", "");
    assert!(
        status == 125 && said.contains("cargo build --release"),
        "{said}"
    );
    let (status, said) = ps("wharf", "yes");
    assert!(status == 125 && said.contains("cannot be built"), "{said}");
    let (status, said) = ps("wharf", "");
    assert!(
        status == 125 && said.contains("no wharf is running"),
        "{said}"
    );
    let asked = fs::read_to_string(directory.path().join("asked")).unwrap();
    let expected = format!(
        "build --bin wharf-host --manifest-path /checkout/host/wharf/../../Cargo.toml \
         --target-dir {} --profile release\n",
        directory.path().join("target").display()
    );
    assert_eq!(asked, expected);
}
