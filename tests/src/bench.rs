//! What benchmarks have in common: a table of ratios with their goals, and what a
//! process costs.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Prints what the columns of [`row`] are.
pub fn heading() {
    println!(
        "{:<52} {:>14} {:>14} {:>8}  goal",
        "", "wharf", "compared to", "ratio"
    );
}

/// Measures what the command line names, or all there is.
pub fn measure(figures: &[(&str, &dyn Fn())]) {
    // cargo passes options; words choose figures.
    let words = std::env::args().skip(1);
    let chosen: Vec<String> = words.filter(|arg| !arg.starts_with('-')).collect();
    heading();
    for (name, measure) in figures {
        if chosen.is_empty() || chosen.iter().any(|word| word == name) {
            measure();
        }
    }
}

/// Prints one figure: ours, what it is compared to, their ratio, and its goal.
pub fn row(what: &str, ours: &str, theirs: &str, ratio: f64, goal: &str) {
    println!("{what:<52} {ours:>14} {theirs:>14} {ratio:>8.3}  {goal}");
}

/// Medians of two measurements taken in turn.
pub fn alternate<T: PartialOrd + Copy>(
    rounds: usize,
    mut first: impl FnMut() -> T,
    mut second: impl FnMut() -> T,
) -> (T, T) {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        a.push(first());
        b.push(second());
    }
    (median(a), median(b))
}

/// The value in the middle.
///
/// # Panics
///
/// When there is none.
#[must_use]
pub fn median<T: PartialOrd + Copy>(values: Vec<T>) -> T {
    percentile(values, 50)
}

/// The value that so many of a hundred do not exceed.
///
/// # Panics
///
/// When there are no values.
#[must_use]
pub fn percentile<T: PartialOrd + Copy>(mut values: Vec<T>, percent: usize) -> T {
    values.sort_unstable_by(|a, b| a.partial_cmp(b).expect("values can be compared"));
    let at = (values.len() * percent / 100).min(values.len() - 1);
    values[at]
}

/// Wall time of a command that must succeed.
///
/// # Panics
///
/// When it does not.
pub fn wall(command: &mut Command) -> Duration {
    command.stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status().expect("the command starts");
    let elapsed = start.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    elapsed
}

/// A time in microseconds.
#[must_use]
pub fn micros(duration: Duration) -> String {
    format!("{:.0} us", duration.as_secs_f64() * 1e6)
}

/// KiB in MiB.
#[must_use]
pub fn mib(kib: f64) -> String {
    format!("{:.2} MiB", kib / 1024.0)
}

/// What of a process is in memory, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// All of it.
    pub total_kib: u64,
    /// What is guests' memory. The host advises the kernel about large pages
    /// there, and nowhere else, so that it can be told apart.
    pub guest_kib: u64,
}

impl Resident {
    /// Of the process with this number.
    ///
    /// # Panics
    ///
    /// When it cannot be looked at.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("it runs and is ours");
        Self::read(&smaps)
    }

    /// What is the host's own.
    #[must_use]
    pub const fn host_kib(self) -> u64 {
        self.total_kib - self.guest_kib
    }

    /// proc_pid_smaps(5): of each mapping what is resident, and its flags behind that.
    fn read(smaps: &str) -> Self {
        let mut resident = Self::default();
        let mut rss = 0;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("Rss:") => {
                    rss = words.next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
                }
                Some("VmFlags:") => {
                    resident.total_kib += rss;
                    if words.any(|flag| matches!(flag, "hg" | "nh")) {
                        resident.guest_kib += rss;
                    }
                }
                _ => {}
            }
        }
        resident
    }
}

#[cfg(test)]
mod tests {
    use super::{Resident, percentile};

    #[test]
    fn guests_memory_is_told_from_the_hosts() {
        let smaps = "7f00-7f10 rw-p 0 00:00 0\nRss: 8 kB\nPss: 7 kB\nVmFlags: rd wr mr nr hg\n\
                     7f10-7f20 rw-p 0 00:00 0\nRss: 4 kB\nVmFlags: rd wr mr nr nh\n\
                     7f30-7f40 r-xp 0 00:00 7 /bin/x\nRss: 2 kB\nVmFlags: rd ex mr\n";
        let resident = Resident::read(smaps);
        assert_eq!((resident.total_kib, resident.guest_kib), (14, 12));
        assert_eq!(resident.host_kib(), 2);
    }

    #[test]
    fn percentiles_are_values() {
        assert_eq!(percentile(vec![3, 1, 2], 50), 2);
        assert_eq!(percentile((0..200).collect(), 99), 198);
        assert_eq!(percentile(vec![1], 99), 1);
    }
}
