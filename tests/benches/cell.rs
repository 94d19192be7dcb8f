//! Many guests in one process: what each costs, and how they share a worker.
//!
//! `cargo bench --bench cell` prints figures and ratios with the goal of each, and
//! `cargo bench --bench cell -- idle slices` some of them. What is compared is measured in turn in one run, and where a neighbour on the machine
//! would disturb, by the worker's own processor time instead of the clock. Where only
//! the clock will do, the quietest of several rounds is told beside the median one:
//! it is what an otherwise idle machine does. Nothing here fails on a slow machine.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use iced_x86::code_asm::{r12, r13};
use tempfile::TempDir;
use wharf_abi::hypercall::FOREVER;
use wharf_abi::{Hypercall, Interest};
use wharf_tests::bench::{Resident, measure, median, mib, percentile, row};
use wharf_tests::command::app;
use wharf_tests::elf::ElfBuilder;
use wharf_tests::guest::{assemble, call, kvm};
use wharf_tests::host::{Host, Object};

const DATA: u64 = 0x50_0000;

/// The scheduler's (`wharf_model::schedule::SLICE`).
const SLICE: Duration = Duration::from_millis(2);

/// Steps between two bytes of the guest that works: about 5 ms.
const STEPS: u64 = 10_000_000;

fn main() {
    if kvm().is_none() {
        return;
    }
    let directory = images();
    let path = directory.path();
    let figures: [(&str, &dyn Fn()); 7] = [
        ("idle", &|| idle(path)),
        ("rate", &|| starts(path)),
        ("slowest", &|| slowest_start(path)),
        ("weights", &|| {
            shares(
                path,
                "two spinning tasks, 1 : 3, lighter's share",
                &[100, 300],
            );
        }),
        ("equal", &|| {
            shares(path, "four equal ones, least share", &[100; 4])
        }),
        ("slices", &|| slices(path)),
        ("lateness", &|| lateness(path)),
    ];
    measure(&figures);
}

/// A guest that waits for ever, and one that writes a byte whenever it has done a
/// piece of work: nobody can say of it that it ran when it did not.
fn images() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let waits = assemble(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        call(a, Hypercall::Wait, FOREVER, Interest::STOP.bits())?;
        wharf_tests::guest::exit(a, 0)?;
        a.jmp(again)
    });
    let works = assemble(|a| {
        let (mut piece, mut step) = (a.create_label(), a.create_label());
        a.mov(r13, 1_u64)?;
        a.set_label(&mut piece)?;
        a.mov(r12, STEPS)?;
        a.set_label(&mut step)?;
        a.dec(r12)?;
        a.jnz(step)?;
        call(a, Hypercall::ConsoleWrite, DATA, 1)?;
        a.jmp(piece)
    });
    for (name, code) in [("waits", waits), ("works", works)] {
        let elf = ElfBuilder::guest(&code).data(DATA, b"x").build();
        fs::write(directory.path().join(name), elf).unwrap();
    }
    directory
}

fn task(name: &str, image: &str, lines: &str) -> String {
    format!("[[task]]\nname = \"{name}\"\nimage = \"{image}\"\n{lines}\n")
}

/// A host of so many guests that wait, all of them waiting.
fn waiting(path: &Path, replicas: u32) -> Host {
    let lines = format!("replicas = {replicas}\nmemory = \"8MiB\"");
    let host = Host::up(path, &task("idle", "waits", &lines));
    host.until("all wait", || {
        let waits = |task: &Object| task.state() == "waiting";
        host.tasks().iter().all(waits).then_some(())
    });
    host
}

