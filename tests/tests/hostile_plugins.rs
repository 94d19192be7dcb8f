//! Schedulers that pass every trial and then turn on a host with two guests. Each
//! test is an attack: the guests run on, the operator reads why the plugin is out,
//! and whoever was there before decides.

use std::path::Path;
use std::process::Stdio;

use wharf_tests::elf::ElfBuilder;
use wharf_tests::guest::{assemble, kvm};
use wharf_tests::host::{Host, Object};
use wharf_tests::plugin::{LOG, PluginWat};

/// The default answer: the first candidate.
const FIRST: &str = "
    (i32.store (i32.const 64) (i32.load (local.get 6)))
    (i64.store (i32.const 72) (i64.load offset=8 (local.get 6)))
    (i64.store (i32.const 80) (i64.const 0))
    (i32.const 64)";

/// A scheduler that does well for the questions of a rehearsal and of a few tenths of
/// a second, and then this.
fn later(body: &str) -> PluginWat {
    PluginWat::new("scheduler")
        .item("(global $asked (mut i32) (i32.const 0))")
        .body(
            "next",
            &format!(
                "(global.set $asked (i32.add (global.get $asked) (i32.const 1)))
                 (if (i32.gt_u (global.get $asked) (i32.const 200)) (then {body}))
                 {FIRST}"
            ),
        )
}

/// A host of one worker with two guests that never wait.
fn host(directory: &Path) -> Host {
    let spins = assemble(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(again)
    });
    std::fs::write(directory.join("spins"), ElfBuilder::guest(&spins).build()).unwrap();
    let toml = "[host]\nworkers = 1\n[[task]]\nname = \"spin\"\nimage = \"spins\"\n\
                replicas = 2\nmemory = \"4MiB\"\n";
    Host::up(directory, toml)
}

fn run_ns(host: &Host) -> Vec<u64> {
    let tasks = host.tasks();
    tasks.iter().map(|task| task.number("run_ns")).collect()
}

/// Waits until every guest has run for another 20 ms.
fn all_run_on(host: &Host) {
    let before = run_ns(host);
    host.until("all guests run", || {
        let now = run_ns(host);
        let on = |(before, now): (&u64, &u64)| now - before > 20_000_000;
        before.iter().zip(&now).all(on).then_some(())
    });
}

fn swap(host: &Host, directory: &Path, plugin: &PluginWat) {
    let path = directory.join("plugin.wasm");
    plugin.write(&path);
    let said = host.ask(&["policy", "swap", "scheduler", path.to_str().unwrap()]);
    assert!(said.contains("in place of built-in"), "{said}");
}

fn slot(host: &Host) -> Object {
    let slots = wharf_tests::host::objects(&host.ask(&["policy", "ls", "--json"]));
    slots[0].clone()
}

/// Puts the plugin in, waits until it is out, and returns the event that says why.
fn is_put_out(plugin: &PluginWat, reason: &str) {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let host = host(directory.path());
    swap(&host, directory.path(), plugin);
    let event = host.until_event("policy.scheduler", "policy-quarantined", 0);
    assert!(event.text("detail").contains(reason), "{event:?}");
    assert_eq!(slot(&host).text("state"), "quarantined");
    assert!(slot(&host).text("reason").contains(reason));
    all_run_on(&host);
    assert!(host.tasks().iter().all(|task| task.number("restarts") == 0));
}

#[test]
fn a_trap() {
    is_put_out(&later("unreachable"), "`next` trapped");
}

#[test]
fn a_loop_without_end() {
    is_put_out(&later("(loop $l (br $l))"), "`next` took longer than 1 ms");
}

#[test]
fn recursion_without_end() {
    let plugin = later("(call $deep)").item("(func $deep (call $deep))");
    is_put_out(&plugin, "`next` trapped");
}

#[test]
fn a_memory_bomb() {
    let body = "(loop $l (drop (memory.grow (i32.const 1))) (br $l))";
    is_put_out(&later(body), "`next` took longer than 1 ms");
}

#[test]
fn a_table_bomb() {
    let body = "(loop $l (drop (table.grow $t (ref.null func) (i32.const 1000))) (br $l))";
    let plugin = later(body).item("(table $t 1 funcref)");
    is_put_out(&plugin, "`next` took longer than 1 ms");
}

