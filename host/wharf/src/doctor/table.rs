//! The report that people read.

use std::fmt;

use clap::builder::styling::{AnsiColor, Style};

use super::{Finding, Level};

/// Findings as a table, with a line below each that says what to do about it.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    findings: &'a [Finding],
    colour: bool,
}

impl<'a> Table<'a> {
    /// Makes a table, for a terminal in colour.
    #[must_use]
    pub const fn new(findings: &'a [Finding], colour: bool) -> Self {
        Self { findings, colour }
    }

    /// A style when there is colour, and one that changes nothing otherwise.
    fn style(self, style: Style) -> Style {
        if self.colour { style } else { Style::new() }
    }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = |width: usize, finding: &Finding| width.max(finding.check.chars().count());
        let width = self.findings.iter().fold("CHECK".len(), widest);
        let head = self.style(Style::new().bold());
        writeln!(
            f,
            "{head}{:<width$}  {:<7}  FINDING{head:#}",
            "CHECK", "VERDICT"
        )?;
        for Finding {
            check,
            level,
            finding,
            advice,
        } in self.findings
        {
            let (word, colour) = match level {
                Level::Ok => ("ok", AnsiColor::Green),
                Level::Warning => ("warning", AnsiColor::Yellow),
                Level::Missing => ("missing", AnsiColor::Red),
            };
            let verdict = self.style(colour.on_default());
            writeln!(
                f,
                "{check:<width$}  {verdict}{word:<7}{verdict:#}  {finding}"
            )?;
            if let Some(advice) = advice {
                writeln!(f, "{:width$}           -> {advice}", "")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Table;
    use crate::doctor::Finding;

    fn findings() -> [Finding; 2] {
        [
            Finding::ok("/dev/kvm", "opens"),
            Finding::warning("huge pages", "never", "change that"),
        ]
    }

    #[test]
    fn columns_line_up_and_advice_stands_below() {
        let expected = "\
CHECK       VERDICT  FINDING
/dev/kvm    ok       opens
huge pages  warning  never
                     -> change that
";
        assert_eq!(Table::new(&findings(), false).to_string(), expected);
    }

    #[test]
    fn colour_changes_nothing_else() {
        let coloured = Table::new(&findings(), true).to_string();
        assert!(
            coloured.contains("\x1b[33mwarning\x1b[0m  never"),
            "{coloured:?}"
        );
    }
}