/// What 64 guests cost that wait, beside one.
fn idle(path: &Path) {
    const ROUNDS: usize = 5;
    let (mut own, mut kernel, mut threads, mut busy) = (vec![], vec![], vec![], vec![]);
    let per_task = |many: i64, few: i64| (many - few) as f64 / 63.0;
    for round in 0..ROUNDS {
        let [few, many] = [1, 64].map(|replicas| {
            let host = waiting(path, replicas);
            let pid = pid(&host);
            let cost = (Resident::of(pid), kernel_kib(), own_threads(pid));
            if replicas == 64 && round == 0 {
                let start = (Instant::now(), cpu(pid));
                sleep(Duration::from_secs(6));
                let used = cpu(pid).saturating_sub(start.1);
                busy.push(used.as_secs_f64() / start.0.elapsed().as_secs_f64());
            }
            let _ = host.ask(&["down"]);
            cost
        });
        own.push(per_task(
            many.0.host_kib().try_into().unwrap(),
            few.0.host_kib().try_into().unwrap(),
        ));
        kernel.push(per_task(many.1, few.1));
        threads.push((few.2, many.2));
    }
    let busy = median(busy) * 100.0;
    row(
        "64 idle tasks, processor",
        &format!("{busy:.4} %"),
        "0.1 % of a core",
        busy / 0.1,
        "<= 1",
    );
    let (own, kernel) = (median(own), median(kernel));
    row(
        "an idle task, resident beside the guest's pages",
        &mib(own),
        "0.75 MiB",
        own / 768.0,
        "",
    );
    row(
        "the same with what the kernel keeps for it",
        &mib(own + kernel),
        "0.75 MiB",
        (own + kernel) / 768.0,
        "<= 1",
    );
    let (few, many) = threads.last().copied().unwrap();
    row(
        "threads of ours with 64 idle tasks and with one",
        &many.to_string(),
        &few.to_string(),
        many as f64 / few as f64,
        "= 1",
    );
}

/// From the first of 64 `hello` to the last that has ended.
fn starts(path: &Path) {
    const ROUNDS: usize = 9;
    let hello = app("hello");
    let lines = "replicas = 64\nmemory = \"8MiB\"\nargs = [\"all\"]";
    let toml = task("hello", hello.to_str().unwrap(), lines);
    let mut rates = (vec![], vec![]);
    for _ in 0..ROUNDS {
        let host = Host::up(path, &toml);
        host.until("all have ended", || {
            let ended = |task: &Object| task.state() == "stopped";
            host.tasks().iter().all(ended).then_some(())
        });
        let events = host.events();
        let last = |kind: &str| {
            let of_kind = events.iter().filter(|event| event.text("kind") == kind);
            of_kind.map(|event| event.number("time_ns")).max().unwrap()
        };
        let rate = |end: u64| 64e9 / (end - last("up")) as f64;
        rates.0.push(rate(last("started")));
        rates.1.push(rate(last("exited")));
    }
    for (what, rates) in [
        ("64 hello from one file, started", rates.0),
        ("the same, started, run and ended", rates.1),
    ] {
        let rate = median(rates);
        row(
            what,
            &format!("{rate:.0} /s"),
            "400 /s",
            rate / 400.0,
            ">= 1",
        );
    }
}

/// The slowest of 64 starts at once, beside one alone. A worker starts what it was
/// given one behind the other, so each takes from the one before it.
fn slowest_start(path: &Path) {
    const ROUNDS: usize = 9;
    let hello = app("hello");
    let toml = |lines: &str| task("hello", hello.to_str().unwrap(), lines);
    let all = toml("replicas = 64\nmemory = \"8MiB\"");
    let one = toml("memory = \"8MiB\"");
    let (mut alone, mut slowest, mut typical) = (vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let times = |toml: &str| {
            let host = Host::up(path, toml);
            host.until("all have ended", || {
                let ended = |task: &Object| task.state() == "stopped";
                host.tasks().iter().all(ended).then_some(())
            });
            start_times(&host)
        };
        alone.extend(times(&one));
        let all = times(&all);
        typical.push(median(all.clone()));
        slowest.push(percentile(all, 100));
    }
    let alone = median(alone);
    for (which, times) in [("slowest", slowest), ("typical", typical)] {
        for (rounds, percent) in [("quietest", 0), ("median", 50)] {
            let time = percentile(times.clone(), percent);
            row(
                &format!("{which} of 64 starts, {rounds} round : one alone"),
                &format!("{time:.0} us"),
                &format!("{alone:.0} us"),
                time / alone,
                if which == "slowest" && percent == 0 {
                    "<= 3"
                } else {
                    ""
                },
            );
        }
    }
}

