//! Upgrades under load: what clients notice.
//!
//! `cargo bench --bench upgrade` puts one version after another into the place of a
//! service while 64 clients ask without a pause, and prints what they saw, with the goal
//! of each figure. Nothing here fails on a slow machine, but on a request that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use wharf_tests::bench::{median, percentile};
use wharf_tests::command::{another_version, app};
use wharf_tests::guest::kvm;
use wharf_tests::host::{Host, objects};
use wharf_tests::http::Client;
use wharf_tests::net::port;

const UPGRADES: u8 = 100;
const CLIENTS: usize = 64;

/// How long after an upgrade a slow answer is still its doing.
const AFTERMATH: Duration = Duration::from_millis(20);

fn main() {
    if kvm().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let image = app("http");
    let toml = format!(
        "[host]\nworkers = 1\n[[task]]\nname = \"web\"\nimage = {image:?}\n\
         publish = [\"{at}:80\"]\n"
    );
    let host = Host::up(directory.path(), &toml);
    let images = [1, 2].map(|number| another_version(directory.path(), &image, number));
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = Client::of(at);
            let over = Arc::clone(&over);
            thread::spawn(move || {
                let mut answers = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    let (status, _) = client.ask("GET", "/", b"").expect("no request fails");
                    assert_eq!(status, 200);
                    answers.push((start, Instant::now()));
                }
                answers
            })
        })
        .collect();

    thread::sleep(Duration::from_millis(500));
    let (mut windows, mut pauses) = (Vec::new(), Vec::new());
    for (_, image) in (0..UPGRADES).zip(images.iter().cycle()) {
        let start = Instant::now();
        let image = image.to_str().unwrap();
        let report = host.ask(&["upgrade", "web", "--image", image, "--json"]);
        windows.push((start, Instant::now() + AFTERMATH));
        let report = &objects(&format!("[{report}]"))[0];
        assert_eq!(report.text("state"), "kept", "{report:?}");
        pauses.push(report.float("pause_ns") / 1e3);
        thread::sleep(Duration::from_millis(30));
    }
    over.store(true, Ordering::Relaxed);
    let answers: Vec<(Instant, Instant)> = clients
        .into_iter()
        .flat_map(|it| it.join().expect("no request fails"))
        .collect();

    let us = |(start, end): &(Instant, Instant)| (*end - *start).as_secs_f64() * 1e6;
    let is_quiet = |(start, end): &&(Instant, Instant)| {
        !windows.iter().any(|(from, to)| start < to && end > from)
    };
    let quiet: Vec<f64> = answers.iter().filter(is_quiet).map(us).collect();
    let usual = median(quiet.clone());
    let worst: Vec<f64> = windows
        .iter()
        .map(|(from, to)| {
            let seen = answers
                .iter()
                .filter(|(start, end)| start < to && end > from);
            seen.map(us).fold(0.0, f64::max) - usual
        })
        .collect();
    println!(
        "{UPGRADES} upgrades under {CLIENTS} connections: {} requests, none failed (goal: none)",
        answers.len()
    );
    println!(
        "an answer takes {usual:.0} us, p99 {:.0} us, between upgrades",
        percentile(quiet, 99)
    );
    println!(
        "worst added latency of an upgrade: median {:.1} ms, p99 {:.1} ms (goal: p99 <= 25 ms)",
        median(worst.clone()) / 1e3,
        percentile(worst, 99) / 1e3,
    );
    println!(
        "pause of the service: median {:.2} ms, p99 {:.2} ms (goal: <= 5 ms)",
        median(pauses.clone()) / 1e3,
        percentile(pauses, 99) / 1e3,
    );
}