#[test]
fn an_answer_outside_its_memory() {
    is_put_out(&later("(return (i32.const -8))"), "`next` trapped");
}

#[test]
fn a_task_that_does_not_exist() {
    let body = "(i32.store (i32.const 64) (i32.const 4000000000)) (return (i32.const 64))";
    is_put_out(&later(body), "it chose replica 4000000000");
}

#[test]
fn a_generation_that_is_dead() {
    let body = "(i32.store (i32.const 64) (i32.load (local.get 6)))
                (i64.store (i32.const 72) (i64.const 0)) (return (i32.const 64))";
    is_put_out(&later(body), "it chose generation 0 of replica");
}

#[test]
fn a_division_by_zero() {
    let body = "(drop (i32.div_u (i32.const 1) (i32.const 0)))";
    is_put_out(&later(body), "`next` trapped");
}

/// Always chooses replica 0 when it can, which is no fault: the other one runs all
/// the same when it has waited for too long.
#[test]
fn a_favourite() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let host = host(directory.path());
    let plugin = PluginWat::new("scheduler").body(
        "next",
        "(local $at i32)
         (local.set $at (local.get 6))
         (if (i32.load (local.get $at))
           (then (local.set $at (i32.add (local.get $at) (i32.const 40)))))
         (i32.store (i32.const 64) (i32.load (local.get $at)))
         (i64.store (i32.const 72) (i64.load offset=8 (local.get $at)))
         (i64.store (i32.const 80) (i64.const -1))
         (i32.const 64)",
    );
    swap(&host, directory.path(), &plugin);
    let start = run_ns(&host);
    let end = host.until("the other one runs", || {
        let now = run_ns(&host);
        (now[1] - start[1] > 4_000_000 && now[0] - start[0] > 1_000_000_000).then_some(now)
    });
    assert!(
        end[0] - start[0] > 10 * (end[1] - start[1]),
        "it is no favourite"
    );
    assert_ne!(slot(&host).text("state"), "quarantined");
}

/// Ten lines a second are the most that anybody has to read.
#[test]
fn a_flood_of_log_lines() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let host = host(directory.path());
    let noise = "(data (i32.const 512) \"noise\")";
    let plugin = PluginWat::new("scheduler").import(LOG).item(noise).body(
        "next",
        &format!("(call $log (i32.const 3) (i32.const 512) (i32.const 5)) {FIRST}"),
    );
    let begin = std::time::Instant::now();
    swap(&host, directory.path(), &plugin);
    host.until("many questions", || {
        (slot(&host).number("calls") > 500).then_some(())
    });
    let seconds = begin.elapsed().as_secs() + 2;
    let lines = host
        .said()
        .matches("scheduler: hand-made 1.0.0: noise")
        .count();
    assert!(lines > 0, "what it says is told: {}", host.said());
    // Its trials are instances of their own, each with a first second.
    let most = usize::try_from(seconds * 11 + 30).unwrap();
    assert!(lines <= most, "{lines} lines in {seconds} s");
    all_run_on(&host);
}

/// Fails again whenever it is tried again: the pauses grow, and nobody waits.
#[test]
fn one_that_never_learns_is_asked_less_and_less() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let host = host(directory.path());
    swap(&host, directory.path(), &later("unreachable"));
    let first = host.until_event("policy.scheduler", "policy-quarantined", 0);
    let restored = host.until_event("policy.scheduler", "policy-restored", first.number("seq"));
    let second = host.until_event(
        "policy.scheduler",
        "policy-quarantined",
        restored.number("seq"),
    );
    assert!(first.text("detail").ends_with("tried again in 1 s"));
    assert!(second.text("detail").ends_with("tried again in 2 s"));
    all_run_on(&host);
}

/// What was in force before decides again at once, with the state it had.
#[test]
fn a_good_plugin_comes_back_when_its_successor_fails() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let host = host(directory.path());
    let good = PluginWat::new("scheduler").identity("good", "1.0.0");
    swap(&host, directory.path(), &good);
    host.until_event("policy.scheduler", "policy-confirmed", 0);
    let path = directory.path().join("bad.wasm");
    later("unreachable").identity("bad", "1.0.0").write(&path);
    let said = host.ask(&["policy", "swap", "scheduler", path.to_str().unwrap()]);
    assert!(said.contains("bad 1.0.0 in place of good 1.0.0"), "{said}");
    let event = host.until_event("policy.scheduler", "policy-rolled-back", 0);
    assert!(
        event.text("detail").contains("good 1.0.0 is back"),
        "{event:?}"
    );
    assert_eq!(slot(&host).text("plugin"), "good");
    assert_eq!(slot(&host).text("state"), "active");
    all_run_on(&host);
}

