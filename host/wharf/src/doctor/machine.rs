//! Judging what is around KVM: memory, time, limits.

use super::{Facts, Finding};

const HUGE_PAGES: &str = "huge pages";
const CLOCK: &str = "invariant TSC";
const OPEN_FILES: &str = "open files";
const LOCKED_MEMORY: &str = "locked memory";

/// Open files below which a host of many tasks soon has none left: a hundred
/// tasks with their devices, and some connections each.
const OPEN_FILES_LOW: u64 = 1024;

/// Locked memory below which io_uring on kernels before 5.12, or a jail, may
/// refuse rings: what distributions have given for years.
const LOCKED_MEMORY_LOW: u64 = 64 << 10;

pub(super) fn examine(facts: &Facts) -> Vec<Finding> {
    vec![
        huge_pages(facts.huge_pages.as_deref()),
        clock(facts),
        open_files(&facts.limits),
        locked_memory(&facts.limits),
    ]
}

fn huge_pages(setting: Option<&str>) -> Finding {
    let chosen = setting.and_then(|setting| {
        setting
            .split_whitespace()
            .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
    });
    match chosen {
        Some(chosen @ ("madvise" | "always")) => Finding::ok(HUGE_PAGES, chosen),
        Some(chosen) => Finding::warning(
            HUGE_PAGES,
            format!("{chosen}: a guest's first touch of memory is several times slower"),
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        None => Finding::warning(
            HUGE_PAGES,
            "the kernel has no transparent huge pages: \
             a guest's first touch of memory is several times slower",
            "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        ),
    }
}

/// Guests read the time without an exit, so it must go on steadily by itself.
fn clock(facts: &Facts) -> Finding {
    let lacking: Vec<&str> = ["constant_tsc", "nonstop_tsc"]
        .into_iter()
        .filter(|flag| !facts.cpu_has(flag))
        .collect();
    if lacking.is_empty() {
        return Finding::ok(CLOCK, "yes: guests read the time without an exit");
    }
    Finding::warning(
        CLOCK,
        format!(
            "the CPU does not promise {}: guests' clocks may drift",
            lacking.join(" and ")
        ),
        "in a virtual machine, have its host pass an invariant TSC on; else trust no guest's clock",
    )
}

fn open_files(limits: &str) -> Finding {
    match limit(limits, "Max open files") {
        Some(Limit { soft, hard }) if soft < OPEN_FILES_LOW => Finding::warning(
            OPEN_FILES,
            format!("{soft}, which many tasks and connections will use up"),
            if hard < OPEN_FILES_LOW {
                "raise nofile in /etc/security/limits.conf or the service's LimitNOFILE"
            } else {
                "ulimit -n \"$(ulimit -Hn)\""
            },
        ),
        Some(Limit { soft: u64::MAX, .. }) => Finding::ok(OPEN_FILES, "no limit"),
        Some(Limit { soft, .. }) => Finding::ok(OPEN_FILES, format!("at most {soft}")),
        None => unknown(OPEN_FILES),
    }
}

fn locked_memory(limits: &str) -> Finding {
    match limit(limits, "Max locked memory") {
        Some(Limit { soft, .. }) if soft < LOCKED_MEMORY_LOW => Finding::warning(
            LOCKED_MEMORY,
            format!("{} KiB", soft / 1024),
            "raise memlock in /etc/security/limits.conf or the service's LimitMEMLOCK",
        ),
        Some(Limit { soft: u64::MAX, .. }) => Finding::ok(LOCKED_MEMORY, "no limit"),
        Some(Limit { soft, .. }) => {
            Finding::ok(LOCKED_MEMORY, format!("at most {} KiB", soft / 1024))
        }
        None => unknown(LOCKED_MEMORY),
    }
}

fn unknown(check: &'static str) -> Finding {
    Finding::warning(check, "the limit is unknown", "mount /proc")
}

/// A resource limit; `u64::MAX` for none.
struct Limit {
    soft: u64,
    hard: u64,
}

fn limit(limits: &str, name: &str) -> Option<Limit> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let mut columns = line.split_whitespace().map(|column| match column {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some(Limit {
        soft: columns.next()??,
        hard: columns.next()??,
    })
}

#[cfg(test)]
mod tests {
    use super::{clock, huge_pages, locked_memory, open_files};
    use crate::doctor::facts::fixtures::machine;
    use crate::doctor::{Facts, Finding, Level};

    fn check(finding: &Finding, level: Level, found: &str, advice: &str) {
        assert_eq!(finding.level, level, "{finding:?}");
        assert!(finding.finding.contains(found), "{finding:?}");
        assert!(
            finding
                .advice
                .as_deref()
                .unwrap_or_default()
                .contains(advice),
            "{finding:?}"
        );
    }

    #[test]
    fn huge_pages_should_be_there_for_the_asking() {
        for (setting, level, found, advice) in [
            (Some("always [madvise] never\n"), Level::Ok, "madvise", ""),
            (Some("[always] madvise never\n"), Level::Ok, "always", ""),
            (
                Some("always madvise [never]\n"),
                Level::Warning,
                "never",
                "echo madvise",
            ),
            (
                None,
                Level::Warning,
                "no transparent",
                "CONFIG_TRANSPARENT_HUGEPAGE",
            ),
        ] {
            check(&huge_pages(setting), level, found, advice);
        }
    }

    #[test]
    fn a_clock_that_stops_or_varies_is_told() {
        let of = |flags: &str| {
            clock(&Facts {
                cpuinfo: format!("flags : {flags}"),
                ..machine()
            })
        };
        check(&of("constant_tsc nonstop_tsc"), Level::Ok, "yes", "");
        check(
            &of("constant_tsc"),
            Level::Warning,
            "promise nonstop_tsc:",
            "invariant TSC",
        );
        check(
            &of("tsc"),
            Level::Warning,
            "constant_tsc and nonstop_tsc",
            "invariant TSC",
        );
    }

    #[test]
    fn low_limits_say_who_can_raise_them() {
        let files = |soft, hard| open_files(&format!("Max open files  {soft}  {hard}  files"));
        check(&files("20000", "20000"), Level::Ok, "at most 20000", "");
        check(&files("unlimited", "unlimited"), Level::Ok, "no limit", "");
        check(&files("256", "4096"), Level::Warning, "256", "ulimit -n");
        check(&files("256", "256"), Level::Warning, "256", "limits.conf");
        check(&open_files(""), Level::Warning, "unknown", "/proc");

        let memory = |soft| locked_memory(&format!("Max locked memory  {soft}  {soft}  bytes"));
        check(&memory("8388608"), Level::Ok, "8192 KiB", "");
        check(&memory("unlimited"), Level::Ok, "no limit", "");
        check(&memory("32768"), Level::Warning, "32 KiB", "memlock");
    }
}
