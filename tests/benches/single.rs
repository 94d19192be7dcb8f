//! One guest in one process: what it costs beside what it must cost.
//!
//! `cargo bench --bench single` prints ratios, each of two things measured
//! alternately in the same run, and the goal of each. Machines differ and are
//! noisy; ratios hold. Nothing here fails on a slow machine.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use wharf_abi::Hypercall;
use wharf_abi::hypercall::FOREVER;
use wharf_tests::bench::{Resident, alternate, heading, mib, micros, row, wall};
use wharf_tests::command::{app, output, wharf_path};
use wharf_tests::elf::ElfBuilder;
use wharf_tests::guest::{assemble, call, kvm};

const ROUNDS: usize = 60;

fn main() {
    if kvm().is_none() {
        return;
    }
    heading();
    whole_process();
    compute();
    memory();
    exits_per_wait();
}

/// Start to exit of a prebuilt hello, beside the least that any KVM host does.
fn whole_process() {
    let hello = app("hello");
    let mut floor = Command::new(env!("CARGO_BIN_EXE_floor"));
    let mut ours = Command::new(wharf_path());
    ours.arg("run").arg(&hello);
    let (floor, ours) = alternate(ROUNDS, || wall(&mut floor), || wall(&mut ours));
    let ratio = ours.as_secs_f64() / floor.as_secs_f64();
    row(
        "hello, whole process : KVM floor",
        &micros(ours),
        &micros(floor),
        ratio,
        "<= 1.5",
    );
}

/// The loop of `spin`, timed by itself, in a guest and as a process.
fn compute() {
    let spin = app("spin");
    let steps = "300000000";
    let mut native = Command::new(env!("CARGO_BIN_EXE_native_spin"));
    native.arg(steps);
    let mut ours = Command::new(wharf_path());
    ours.arg("run").arg(&spin).args(["--", steps]);
    let (native, ours) = alternate(9, || elapsed(&mut native), || elapsed(&mut ours));
    let ratio = native.as_secs_f64() / ours.as_secs_f64();
    row(
        "spin, native : guest",
        &micros(ours),
        &micros(native),
        ratio,
        ">= 0.99",
    );
}

/// Resident memory of a process whose guest waits, without the guest's own pages.
fn memory() {
    const DATA: u64 = 0x50_0000;
    let waits = assemble(|a| {
        call(a, Hypercall::ConsoleWrite, DATA, 1)?;
        call(a, Hypercall::Wait, FOREVER, 0)
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(
        file.path(),
        ElfBuilder::guest(&waits).data(DATA, b"x").build(),
    )
    .unwrap();
    let mut child = Command::new(wharf_path())
        .arg("run")
        .arg(file.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let resident = Resident::of(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    let host = resident.host_kib();
    row(
        "host memory beside the guest's",
        &mib(host as f64),
        "4 MiB",
        host as f64 / 4096.0,
        "<= 1",
    );
}

/// An async guest's waits, and how often it left the guest for them.
fn exits_per_wait() {
    let waits = 200;
    let printed = output(
        Command::new(wharf_path())
            .args(["run", "--stats"])
            .arg(app("sleep"))
            .args(["--", "1", &waits.to_string(), "1"]),
    );
    // One line for each round and one at the end, one exit each, and the last exit.
    let lines = printed.stdout.lines().count();
    let exits: usize = printed
        .stderr
        .split_whitespace()
        .skip_while(|word| *word != "exits")
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("--stats tells the exits");
    let per_wait = (exits - lines - 1) as f64 / f64::from(waits);
    row(
        "exits for each wait of an async task",
        &format!("{exits} exits"),
        "1",
        per_wait,
        "= 1",
    );
}

/// The time that `spin` says it took.
fn elapsed(command: &mut Command) -> Duration {
    let printed = output(command);
    let ns = printed
        .stdout
        .split_whitespace()
        .last()
        .and_then(|ns| ns.parse().ok());
    Duration::from_nanos(ns.expect("spin tells its time"))
}
