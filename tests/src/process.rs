//! What the kernel says of a process (proc(5)).

use std::fs;

use nix::unistd::Pid;

/// A figure of its memory in KiB, such as `VmRSS`.
///
/// # Panics
///
/// When it does not run, or there is no such figure.
#[must_use]
pub fn memory_kib(pid: Pid, figure: &str) -> u64 {
    kib(&format!("/proc/{pid}/status"), figure)
}

/// Its proportional set size in KiB: of a page that several map, or one several times,
/// each counts its part.
///
/// # Panics
///
/// When it does not run, or is another user's.
#[must_use]
pub fn pss_kib(pid: Pid) -> u64 {
    kib(&format!("/proc/{pid}/smaps_rollup"), "Pss")
}

fn kib(path: &str, figure: &str) -> u64 {
    let text = fs::read_to_string(path).expect("it runs");
    let mut lines = text.lines();
    let value = lines.find_map(|it| it.strip_prefix(figure)?.strip_prefix(':'));
    let kib = value.and_then(|it| it.split_whitespace().next());
    kib.and_then(|it| it.parse().ok())
        .expect("Linux tells of memory in KiB")
}

/// How many files it has open.
///
/// # Panics
///
/// When it does not run, or is another user's.
#[must_use]
pub fn open_files(pid: Pid) -> u64 {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs and is ours");
    files.count().try_into().expect("few files")
}

/// What a process has used of the CPU, in clock ticks of 10 ms.
///
/// # Panics
///
/// When it does not run.
#[must_use]
pub fn cpu_ticks(pid: Pid) -> u64 {
    let (_, user, system) = state_and_ticks(pid);
    user + system
}

/// State letter, user and system ticks of a process (proc(5), `stat`).
///
/// # Panics
///
/// When it does not run.
#[must_use]
pub fn state_and_ticks(pid: Pid) -> (String, u64, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, fields) = stat.rsplit_once(')').expect("a name is in brackets");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let number = |at: usize| fields[at].parse().expect("ticks are numbers");
    (fields[0].to_owned(), number(11), number(12))
}