/// How long each start took, in microseconds, as the host says.
fn start_times(host: &Host) -> Vec<f64> {
    let events = host.events().into_iter();
    let started = events.filter(|event| event.text("kind") == "started");
    started
        .map(|event| {
            let detail = event.text("detail").to_owned();
            let number = detail.split(' ').nth(1).and_then(|us| us.parse().ok());
            number.unwrap_or_else(|| panic!("no time in {detail:?}"))
        })
        .collect()
}

/// What tasks of these weights get of one worker, by the work that they did.
fn shares(path: &Path, what: &str, weights: &[u32]) {
    let spins = |weight: &u32| {
        task(
            &format!("t{weight}"),
            "works",
            &format!("weight = {weight}"),
        )
    };
    let toml: String = match weights {
        [first, ..] if weights.iter().all(|weight| weight == first) => task(
            "t",
            "works",
            &format!("weight = {first}\nreplicas = {}", weights.len()),
        ),
        _ => weights.iter().map(spins).collect(),
    };
    let host = Host::up(path, &("[host]\nworkers = 1\n".to_owned() + &toml));
    host.until("all work", || {
        let works = |task: &Object| task.number("console_bytes") > 0;
        host.tasks().iter().all(works).then_some(())
    });
    let before = host.tasks();
    sleep(Duration::from_secs(10));
    let after = host.tasks();
    let share = |key: &str| {
        let got = before.iter().zip(&after);
        let got: Vec<u64> = got.map(|(b, a)| a.number(key) - b.number(key)).collect();
        let least = got.iter().min().unwrap();
        *least as f64 / got.iter().sum::<u64>() as f64
    };
    let least = f64::from(*weights.iter().min().unwrap());
    let expected = least / f64::from(weights.iter().sum::<u32>());
    for (by, key) in [("time", "run_ns"), ("work", "console_bytes")] {
        let share = share(key);
        row(
            &format!("{what}, by {by}"),
            &format!("{:.2} %", share * 100.0),
            &format!("{:.2} %", expected * 100.0),
            share / expected,
            "+- 1 % of the whole",
        );
    }
    let _ = host.ask(&["down"]);
}

/// What two guests do that take turns, beside one alone on the same worker. By the
/// worker's processor time: what else runs on the machine slows both.
fn slices(path: &Path) {
    const ROUNDS: usize = 9;
    let toml = "[host]\nworkers = 1\n".to_owned()
        + &task("first", "works", "")
        + &task("second", "works", "");
    let host = Host::up(path, &toml);
    let pid = pid(&host);
    let speed = || {
        let work = || -> u64 {
            let tasks = host.tasks();
            tasks.iter().map(|task| task.number("console_bytes")).sum()
        };
        let start = (work(), worker_cpu(pid));
        sleep(Duration::from_millis(1500));
        let end = (work(), worker_cpu(pid));
        (end.0 - start.0) as f64 / (end.1 - start.1).as_secs_f64()
    };
    let (mut ratios, mut both, mut alone) = (vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let before = host.task("second.0").number("console_bytes");
        host.until_task("second.0", |task| task.number("console_bytes") > before);
        let together = speed();
        let _ = host.ask(&["stop", "second"]);
        let single = speed();
        let _ = host.ask(&["restart", "second"]);
        ratios.push(together / single);
        both.push(together);
        alone.push(single);
    }
    row(
        "work under 2 ms slices : alone",
        &format!("{:.1} /s", median(both)),
        &format!("{:.1} /s", median(alone)),
        median(ratios),
        ">= 0.95",
    );
    let _ = host.ask(&["down"]);
}

