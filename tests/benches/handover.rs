//! Hand-overs of a host under load: what guests and clients notice.
//!
//! `cargo bench --bench handover` has one process after another go on with 32 services
//! while clients ask, and prints what they saw, with the goal of each figure. Nothing here
//! fails on a slow machine, but on a request that fails or a guest that is started anew.

use std::time::{Duration, Instant};

use wharf_tests::bench::{median, percentile};
use wharf_tests::command::app;
use wharf_tests::guest::kvm;
use wharf_tests::host::{Host, objects};
use wharf_tests::load::Load;
use wharf_tests::net::port;

const GUESTS: u64 = 32;
const CLIENTS: usize = 64;
const HANDOVERS: usize = 20;

fn main() {
    if kvm().is_none() {
        return;
    }
    for (think, load) in [
        (20, "a request every 20 ms each"),
        (0, "without a pause, the machine full"),
    ] {
        measure(Duration::from_millis(think), load);
    }
}

fn measure(think: Duration, load: &str) {
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let image = app("http");
    let toml = format!(
        "[[task]]\nname = \"web\"\nimage = {image:?}\nreplicas = {GUESTS}\nmemory = \"8MiB\"\n\
         publish = [\"{at}:80\"]\n"
    );
    let host = Host::up(directory.path(), &toml);
    host.until_started();
    let clients = Load::thinking(at, CLIENTS, "/", think);
    clients.until_more(1000);
    let (mut medians, mut longest, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..HANDOVERS {
        let start = Instant::now();
        let report = host.ask(&["handover", "--json"]);
        all.push(start.elapsed().as_secs_f64() * 1e3);
        let report = &objects(&format!("[{report}]"))[0];
        assert_eq!(report.number("guests"), GUESTS);
        medians.push(report.float("pause_median_ns") / 1e6);
        longest.push(report.float("pause_max_ns") / 1e6);
        clients.until_more(200);
    }
    let requests = clients.end();
    let restarts: u64 = host.tasks().iter().map(|it| it.number("restarts")).sum();
    assert_eq!(restarts, 0, "a guest was started anew");
    println!("{GUESTS} guests, {CLIENTS} clients, {load}:");
    println!("  {HANDOVERS} hand-overs, {requests} requests, none failed (goal: none)");
    println!(
        "  a guest stood still for {:.2} ms (median; goal: <= 5 ms on an idle machine), at most {:.1} ms",
        median(medians),
        percentile(longest, 99),
    );
    println!("  the whole took {:.0} ms (median)", median(all));
}
