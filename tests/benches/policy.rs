//! Policies: what a decision costs, what a swap costs those who ask meanwhile, and
//! what a plugin's first use costs.
//!
//! `cargo bench --bench policy` prints figures with the goal of each, and
//! `cargo bench --bench policy -- decisions swaps` some of them. Where something is
//! compared, both are measured in turn in one run. Nothing here fails on a slow
//! machine.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use iced_x86::code_asm::CodeAssembler;
use wharf_model::policy::{
    Candidate, Connection, Direction, Endpoint, Question, SlotName, Target, View, built_in,
};
use wharf_policy::{Plugin, SlotConfig, Slots, SwapOptions, TaskFacts};
use wharf_tests::bench::{measure, percentile, row};
use wharf_tests::command::policy;
use wharf_tests::elf::ElfBuilder;
use wharf_tests::guest::{assemble, kvm};
use wharf_tests::host::Host;
use wharf_tests::plugin::PluginWat;

fn main() {
    let figures: [(&str, &dyn Fn()); 4] = [
        ("decisions", &decisions),
        ("swaps", &swaps),
        ("live", &live_swap),
        ("first", &first_use),
    ];
    measure(&figures);
}

fn ns(ns: u64) -> String {
    format!("{ns} ns")
}

fn ratio(ours: u64, theirs: u64) -> f64 {
    ours as f64 / theirs as f64
}

fn slots() -> Arc<Slots> {
    let task = |index| TaskFacts {
        name: "web".to_owned(),
        index,
        weight: 100,
        labels: Vec::new(),
    };
    Slots::new((0..8).map(task).collect(), SlotConfig::of, None, |_| {})
}

fn view() -> Question {
    let candidate = |replica: u32| Candidate {
        replica,
        weight: 100,
        generation: 1,
        ran: 1_000_000,
        virtual_time: u64::from(replica),
        ready_since: 1,
    };
    Question::Next(View {
        now: 1_000,
        worker: 0,
        last: None,
        ready: (0..8).map(candidate).collect(),
    })
}

fn connection() -> Question {
    let target = |replica| Target {
        replica,
        connections: 0,
        generation: 1,
    };
    Question::Connect(Connection {
        now: 1_000,
        lot: 5,
        direction: Direction::Inbound,
        from_replica: None,
        source: Endpoint {
            high: 0,
            low: 0xffff_7f00_0001,
            port: 40_000,
        },
        destination: Endpoint {
            high: 0,
            low: 0xffff_7f00_0001,
            port: 80,
        },
        targets: (0..4).map(target).collect(),
    })
}

/// What a decision costs through the slot, beside what is built in: percentiles of
/// many, each timed by itself.
fn decisions() {
    for (what, slot, name, question, goals) in [
        (
            "scheduler, 8 ready tasks, fair-share",
            SlotName::Scheduler,
            "fair-share",
            view(),
            ["<= 1000 ns", "<= 3000 ns"],
        ),
        (
            "scheduler, 8 ready tasks, round-robin",
            SlotName::Scheduler,
            "round-robin",
            view(),
            ["<= 1000 ns", "<= 3000 ns"],
        ),
        (
            "router, 4 targets, canary",
            SlotName::Router,
            "canary",
            connection(),
            ["<= 500 ns", "-"],
        ),
        (
            "router, 4 targets, allow-list",
            SlotName::Router,
            "allow-list",
            connection(),
            ["<= 500 ns", "-"],
        ),
    ] {
        let slots = slots();
        let slot = slots.slot(slot);
        let component = slots.open(&policy(name)).expect("it is a plugin");
        slot.swap(&component, &SwapOptions::default())
            .expect("it is good");
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            time_each(1_000, &mut ours, || slot.ask(&question));
            time_each(1_000, &mut theirs, || built_in(&question));
        }
        assert_eq!(slot.status().strikes, 0, "it answers");
        for (percent, goal) in [50, 99].into_iter().zip(goals) {
            let (ours, theirs) = (
                percentile(ours.clone(), percent),
                percentile(theirs.clone(), percent),
            );
            row(
                &format!("{what}, p{percent}"),
                &ns(ours),
                &ns(theirs),
                ratio(ours, theirs),
                goal,
            );
        }
    }
}

