//! Judging what builds guests. Guests that are built already run without any of
//! it, so nothing here is ever missing.

use super::{Finding, Toolchain};

/// The oldest Rust that the guest runtime compiles with.
const OLDEST: (u32, u32) = (1, 95);

pub(super) fn examine(toolchain: &Toolchain) -> Vec<Finding> {
    vec![
        rust("cargo", toolchain.cargo.as_deref()),
        rust("rustc", toolchain.rustc.as_deref()),
        match &toolchain.linker {
            Some(version) => Finding::ok("linker", version.clone()),
            None => Finding::warning(
                "linker",
                "no cc: guests cannot be built",
                "install a C compiler, by which rustc links: sudo apt install gcc, or its like",
            ),
        },
    ]
}

fn rust(check: &'static str, version: Option<&str>) -> Finding {
    let Some(version) = version else {
        return Finding::warning(
            check,
            "not found: guests cannot be built",
            "install Rust from https://rustup.rs",
        );
    };
    match parse(version) {
        Some(number) if number >= OLDEST => Finding::ok(check, version),
        _ => Finding::warning(
            check,
            format!("{version}: guests need 1.95 or later"),
            "rustup update stable",
        ),
    }
}

/// Major and minor number of `cargo 1.95.0 (…)`.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{examine, parse};
    use crate::doctor::{Level, Toolchain};

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parse("rustc 1.95.0 (59807616e 2026-04-14)"), Some((1, 95)));
        assert_eq!(parse("cargo 1.100.0-nightly"), Some((1, 100)));
        assert_eq!(parse("cargo"), None);
        assert_eq!(parse("cargo one.two"), None);
    }

    #[test]
    fn what_is_old_or_not_there_is_a_warning_with_a_way_out() {
        let toolchain = Toolchain {
            cargo: None,
            rustc: Some("rustc 1.85.0 (x)".to_owned()),
            linker: None,
        };
        let findings = examine(&toolchain);
        assert_eq!(findings.len(), 3);
        for (finding, advice) in
            findings
                .iter()
                .zip(["https://rustup.rs", "rustup update", "apt install gcc"])
        {
            assert_eq!(finding.level, Level::Warning);
            assert!(
                finding.advice.as_deref().unwrap().contains(advice),
                "{finding:?}"
            );
        }
    }
}
