//! A disk of a guest's beside the file it is on.
//!
//! `cargo bench --bench block` prints ratios of the same reads by the guest and by
//! `pread` in one thread of this process, in turn. The file is in the page cache but
//! where it says otherwise, so that what is compared is the way there and not the
//! storage.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use wharf_tests::bench::{alternate, heading, row};
use wharf_tests::command::{app, output, wharf};
use wharf_tests::guest::kvm;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
const LEN: usize = 128 * MIB;
const ROUNDS: usize = 9;
/// Reads at a time, of the random ones.
const DEPTH: usize = 32;

fn main() {
    if kvm().is_none() {
        return;
    }
    // Not in /tmp, which may be memory: nothing could be read from the disk then.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("disk.img");
    fs::write(&path, vec![7; LEN]).unwrap();
    let file = File::open(&path).unwrap();
    file.sync_all().unwrap();
    heading();

    for depth in [1, 8] {
        let (native, ours) = alternate(
            ROUNDS,
            || sequential(&file, 4, depth),
            || guest(&path, &["sequential", &depth.to_string(), "4"]).0,
        );
        let goal = if depth == 8 { ">= 0.8" } else { "" };
        let what = format!("1 MiB reads in order, {depth} at a time : pread");
        rate(&what, 4 * LEN, ours, native, goal);
    }
    let reads = 40_000;
    let (native, ours) = alternate(
        ROUNDS,
        || random(&file, reads),
        || guest(&path, &["random", "32", &reads.to_string()]).0,
    );
    rate(
        "4 KiB reads at random, 32 at a time : pread",
        reads * PAGE,
        ours,
        native,
        ">= 0.5",
    );

    let cold = 4_000;
    let (native, ours) = alternate(
        ROUNDS,
        || {
            forget(&file);
            random(&file, cold)
        },
        || {
            forget(&file);
            guest(&path, &["random", "32", &cold.to_string()]).0
        },
    );
    rate(
        "the same, not in the page cache : pread",
        cold * PAGE,
        ours,
        native,
        ">= 0.5",
    );

    for depth in [1, 32] {
        let (_, exits) = guest(&path, &["random", &depth.to_string(), &reads.to_string()]);
        let each = exits as f64 / reads as f64;
        let what = format!("exits for each of {reads} reads, {depth} at a time");
        row(&what, &exits.to_string(), &reads.to_string(), each, "");
    }
}

/// One figure of bytes in two times.
fn rate(what: &str, bytes: usize, ours: Duration, native: Duration, goal: &str) {
    let speed = |time: Duration| format!("{:.0} MB/s", bytes as f64 / time.as_secs_f64() / 1e6);
    let ratio = native.as_secs_f64() / ours.as_secs_f64();
    row(what, &speed(ours), &speed(native), ratio, goal);
}

/// What a guest needed by its own clock, and how often it was left in all.
fn guest(path: &Path, args: &[&str]) -> (Duration, u64) {
    let mut command = wharf(["run", "--stats", "--block"]);
    command.arg(format!("data={},ro", path.display()));
    command.arg(app("diskload")).arg("--").args(args);
    let printed = output(&mut command);
    let after = |text: &str, word: &str| {
        let mut words = text.split_whitespace().skip_while(|it| *it != word);
        let number = words.nth(1).and_then(|it| it.parse::<u64>().ok());
        number.unwrap_or_else(|| panic!("no {word} in {printed:?}"))
    };
    let elapsed = Duration::from_nanos(after(&printed.stdout, "elapsed_ns"));
    (elapsed, after(&printed.stderr, "exits"))
}

/// Into as many buffers in turn as the guest has, so that what the processor's caches
/// hold of them is the same.
fn sequential(file: &File, passes: usize, buffers: usize) -> Duration {
    let mut buffers = vec![vec![1; MIB]; buffers];
    let start = Instant::now();
    for (at, turn) in (0..passes * LEN)
        .step_by(MIB)
        .zip((0..buffers.len()).cycle())
    {
        let buffer = &mut buffers[turn];
        file.read_exact_at(buffer, (at % LEN) as u64).unwrap();
    }
    start.elapsed()
}

/// At the same places as the guest, into as many buffers.
fn random(file: &File, reads: usize) -> Duration {
    let mut buffers = vec![[1; PAGE]; DEPTH];
    let mut number = 0x9E37_79B9_7F4A_7C15_u64;
    let start = Instant::now();
    for turn in 0..reads {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        let at = number % (LEN / PAGE) as u64 * PAGE as u64;
        file.read_exact_at(&mut buffers[turn % DEPTH], at).unwrap();
    }
    start.elapsed()
}

/// Has the kernel drop what it keeps of the file.
fn forget(file: &File) {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}