fn time_each<T>(rounds: usize, times: &mut Vec<u64>, mut work: impl FnMut() -> T) {
    for _ in 0..rounds {
        let start = Instant::now();
        std::hint::black_box(work());
        times.push(nanoseconds(start.elapsed()));
    }
}

/// A scheduler with so much state: it hands its bytes over and takes them in.
fn stateful(version: &str, len: u32) -> PluginWat {
    PluginWat::new("scheduler")
        .identity("stateful", version)
        .schemas(1, 1)
        .item("(func $room (drop (memory.grow (i32.const 5)))) (start $room)")
        .body(
            "save",
            &format!(
                "(i32.store (i32.const 64) (i32.const 0x40000))
                 (i32.store (i32.const 68) (i32.const {len})) (i32.const 64)"
            ),
        )
        .body(
            "restore",
            "(memory.copy (i32.const 0x40000) (local.get 1) (local.get 2)) (i32.const 0)",
        )
}

/// The longest that a caller in a tight loop waits around each of many swaps, beside
/// the longest that it waits in as long a time without one, and for how long the swap
/// holds the slot.
fn swaps() {
    const SWAPS: usize = 300;
    for (what, len, goal) in [
        ("64 B of state", 64, "<= 50000 ns"),
        ("64 KiB of state", 64 << 10, "<= 100000 ns"),
    ] {
        let slots = slots();
        let directory = tempfile::tempdir().unwrap();
        let versions = ["1.0.0", "2.0.0"].map(|version| {
            let path = directory.path().join(version);
            stateful(version, len).write(&path);
            slots.open(&path).expect("it is a plugin")
        });
        let Around {
            quiet,
            worst,
            pauses,
        } = around_swaps(&slots, &versions, SWAPS);
        for percent in [50, 99] {
            let (ours, theirs) = (
                percentile(worst.clone(), percent),
                percentile(quiet.clone(), percent),
            );
            let goal = if percent == 99 { goal } else { "-" };
            row(
                &format!("worst call around a swap, {what}, p{percent}"),
                &ns(ours),
                &ns(theirs),
                ratio(ours, theirs),
                goal,
            );
            let pause = percentile(pauses.clone(), percent);
            row(
                &format!("its cut, {what}, p{percent}"),
                &ns(pause),
                "-",
                ratio(pause, ours),
                "-",
            );
        }
    }
}

/// What was seen around swaps, in nanoseconds.
#[derive(Default)]
struct Around {
    /// The worst call of each stretch without a swap. It is as long as the swap
    /// before it took, so that the machine has the same time to get in the way.
    quiet: Vec<u64>,
    /// The worst call of each stretch with one.
    worst: Vec<u64>,
    /// How long the slot was held.
    pauses: Vec<u64>,
}

fn around_swaps(slots: &Arc<Slots>, versions: &[Arc<Plugin>; 2], swaps: usize) -> Around {
    let slot = slots.slot(SlotName::Scheduler);
    let options = SwapOptions::default();
    slot.swap(&versions[0], &options).expect("it is good");
    let question = view();
    let (swapping, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let worst_until = |is_over: &dyn Fn() -> bool| {
        let mut worst = 0;
        while !is_over() {
            let start = Instant::now();
            std::hint::black_box(slot.ask(&question));
            worst = worst.max(nanoseconds(start.elapsed()));
        }
        worst
    };
    let mut around = Around::default();
    around.pauses = thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let swap = |turn: usize| {
                thread::sleep(Duration::from_millis(20));
                swapping.store(true, Ordering::SeqCst);
                let swapped = slot.swap(&versions[(turn + 1) % 2], &options);
                swapping.store(false, Ordering::SeqCst);
                let pause = swapped.expect("it is good").pause;
                nanoseconds(pause.expect("it was no rehearsal"))
            };
            let pauses = (0..swaps).map(swap).collect();
            over.store(true, Ordering::SeqCst);
            pauses
        });
        let is_over = || over.load(Ordering::SeqCst);
        while !is_over() {
            let _ = worst_until(&|| swapping.load(Ordering::SeqCst) || is_over());
            let start = Instant::now();
            let worst = worst_until(&|| !swapping.load(Ordering::SeqCst));
            let length = start.elapsed();
            if is_over() {
                break;
            }
            let start = Instant::now();
            let quiet = worst_until(&|| start.elapsed() >= length);
            around.worst.push(worst);
            around.quiet.push(quiet);
        }
        swapper.join().expect("it swaps")
    });
    around
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos().try_into().unwrap_or(u64::MAX)
}