/// Refused while guests run: nothing changes for them, and the operator is told.
#[test]
fn what_is_refused_does_not_disturb() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let host = host(directory.path());
    let path = directory.path().join("bad.wasm");
    let path_text = path.to_str().unwrap();
    for (bytes, reason) in [
        (b"\0asm\x01\0\0\0".to_vec(), "core WebAssembly module"),
        (vec![0xa5; 10_000], "no WebAssembly component"),
        (
            PluginWat::new("router").component(),
            "is no scheduler: it exports router",
        ),
        (
            PluginWat::new("scheduler")
                .body("describe", "(loop $l (br $l)) (i32.const 0)")
                .component(),
            "`describe` took longer than 1000 ms",
        ),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let printed = host.try_ask(&["policy", "swap", "scheduler", path_text]);
        assert_eq!(printed.status, 125);
        assert!(printed.stderr.contains(reason), "{}", printed.stderr);
        assert_eq!(printed.stderr.lines().count(), 1);
        all_run_on(&host);
    }
    assert_eq!(slot(&host).text("state"), "built-in");
    for bad in ["{}", "x", "{\"plugin\":\"relative.wasm\"}", "{\"plug\":1}"] {
        let (status, _) = host.post("/v1/policies/scheduler/swap", bad);
        assert_eq!(status, 400, "{bad}");
    }
    let (status, _) = host.post("/v1/policies/nothing/swap", "{}");
    assert_eq!(status, 404);
    let (status, body) = host.post("/v1/policies/scheduler/rollback", "");
    assert_eq!(status, 409, "{body}");
}

/// Nobody asks the upgrader here, so that the shadow would wait for a minute.
#[test]
fn a_shadow_ends_with_the_client_that_wants_it() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let host = host(directory.path());
    let path = directory.path().join("plugin.wasm");
    PluginWat::new("upgrader").write(&path);
    let path = path.to_str().unwrap();
    let pid = host.pid().unwrap();
    let changes = || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let name = |it: std::fs::DirEntry| std::fs::read_to_string(it.path().join("comm")).ok();
        threads
            .filter_map(|it| name(it.ok()?))
            .filter(|name| name == "policy change\n")
            .count()
    };
    // Threads that compile are called after the one that wanted something compiled
    // first, and stay.
    let _ = host.ask(&["policy", "swap", "upgrader", "--dry-run", path]);
    let before = host.until("it has been tried", || {
        let count = changes();
        // The thread that has just answered has yet to end.
        std::thread::sleep(std::time::Duration::from_millis(100));
        (count == changes()).then_some(count)
    });
    let mut swap = host.command(&["policy", "swap", "upgrader", "--shadow", "1", path]);
    let mut client = swap.stderr(Stdio::null()).spawn().unwrap();
    host.until("it is tried", || (changes() > before).then_some(()));
    client.kill().unwrap();
    client.wait().unwrap();
    host.until("it is given up", || (changes() <= before).then_some(()));
    let slots = wharf_tests::host::objects(&host.ask(&["policy", "ls", "--json"]));
    assert!(slots.iter().all(|slot| slot.state() == "built-in"));
}

/// Both guests are busy, so that a question is always there.
#[test]
fn a_shadow_ends_in_time_however_much_is_asked() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let host = host(directory.path());
    let path = directory.path().join("plugin.wasm");
    PluginWat::new("scheduler").write(&path);
    let start = std::time::Instant::now();
    let mut swap = host.command(&["policy", "swap", "scheduler", "--shadow", "1000000"]);
    let printed = wharf_tests::command::output(swap.arg("--within").arg("1s").arg(&path));
    assert_eq!(printed.status, 125, "{printed:?}");
    let reason = "of 1000000 questions came within 1 s: nothing was changed";
    assert!(printed.stderr.contains(reason), "{printed:?}");
    // The rest is for compiling it.
    assert!(start.elapsed() < wharf_tests::host::PATIENCE);
    all_run_on(&host);
}
