//! Traces: what a slot was asked and answered, as lines of JSON, and asking it
//! again of another plugin.
//!
//! The first line says what the trace is; each further one is a question with its
//! answer, or how many were left out because whoever wrote them was too slow.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wharf_model::policy::{SlotName, check};

use crate::instance::{Fault, Instance, Setup, State};
use crate::plugin::Plugin;
use crate::seen::{Seen, Shown, Window, window};
use crate::slot::{Difference, Slot};

/// Number of the format of traces.
pub const TRACE_VERSION: u32 = 1;

/// Questions that wait to be written.
const QUEUE: usize = 4096;

/// Bytes of a line: a question with a mebibyte of state, written as numbers.
const LINE_LEN: u64 = 32 << 20;

/// How long an answer may take on replay: nobody waits for it, and a slow machine
/// must not change what it says.
const REPLAY_TIME: Duration = Duration::from_secs(1);

/// One line of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TraceLine {
    /// The first.
    Trace(TraceHeader),
    /// A question and its answer.
    Seen(Box<Seen>),
    /// So many are missing here.
    LeftOut(u64),
}

/// What a trace begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TraceHeader {
    /// [`TRACE_VERSION`].
    pub version: u32,
    /// Which slot was watched.
    pub slot: SlotName,
    /// Who was in force when it began; none for what is built in.
    pub plugin: Option<TracedPlugin>,
    /// What plugins were configured with.
    pub setup: Setup,
}

/// The plugin that was in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TracedPlugin {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its component.
    pub digest: String,
    /// Its state when the trace began.
    pub state: Option<State>,
}

/// A trace that is being made. It ends when this is dropped.
#[derive(Debug)]
pub struct Trace {
    /// Its first line.
    pub header: TraceHeader,
    window: Window,
}

/// What came of asking another plugin again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// The slot that was traced.
    pub slot: SlotName,
    /// Who answered then.
    pub was: String,
    /// Who answered now.
    pub now: String,
    /// Questions that were asked.
    pub asked: u64,
    /// Those that were answered alike.
    pub same: u64,
    /// Those that were answered otherwise.
    pub differ: u64,
    /// Those that were not answered, or with nonsense.
    pub failed: u64,
    /// Questions that the trace lacks.
    pub left_out: u64,
    /// What became of the state that the trace begins with.
    pub state: String,
    /// The first answers that differ.
    pub differences: Vec<Difference>,
    /// The first failures.
    pub failures: Vec<ReplayFailure>,
}

/// A question that was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplayFailure {
    /// Which, from 0.
    pub number: u64,
    /// Why not.
    pub reason: String,
}

/// How to replay.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// What the plugin is configured with, in place of what the trace says.
    pub settings: Option<Vec<(String, String)>>,
    /// How many differences and failures to report.
    pub report: usize,
}

/// A trace that cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be read.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// It is no trace.
    #[error("it is no trace: its first line has to say what it is")]
    NoHeader,
    /// Another version's.
    #[error("it is a trace of version {0}, this is version {TRACE_VERSION}")]
    Version(u32),
    /// A line that is none.
    #[error("line {line}: {reason}")]
    Line {
        /// Which, from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// The plugin answers other questions.
    #[error("it is a trace of the {slot}, and {plugin} is none")]
    NotForSlot {
        /// The slot that was traced.
        slot: SlotName,
        /// The plugin.
        plugin: String,
    },
    /// The plugin cannot be set up as the trace says.
    #[error("{plugin}: {fault}")]
    Fault {
        /// The plugin.
        plugin: String,
        /// What went wrong.
        fault: Fault,
    },
}

impl Trace {
    /// Begins to trace a slot.
    #[must_use]
    pub fn start(slot: &Slot) -> Self {
        let (watcher, window) = window(QUEUE);
        let installed = slot.watch(watcher);
        let plugin = installed.as_ref().map(|it| TracedPlugin {
            name: it.plugin.identity.name.clone(),
            version: it.plugin.identity.version.clone(),
            digest: it.plugin.digest.clone(),
            state: it.state.as_deref().cloned(),
        });
        let setup = installed.map_or_else(|| slot.bare_setup(), |it| Setup::clone(&it.setup));
        let header = TraceHeader {
            version: TRACE_VERSION,
            slot: slot.name(),
            plugin,
            setup,
        };
        Self { header, window }
    }

    /// The next line; none when there is none for so long.
    #[must_use]
    pub fn next(&self, patience: Duration) -> Option<TraceLine> {
        match self.window.next(patience)? {
            Shown::Seen(seen) => Some(TraceLine::Seen(seen)),
            Shown::LeftOut(count) => Some(TraceLine::LeftOut(count)),
        }
    }
}

impl TraceLine {
    /// As it stands in a file, with its newline.
    ///
    /// # Errors
    ///
    /// Never: all it is made of can be written as JSON.
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}

