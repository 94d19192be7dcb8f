//! `wharf policy swap`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::ValueHint;
use wharf_model::policy::SlotName;

use super::{Settings, slot_parser};
use crate::build::{BuildOptions, Progress, Source};
use crate::cli::host::{Host, Waiting, whole_path};
use crate::cli::{output, table};
use crate::control::{BUILT_IN, ShadowReport, SwapReport, SwapRequest};
use crate::text::printable;
use crate::units::parse_duration;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The slot: scheduler, router or upgrader
    #[arg(value_parser = slot_parser())]
    slot: SlotName,

    /// The plugin: a component, or the directory of its package, built first;
    /// `built-in` takes out what is there
    #[arg(value_hint = ValueHint::AnyPath)]
    plugin: PathBuf,

    #[command(flatten)]
    settings: Settings,

    /// Have it answer so many live questions beside the plugin in force first, and
    /// show where the two differ
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    shadow: u64,

    /// How long to wait for those questions
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    within: Duration,

    /// Try it, and change nothing
    #[arg(long)]
    dry_run: bool,

    /// Begin anew, without the state of the plugin in force
    #[arg(long)]
    discard_state: bool,

    #[command(flatten)]
    host: Host,

    /// Print an object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: &Args, progress: Progress) -> anyhow::Result<u8> {
    let client = args.host.client()?;
    let request = SwapRequest {
        plugin: artefact(&args.plugin, progress)?,
        settings: args.settings.given().map(BTreeMap::from_iter),
        shadow: args.shadow,
        shadow_patience_ms: Some(u64::try_from(args.within.as_millis())?),
        dry_run: args.dry_run,
        discard_state: args.discard_state,
    };
    let done = patiently(|| client.swap(args.slot, &request))??;
    output::result(args.json, &done, || report(args.slot, &done))?;
    Ok(0)
}

/// Does what may take a minute, and says meanwhile that it is being done.
fn patiently<T: Send>(work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    let mut waiting = Waiting::start();
    thread::scope(|scope| {
        let work = scope.spawn(work);
        while !work.is_finished() {
            thread::sleep(Duration::from_millis(5));
            waiting.say("the plugin is being tried");
        }
        work.join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))
    })
}

/// Where a component is that the host can open, built first when it has to be.
fn artefact(plugin: &Path, progress: Progress) -> anyhow::Result<PathBuf> {
    if plugin.as_os_str() == BUILT_IN {
        return Ok(plugin.to_owned());
    }
    let options = BuildOptions::new(progress);
    whole_path(&Source::find(plugin)?.plugin_path(options)?)
}

fn report(slot: SlotName, done: &SwapReport) -> String {
    let mut text = String::new();
    if let Some(shadow) = &done.shadow {
        tell_shadow(&mut text, shadow);
    }
    let [old, new, state] = [&done.old, &done.new, &done.state].map(|it| printable(it));
    // Writing to a string never fails.
    let _ = match done.pause_ns {
        Some(ns) => writeln!(
            text,
            "{slot}: {new} in place of {old}, callers waited {}, state: {state}",
            table::time(ns)
        ),
        None => writeln!(
            text,
            "{slot}: {new} could take the place of {old}, state: {state}; nothing was changed"
        ),
    };
    text
}

fn tell_shadow(text: &mut String, shadow: &ShadowReport) {
    let ShadowReport {
        asked,
        agreed,
        left_out,
        differences,
    } = shadow;
    let _ = write!(text, "shadow: {agreed} of {asked} answers alike");
    let _ = match left_out {
        0 => writeln!(text),
        _ => writeln!(text, ", {left_out} questions left out"),
    };
    for it in differences {
        let part = |name: &str| printable(&it.get(name).cloned().unwrap_or_default().to_string());
        let _ = writeln!(
            text,
            "  question {}: was {}, would be {}",
            part("number"),
            part("was"),
            part("would")
        );
    }
}

#[cfg(test)]
mod tests {
    use wharf_model::policy::SlotName;

    use super::report;
    use crate::control::{ShadowReport, SwapReport};

    #[test]
    fn a_report_says_what_changed_and_how_the_two_compare() {
        let mut done = SwapReport {
            old: "built-in".to_owned(),
            new: "fair-share 1.0.0".to_owned(),
            rehearsed: 6,
            shadow: None,
            state: "none".to_owned(),
            pause_ns: Some(18_400),
        };
        assert_eq!(
            report(SlotName::Scheduler, &done),
            "scheduler: fair-share 1.0.0 in place of built-in, callers waited 18µs, state: none\n"
        );
        done.pause_ns = None;
        done.shadow = Some(ShadowReport {
            asked: 100,
            agreed: 99,
            left_out: 0,
            differences: vec![serde_json::json!({"number": 7, "was": {"a": 1}, "would": 2})],
        });
        assert_eq!(
            report(SlotName::Scheduler, &done),
            "shadow: 99 of 100 answers alike\n  question 7: was {\"a\":1}, would be 2\n\
             scheduler: fair-share 1.0.0 could take the place of built-in, state: none; nothing \
             was changed\n"
        );
    }
}
