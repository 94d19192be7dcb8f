//! `wharf policy check`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueHint;
use serde::Serialize;
use wharf_policy::{Engine, Plugin};

use crate::build::{BuildOptions, Progress, Source};
use crate::cli::facts::Facts;
use crate::cli::output;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wharf policy check plugins/fair-share    a package, built first
  wharf policy check fair-share.wasm       a component of whatever language")]
pub(super) struct Args {
    /// The plugin: a component, or the directory of a package, which is built first
    #[arg(value_hint = ValueHint::AnyPath)]
    plugin: PathBuf,

    /// Print an object
    #[arg(long)]
    json: bool,
}

/// What there is to say of a plugin.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Where it is.
    file: String,
    name: &'a str,
    version: &'a str,
    /// SHA-256 of the component.
    digest: &'a str,
    size_bytes: usize,
    /// Slots that it fits.
    slots: Vec<&'static str>,
    imports: &'a [String],
    exports: &'a [String],
    /// The format of the state that it writes; 0 when it keeps none.
    state_schema: u32,
    /// The oldest format that it reads.
    oldest_schema: u32,
}

/// Runs the command.
pub(super) fn run(args: &Args, progress: Progress) -> anyhow::Result<u8> {
    let options = BuildOptions::new(progress);
    let path = Source::find(&args.plugin)?.plugin_path(options)?;
    let plugin = Plugin::open(&Engine::new(None)?, &path)
        .with_context(|| format!("{} is no plugin", path.display()))?;
    let report = Report::new(&path, &plugin);
    output::result(args.json, &report, || report.text(Facts::new()))?;
    Ok(0)
}

impl<'a> Report<'a> {
    fn new(path: &Path, plugin: &'a Plugin) -> Self {
        Self {
            file: path.display().to_string(),
            name: &plugin.identity.name,
            version: &plugin.identity.version,
            digest: &plugin.digest,
            size_bytes: plugin.component.len(),
            slots: plugin.slots().iter().map(|slot| slot.as_str()).collect(),
            imports: &plugin.surface.imports,
            exports: &plugin.surface.exports,
            state_schema: plugin.identity.state_schema,
            oldest_schema: plugin.identity.oldest_schema,
        }
    }

    fn text(&self, mut facts: Facts) -> String {
        let size = format!("{} bytes", self.size_bytes);
        let state = match (self.oldest_schema, self.state_schema) {
            (_, 0) => "none is kept".to_owned(),
            (oldest, schema) if oldest == schema => format!("format {schema}"),
            (oldest, schema) => format!("format {schema}; reads {oldest} to {schema}"),
        };
        let slots = self.slots.join(", ");
        facts.row("name", self.name);
        facts.row("version", self.version);
        facts.row("slots", &slots);
        facts.row("state", &state);
        facts.row("file", &self.file);
        facts.row("size", &size);
        facts.row("digest", self.digest);
        facts.list("imports", self.imports);
        facts.list("exports", self.exports);
        facts.into_text()
    }
}

#[cfg(test)]
mod tests {
    use super::Report;
    use crate::cli::facts::Facts;

    fn report<'a>(imports: &'a [String], exports: &'a [String]) -> Report<'a> {
        Report {
            file: "a\nb.wasm".to_owned(),
            name: "fair-share",
            version: "1.2.0",
            digest: "5e2b",
            size_bytes: 12345,
            slots: vec!["scheduler", "router"],
            imports,
            exports,
            state_schema: 3,
            oldest_schema: 2,
        }
    }

    #[test]
    fn the_report_is_aligned_and_names_everything() {
        let exports = ["lifecycle".to_owned(), "router".to_owned()];
        let expected = "\
name      fair-share
version   1.2.0
slots     scheduler, router
state     format 3; reads 2 to 3
file      a\\nb.wasm
size      12345 bytes
digest    5e2b
imports   nothing
exports   lifecycle
          router
";
        assert_eq!(report(&[], &exports).text(Facts::with(false)), expected);
    }

    #[test]
    fn state_is_told_as_it_is() {
        for (oldest, schema, line) in [
            (0, 0, "state     none is kept\n"),
            (1, 1, "state     format 1\n"),
            (0, 2, "state     format 2; reads 0 to 2\n"),
        ] {
            let report = Report {
                oldest_schema: oldest,
                state_schema: schema,
                ..report(&[], &[])
            };
            let text = report.text(Facts::with(false));
            assert!(text.contains(line), "{text}");
        }
    }
}
