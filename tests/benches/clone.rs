//! Snapshots and clones: what they cost beside the least that a guest costs.
//!
//! `cargo bench --bench clone` prints the goal of each figure. Nothing here fails on a
//! slow machine.

use std::fs;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use iced_x86::code_asm::{qword_ptr, rcx, rdi, rsi};
use kvm_ioctls::Kvm;
use wharf_abi::{Answer, BootPage, Hypercall};
use wharf_machine::image::Image;
use wharf_machine::snapshot::{Prepared, RestoreConfig, Room, Snapshot};
use wharf_machine::{BootConfig, Call, Exit, Hypervisor, Machine};
use wharf_tests::bench::{alternate, heading, median, mib, micros, percentile, row};
use wharf_tests::command::app;
use wharf_tests::elf::ElfBuilder;
use wharf_tests::floor::first_run;
use wharf_tests::guest::{assemble, call, exit, kvm};
use wharf_tests::host::{Host, Object, objects, poll};
use wharf_tests::http::Client;
use wharf_tests::net::port;
use wharf_tests::process::pss_kib;

const ROUNDS: usize = 200;
const STARTS: usize = 100;
const SNAPSHOTS: usize = 20;
const CLONES: u64 = 32;

fn main() {
    let Some(kvm) = kvm() else { return };
    heading();
    let directory = tempfile::tempdir().unwrap();
    first_instruction(&kvm, directory.path());
    first_answer(directory.path(), 0, "<= 2 ms");
    first_answer(directory.path(), 2, "<= 2 ms");
    shared_pages(directory.path());
    pause_of_a_service(directory.path());
    pause_of_a_full_guest(&kvm);
}

/// A guest that touches all of its heap when told to, waits, and ends when it goes on.
fn waiter(touches: bool) -> Arc<Image> {
    let code = assemble(|a| {
        if touches {
            let heap = offset_of!(BootPage, heap) as i32;
            let mut page = a.create_label();
            a.mov(rsi, qword_ptr(rdi + heap))?;
            a.mov(rcx, qword_ptr(rdi + heap + 8))?;
            a.set_label(&mut page)?;
            a.mov(qword_ptr(rsi), rcx)?;
            a.add(rsi, 4096)?;
            a.sub(rcx, 4096)?;
            a.jg(page)?;
        }
        call(a, Hypercall::Wait, u64::MAX, 0)?;
        exit(a, 0)
    });
    Arc::new(Image::parse(ElfBuilder::guest(&code).build()).unwrap())
}

/// The same, waiting.
fn waiting(kvm: &Hypervisor, image: &Image) -> Machine {
    let mut machine = Machine::boot(kvm, image, &BootConfig::default(), Vec::new()).unwrap();
    let exit = machine.enter(None).unwrap();
    assert!(matches!(exit, Exit::Call(Call::Wait { .. })), "{exit:?}");
    machine
}

/// From nothing, and from one that is kept ready, to the first exit.
fn first_instruction(kvm: &Hypervisor, directory: &Path) {
    let image = waiter(false);
    let file = directory.join("waiter.snap");
    let saved = waiting(kvm, &image).save(Some(Answer::ok(0))).unwrap();
    saved.write_to(&image, &file).unwrap();
    let snapshot = Arc::new(Snapshot::open(kvm, &file).unwrap());
    let bare = Kvm::new().unwrap();
    let floor = || {
        let start = Instant::now();
        let guest = first_run(&bare).unwrap();
        let took = start.elapsed();
        drop(guest);
        took
    };
    let config = RestoreConfig { generation: 2 };
    let runs = |mut machine: Machine, start: Instant| {
        let exit = machine.enter(None).unwrap();
        let took = start.elapsed();
        assert!(
            matches!(exit, Exit::Call(Call::Exit { status: 0 })),
            "{exit:?}"
        );
        took
    };
    let cold = || {
        let start = Instant::now();
        let machine = Machine::restore(kvm, &snapshot, config, Vec::new()).unwrap();
        runs(machine, start)
    };
    let warm = || {
        let ready = Prepared::new(kvm, &snapshot).unwrap();
        let start = Instant::now();
        runs(ready.start(config, Vec::new()).unwrap(), start)
    };
    for (what, goal, clone) in [
        (
            "clone to its first instruction",
            "<= 1.2",
            &cold as &dyn Fn() -> Duration,
        ),
        ("warm clone to its first instruction", "<= 1.2", &warm),
    ] {
        let (ours, theirs) = alternate(ROUNDS, clone, floor);
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        let what = format!("{what} : bare VM's");
        row(&what, &micros(ours), &micros(theirs), ratio, goal);
    }
}

