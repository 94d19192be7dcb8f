//! `wharf doctor`: what this machine can do for guests, and what to do about
//! what it cannot.
//!
//! [`Facts::gather`] reads and tries; [`examine`] alone judges, so every verdict
//! can be tested on machines that are not this one. The report is a table for
//! people and JSON for programs.

mod facts;
mod flavour;
mod kvm;
mod machine;
mod plugins;
mod table;
mod toolchain;
mod trial;

pub use facts::{Facts, KvmModules, Toolchain};
pub use table::Table;

use serde::Serialize;

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Guests run, but slower, or some command will not work.
    Warning,
    /// No guest runs.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How good it is.
    pub level: Level,
    /// What was found.
    pub finding: String,
    /// What to do about it; never for what is as it should be.
    pub advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, finding: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Ok,
            finding: finding.into(),
            advice: None,
        }
    }

    fn warning(check: &'static str, finding: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self {
            check,
            level: Level::Warning,
            finding: finding.into(),
            advice,
        }
    }

    fn missing(check: &'static str, finding: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self {
            check,
            level: Level::Missing,
            finding: finding.into(),
            advice,
        }
    }
}

/// Judges a machine. The order is that of the report.
#[must_use]
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = kvm::examine(facts);
    findings.extend(machine::examine(facts));
    findings.extend(toolchain::examine(&facts.toolchain));
    findings.push(plugins::examine(facts.plugins));
    findings
}

/// Tells whether guests run on a machine with these findings.
#[must_use]
pub fn guests_run(findings: &[Finding]) -> bool {
    findings
        .iter()
        .all(|finding| finding.level != Level::Missing)
}

#[cfg(test)]
mod tests {
    use super::facts::fixtures::machine;
    use super::{Finding, Level, examine, guests_run};

    #[test]
    fn a_good_machine_has_nothing_to_do() {
        let findings = examine(&machine());
        for finding in &findings {
            assert_eq!(
                (finding.level, &finding.advice),
                (Level::Ok, &None),
                "{finding:?}"
            );
        }
        assert!(guests_run(&findings));
    }

    #[test]
    fn programs_read_the_level_in_lower_case() {
        let finding = Finding::warning("huge pages", "never", "change it");
        assert_eq!(
            serde_json::to_string(&finding).unwrap(),
            "{\"check\":\"huge pages\",\"level\":\"warning\",\
             \"finding\":\"never\",\"advice\":\"change it\"}"
        );
    }
}