/// The share of each of 32 spinning tasks in the second around a swap.
fn live_swap() {
    const TASKS: usize = 32;
    const ROUNDS: usize = 5;
    if kvm().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let spins = assemble(|a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(again)
    });
    fs::write(
        directory.path().join("spins"),
        ElfBuilder::guest(&spins).build(),
    )
    .unwrap();
    let first = policy("fair-share");
    let toml = format!(
        "[host]\nworkers = 1\n[policy.scheduler]\nplugin = {first:?}\n\
         [[task]]\nname = \"spin\"\nimage = \"spins\"\nreplicas = {TASKS}\nmemory = \"4MiB\"\n"
    );
    let host = Host::up(directory.path(), &toml);
    host.until("all run", || {
        host.tasks()
            .iter()
            .all(|task| task.number("run_ns") > 0)
            .then_some(())
    });
    let (mut quiet, mut swapped) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        quiet.push(spread(&host, || {}));
        swapped.push(spread(&host, || {
            let path = first.to_str().expect("a path in text");
            let _ = host.ask(&["policy", "swap", "scheduler", path]);
        }));
    }
    let (ours, theirs) = (percentile(swapped, 50), percentile(quiet, 50));
    row(
        "32 tasks, a share's distance from equal, 1 s around a swap",
        &format!("{ours:.2} %"),
        &format!("{theirs:.2} %"),
        ours / theirs,
        "<= 1 %",
    );
}

/// The largest difference of a task's share from an equal one, in percent of the
/// worker, over a second in the middle of which something is done.
fn spread(host: &Host, middle: impl FnOnce()) -> f64 {
    let used = |host: &Host| -> Vec<u64> {
        let tasks = host.tasks();
        tasks.iter().map(|task| task.number("run_ns")).collect()
    };
    let before = used(host);
    thread::sleep(Duration::from_millis(500));
    middle();
    thread::sleep(Duration::from_millis(500));
    let after = used(host);
    let ran: Vec<f64> = before
        .iter()
        .zip(after)
        .map(|(before, after)| (after - before) as f64)
        .collect();
    let total: f64 = ran.iter().sum();
    let equal = 1.0 / ran.len() as f64;
    ran.iter()
        .map(|ran| (ran / total - equal).abs() * 100.0)
        .fold(0.0, f64::max)
}

/// From opening a plugin to its first answer, compiled and from the cache; the engine
/// is made, too.
fn first_use() {
    let path = policy("fair-share");
    let cache = tempfile::tempdir().unwrap();
    let first = |cache: &Path| {
        let start = Instant::now();
        let slots = Slots::new(Vec::new(), SlotConfig::of, Some(cache.to_owned()), |_| {});
        let component = slots.open(&path).expect("it is a plugin");
        let slot = slots.slot(SlotName::Scheduler);
        slot.swap(&component, &SwapOptions::default())
            .expect("it is good");
        std::hint::black_box(slot.ask(&view()));
        u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
    };
    let (mut compiled, mut cached) = (Vec::new(), Vec::new());
    for round in 0..15 {
        let empty = cache.path().join(round.to_string());
        fs::create_dir(&empty).unwrap();
        compiled.push(first(&empty));
        // The cache is written aside.
        let found = wharf_tests::host::poll(|| {
            let files = walk(&empty);
            (files > 0).then_some(())
        });
        assert!(found.is_some(), "what was compiled is kept");
        cached.push(first(&empty));
    }
    let (compiled, cached) = (percentile(compiled, 50), percentile(cached, 50));
    row(
        "first use of a plugin, compiled",
        &format!("{compiled} us"),
        "-",
        ratio(compiled, 50_000),
        "<= 50000 us",
    );
    row(
        "first use of a plugin, from the cache",
        &format!("{cached} us"),
        &format!("{compiled} us"),
        ratio(cached, compiled),
        "<= 5000 us",
    );
}

/// How many files are below a directory.
fn walk(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let path = entry.path();
            if path.is_dir() { walk(&path) } else { 1 }
        })
        .sum()
}