/// How late a guest's timer is served while others spin on its worker.
fn lateness(path: &Path) {
    const ROUNDS: usize = 9;
    let app = app("sleep");
    let args = "args = [\"7\", \"300\", \"1\"]";
    let sleeps = task("sleeps", app.to_str().unwrap(), args);
    let late = |spinning: usize| -> Vec<f64> {
        let mut toml = "[host]\nworkers = 1\n".to_owned() + &sleeps;
        if spinning > 0 {
            toml += &task("spins", "works", &format!("replicas = {spinning}"));
        }
        let host = Host::up(path, &toml);
        host.until("it has slept", || {
            (host.task("sleeps.0").state() == "stopped").then_some(())
        });
        let logs = host.ask(&["logs", "sleeps"]);
        let _ = host.ask(&["down"]);
        let late = logs
            .lines()
            .filter_map(|line| line.split("late_us ").nth(1)?.parse().ok());
        let late: Vec<f64> = late.collect();
        assert_eq!(late.len(), 300, "{logs}");
        late
    };
    let limit = (SLICE + Duration::from_millis(1)).as_secs_f64() * 1e6;
    let micros = |us: f64| format!("{us:.0} us");
    let numbers = [0, 1, 4];
    let mut rounds = numbers.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (rounds, spinning) in rounds.iter_mut().zip(numbers) {
            rounds.push(late(spinning));
        }
    }
    for (rounds, spinning) in rounds.iter().zip(numbers) {
        let of = |percent| {
            rounds
                .iter()
                .map(|late| percentile(late.clone(), percent))
                .collect()
        };
        for (which, late, goal) in [
            ("p50, median round", median(of(50)), ""),
            ("p99, median round", median(of(99)), ""),
            ("p99, quietest round", percentile(of(99), 0), "<= 1"),
        ] {
            row(
                &format!("lateness beside {spinning} that spin, {which}"),
                &micros(late),
                &micros(limit),
                late / limit,
                goal,
            );
        }
    }
}

fn pid(host: &Host) -> u32 {
    let pid = host.pid().expect("it serves");
    pid.as_raw().try_into().expect("a pid is positive")
}

/// Threads of a process without those that KVM makes for each VM.
fn own_threads(pid: u32) -> usize {
    threads(pid)
        .filter(|(name, _)| !name.starts_with("kvm"))
        .count()
}

/// Processor time of all threads of a process.
fn cpu(pid: u32) -> Duration {
    threads(pid).map(|(_, time)| time).sum()
}

/// Processor time of the only worker.
fn worker_cpu(pid: u32) -> Duration {
    let mut workers = threads(pid).filter(|(name, _)| name.starts_with("worker"));
    workers.next().expect("it has a worker").1
}

/// Names and processor times of a process's threads (proc_pid_schedstat(5)).
fn threads(pid: u32) -> impl Iterator<Item = (String, Duration)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    tasks.filter_map(|task| {
        let task = task.ok()?.path();
        let name = fs::read_to_string(task.join("comm")).ok()?;
        let times = fs::read_to_string(task.join("schedstat")).ok()?;
        let ns = times.split(' ').next()?.parse().ok()?;
        Some((name.trim().to_owned(), Duration::from_nanos(ns)))
    })
}

/// What the kernel keeps for itself, of the whole machine: its own structures, the
/// page tables of processes and of guests, and stacks and other mapped memory of its
/// own. Leaves out single pages, which it counts nowhere; a VM has a handful. Others
/// on the machine move it, so only a median of differences means something.
fn kernel_kib() -> i64 {
    let meminfo = fs::read_to_string("/proc/meminfo").expect("Linux has it");
    let kib = |wanted: &str| -> i64 {
        let mut lines = meminfo.lines().filter_map(|line| line.split_once(':'));
        let value = lines
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| value);
        // SecPageTables came with Linux 6.1.
        let kib = value.map(|value| value.trim().trim_end_matches(" kB").parse());
        kib.map_or(0, |kib| kib.expect("it is a number"))
    };
    ["Slab", "PageTables", "SecPageTables", "VmallocUsed"]
        .map(kib)
        .iter()
        .sum()
}