/// Asks a plugin everything that a trace says was asked, and compares. The same
/// plugin, trace and options give the same report, on any machine.
///
/// # Errors
///
/// When it is no trace, or the plugin is not for its slot or cannot be set up.
pub fn replay(
    plugin: &Arc<Plugin>,
    trace: &mut impl BufRead,
    options: &ReplayOptions,
) -> Result<Replayed, ReplayError> {
    let header = match read_line(trace, 1)? {
        Some(TraceLine::Trace(header)) => header,
        _ => return Err(ReplayError::NoHeader),
    };
    if header.version != TRACE_VERSION {
        return Err(ReplayError::Version(header.version));
    }
    if !plugin.fits(header.slot) {
        return Err(ReplayError::NotForSlot {
            slot: header.slot,
            plugin: plugin.title(),
        });
    }
    let (mut instance, state) = prepare(plugin, &header, options)?;
    let was = header.plugin.map_or_else(
        || "built-in".to_owned(),
        |it| format!("{} {}", it.name, it.version),
    );
    let mut report = Replayed {
        slot: header.slot,
        was,
        now: plugin.title(),
        asked: 0,
        same: 0,
        differ: 0,
        failed: 0,
        left_out: 0,
        state,
        differences: Vec::new(),
        failures: Vec::new(),
    };
    let mut line = 1_u64;
    loop {
        line = line.saturating_add(1);
        match read_line(trace, line)? {
            None => return Ok(report),
            Some(TraceLine::LeftOut(count)) => {
                report.left_out = report.left_out.saturating_add(count);
            }
            Some(TraceLine::Seen(seen)) if seen.question.slot() == header.slot => {
                let said = ask(&mut instance, &seen);
                // A store that trapped cannot be entered again.
                if matches!(said, Err(Asked::Fault(_))) {
                    (instance, _) =
                        prepare(plugin, &header_of(&header.setup, header.slot), options)?;
                }
                report.add(*seen, said.map_err(|it| it.to_string()), options.report);
            }
            Some(_) => {
                return Err(ReplayError::Line {
                    line,
                    reason: "it does not belong into this trace".to_owned(),
                });
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Asked {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error(transparent)]
    Nonsense(#[from] wharf_model::policy::Nonsense),
}

fn ask(instance: &mut Instance, seen: &Seen) -> Result<wharf_model::policy::Answer, Asked> {
    let answer = instance.ask(&seen.question, REPLAY_TIME)?;
    Ok(check(&seen.question, answer)?)
}

impl Replayed {
    fn add(&mut self, seen: Seen, said: Result<wharf_model::policy::Answer, String>, most: usize) {
        let number = self.asked;
        self.asked = self.asked.saturating_add(1);
        match said {
            Ok(answer) if answer == seen.answer => self.same = self.same.saturating_add(1),
            Ok(would) => {
                self.differ = self.differ.saturating_add(1);
                if self.differences.len() < most {
                    self.differences.push(Difference {
                        number,
                        question: seen.question,
                        was: seen.answer,
                        would,
                    });
                }
            }
            Err(reason) => {
                self.failed = self.failed.saturating_add(1);
                if self.failures.len() < most {
                    self.failures.push(ReplayFailure { number, reason });
                }
            }
        }
    }
}

/// A header with nothing but what configures.
fn header_of(setup: &Setup, slot: SlotName) -> TraceHeader {
    TraceHeader {
        version: TRACE_VERSION,
        slot,
        plugin: None,
        setup: setup.clone(),
    }
}

/// An instance that is where the traced one was, as far as it can be. Also says
/// what became of the state.
fn prepare(
    plugin: &Arc<Plugin>,
    header: &TraceHeader,
    options: &ReplayOptions,
) -> Result<(Instance, String), ReplayError> {
    let failed = |fault| ReplayError::Fault {
        plugin: plugin.title(),
        fault,
    };
    let mut instance = Instance::new(plugin).map_err(failed)?;
    let own = &plugin.identity;
    let same = header.plugin.as_ref().filter(|it| it.name == own.name);
    let settings = match (&options.settings, same) {
        (Some(settings), _) => settings.clone(),
        (None, Some(_)) => header.setup.settings.clone(),
        // Another plugin's settings would only be refused.
        (None, None) => Vec::new(),
    };
    let setup = Setup {
        settings,
        tasks: header.setup.tasks.clone(),
    };
    instance.configure(&setup).map_err(failed)?;
    let state = same.and_then(|it| it.state.as_ref());
    let said = match state {
        None => "none".to_owned(),
        Some(state) if (own.oldest_schema..=own.state_schema).contains(&state.schema) => {
            instance.restore(state).map_err(failed)?;
            format!("{} bytes restored", state.bytes.len())
        }
        Some(state) => format!("format {} is not read: it began anew", state.schema),
    };
    Ok((instance, said))
}

fn read_line(trace: &mut impl BufRead, line: u64) -> Result<Option<TraceLine>, ReplayError> {
    let mut bytes = Vec::new();
    trace
        .take(LINE_LEN)
        .read_until(b'\n', &mut bytes)
        .map_err(ReplayError::Read)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.last() != Some(&b'\n') {
        let reason = "it is cut, or longer than a line of a trace is".to_owned();
        return Err(if line == 1 {
            ReplayError::NoHeader
        } else {
            ReplayError::Line { line, reason }
        });
    }
    match serde_json::from_slice(&bytes) {
        Ok(read) => Ok(Some(read)),
        Err(_) if line == 1 => Err(ReplayError::NoHeader),
        Err(e) => Err(ReplayError::Line {
            line,
            reason: e.to_string(),
        }),
    }
}