/// A snapshot of a service that has answered.
fn service(directory: &Path) -> PathBuf {
    let (file, at) = (directory.join("session.snap"), port());
    if file.exists() {
        return file;
    }
    let image = app("session");
    let toml = format!("[[task]]\nname = \"web\"\nimage = {image:?}\npublish = [\"{at}:80\"]\n");
    let home = tempfile::tempdir().unwrap();
    let host = Host::up(home.path(), &toml);
    let mut client = Client::of(at);
    for key in 0..16 {
        let value = vec![b'x'; 16 << 10];
        let (status, _) = client.ask("PUT", &format!("/k/{key}"), &value).unwrap();
        assert_eq!(status, 200);
    }
    let _ = host.ask(&["snapshot", "web", file.to_str().unwrap()]);
    file
}

/// From the wish, over the control socket, to the answer of a client who waits.
fn first_answer(directory: &Path, warm: u32, goal: &str) {
    let (file, at) = (service(directory), port());
    let toml = format!(
        "[[task]]\nname = \"web\"\nfrom = {file:?}\nwarm = {warm}\npublish = [\"{at}:80\"]\n"
    );
    let home = tempfile::tempdir().unwrap();
    let host = Host::up(home.path(), &toml);
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let _ = host.http("POST", "/v1/tasks/web/stop");
        host.until_task("web.0", |it| it.state() == "stopped");
        let mut client = Client::connect(at).unwrap();
        client.begin("GET", "/version", 0).unwrap();
        thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        let _ = host.http("POST", "/v1/tasks/web/restart");
        let (status, _) = client.answer().unwrap();
        times.push(start.elapsed());
        assert_eq!(status, 200);
    }
    let what = format!(
        "first answer of a {}clone, median",
        if warm > 0 { "warm " } else { "" }
    );
    let (median, p99) = (median(times.clone()), percentile(times, 99));
    row(
        &what,
        &micros(median),
        &format!("p99 {}", micros(p99)),
        f64::NAN,
        goal,
    );
}

/// What each clone more takes.
fn shared_pages(directory: &Path) {
    let file = service(directory);
    let pss = |replicas: u64| {
        let toml = format!("[[task]]\nname = \"web\"\nfrom = {file:?}\nreplicas = {replicas}\n");
        let home = tempfile::tempdir().unwrap();
        let host = Host::up(home.path(), &toml);
        let waits = |it: &Object| it.state() == "waiting";
        poll(|| host.tasks().iter().all(waits).then_some(())).expect("they serve");
        pss_kib(host.pid().expect("it runs"))
    };
    let (one, all) = (pss(1), pss(CLONES));
    let each = (all.saturating_sub(one)) as f64 / (CLONES - 1) as f64;
    let whole = file_kib(&file);
    row(
        "each clone more, PSS : the snapshot on the disk",
        &mib(each),
        &mib(whole),
        each / whole,
        "shared",
    );
}

/// KiB that a file takes on the disk.
fn file_kib(file: &Path) -> f64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(file).unwrap().blocks() as f64 / 2.0
}

/// How long a service of 32 MiB stands still.
fn pause_of_a_service(directory: &Path) {
    let image = app("http");
    let toml = format!("[[task]]\nname = \"web\"\nimage = {image:?}\n");
    let home = tempfile::tempdir().unwrap();
    let host = Host::up(home.path(), &toml);
    host.until_task("web.0", |it| it.state() == "waiting");
    let file = directory.join("http.snap");
    let (mut pauses, mut memory) = (Vec::new(), 0);
    for _ in 0..SNAPSHOTS {
        let told = host.ask(&["snapshot", "web", file.to_str().unwrap(), "--json"]);
        let told = &objects(&format!("[{told}]"))[0];
        pauses.push(Duration::from_nanos(told.number("pause_ns")));
        memory = told.number("memory_bytes");
    }
    let worst = percentile(pauses.clone(), 100);
    row(
        &format!("snapshot of http, {} KiB used: pause", memory >> 10),
        &micros(median(pauses)),
        &format!("worst {}", micros(worst)),
        f64::NAN,
        "<= 10 ms",
    );
}

/// The same of a guest that has touched all of its 32 MiB.
fn pause_of_a_full_guest(kvm: &Hypervisor) {
    let mut machine = waiting(kvm, &waiter(true));
    let mut memory = 0;
    let pauses: Vec<Duration> = (0..SNAPSHOTS)
        .map(|_| {
            let room = Room::new(32 << 20);
            let start = Instant::now();
            let saved = machine.save_into(room, Some(Answer::ok(0))).unwrap();
            let took = start.elapsed();
            memory = saved.resident();
            took
        })
        .collect();
    let worst = percentile(pauses.clone(), 100);
    row(
        &format!("snapshot of a guest, {} KiB used: pause", memory >> 10),
        &micros(median(pauses)),
        &format!("worst {}", micros(worst)),
        f64::NAN,
        "<= 10 ms",
    );
}
