//! What a cell is told and what it tells: owned values that could as well cross
//! a socket, so that a cell can become a process of its own one day.
//!
//! - It is started with a [`CellConfig`](super::CellConfig).
//! - It is told a [`Command`], and each is answered by one [`Reply`].
//! - It tells of itself, unasked, an [`Event`] at a time, and what its guests
//!   write, a [`Piece`](super::console::Piece) at a time.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a cell is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Show every replica; answered by [`Reply::Tasks`].
    Tasks,
    /// Stop what this means for good; answered when that has begun.
    Stop(Selector),
    /// Begin a new generation of what this means, ending the present one first;
    /// answered when that has begun.
    Restart(Selector),
    /// Put another image in the place of what this means runs; answered when that has
    /// begun, by [`Reply::Upgrading`].
    Upgrade {
        /// What is to be upgraded.
        selector: Selector,
        /// The new image's file.
        #[serde(with = "crate::path")]
        image: PathBuf,
    },
    /// Put the image before in the place of what this means runs; answered as
    /// [`Command::Upgrade`].
    Rollback(Selector),
    /// Show every upgrade that is kept; answered by [`Reply::Upgrades`].
    Upgrades,
    /// Write what this means, one replica, into a file; answered when that is done, by
    /// [`Reply::Snapshot`].
    Snapshot {
        /// What is to be frozen.
        selector: Selector,
        /// The file that is made, or replaced.
        #[serde(with = "crate::path")]
        file: PathBuf,
    },
    /// Have this program, started beside this one, go on with everything; answered when it
    /// does, by [`Reply::HandedOver`].
    HandOver {
        /// The program's file.
        #[serde(with = "crate::path")]
        program: PathBuf,
    },
    /// End everything; a second time, at once. Answered when that has begun.
    Down,
}

/// How a cell answers a [`Command`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Every replica of every task, in the order of the configuration.
    Tasks(Vec<TaskStatus>),
    /// It is being done.
    Begun,
    /// An upgrade has begun.
    Upgrading(UpgradeStatus),
    /// Every upgrade that is kept, the oldest first.
    Upgrades(Vec<UpgradeStatus>),
    /// A snapshot is written.
    Snapshot(SnapshotStatus),
    /// Another process goes on, and this one ends.
    HandedOver(HandoverStatus),
    /// It cannot be done, and nothing is.
    Refused(NoSuchTask),
    /// It cannot be done now, for this reason, and nothing is.
    Denied(String),
}

/// No task is called so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("no task is called {selector} (try `wharf ps`)")]
pub struct NoSuchTask {
    /// What was asked for.
    pub selector: Selector,
}

/// A task, one replica of it, or one life of that: `web`, `web.1` or `web.1@3`, also when it
/// is serialised.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector {
    /// The task's name in the configuration.
    pub name: String,
    /// Which replica, from 0; all when there is none.
    pub index: Option<u32>,
    /// Which generation of it: of two that run beside each other one, and otherwise only
    /// if it is that.
    pub generation: Option<u64>,
}

/// A selector that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no task: write NAME, NAME.INDEX or NAME.INDEX@GENERATION, such as web, web.1 \
     or web.1@3"
)]
pub struct SelectorError {
    /// What was written.
    pub text: String,
}

/// Where a replica is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// Its virtual machine is being made, or it waits out a back-off before that.
    Starting,
    /// It could run, and another one does.
    Ready,
    /// It runs.
    Running,
    /// It waits for a time or an event.
    Waiting,
    /// It ended by itself or was stopped, and is not to run again.
    Stopped,
    /// It broke a rule or could not be started, and is not to run again.
    Faulted,
}

/// Where a life of a replica stands that is not the replica's present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Beside {
    /// It is to take the present one's place.
    Next,
    /// It had the place before, and ends when its connections do.
    Last,
}

/// How an upgrade stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UpgradeState {
    /// It is being done.
    Running,
    /// The new version is in place.
    Kept,
    /// The new version served, and the old one is in place again.
    RolledBack,
    /// The new version never served; the old one was in place all the time.
    Refused,
}

/// An upgrade of a task, or of one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpgradeStatus {
    /// Counts upgrades of this cell, from 1.
    pub id: u64,
    /// What is upgraded, as it was asked for.
    #[schema(value_type = String)]
    pub task: Selector,
    /// The image before.
    pub from: String,
    /// The image that is to run.
    pub to: String,
    /// How it stands.
    pub state: UpgradeState,
    /// What is being done, in a word or two.
    pub step: Option<String>,
    /// Replicas that are to be upgraded.
    pub replicas: u32,
    /// Of these, those that are.
    pub done: u32,
    /// Connections that went over to the new version.
    pub connections: u32,
    /// Bytes of state that were handed over.
    pub state_bytes: u64,
    /// For how long a replica stood still, in nanoseconds: the longest.
    pub pause_ns: u64,
    /// Why it ended as it did, when it was not kept.
    pub reason: Option<String>,
}

/// A snapshot that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotStatus {
    /// The replica that was frozen, as `web.0`; it goes on.
    pub task: String,
    /// Which life of it.
    pub generation: u64,
    /// The file.
    pub file: String,
    /// Bytes of the guest's memory that are in it.
    pub memory_bytes: u64,
    /// For how long the guest stood still, in nanoseconds.
    pub pause_ns: u64,
    /// How long it took in all, in nanoseconds.
    pub took_ns: u64,
}

/// A hand-over of the host that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HandoverStatus {
    /// The process that is the host now.
    pub pid: u32,
    /// Its version of wharf.
    pub version: String,
    /// Guests that went over.
    pub guests: u32,
    /// Connections that went with them.
    pub connections: u32,
    /// For how long a guest stood still, in nanoseconds: the median.
    pub pause_median_ns: u64,
    /// The same: the longest.
    pub pause_max_ns: u64,
    /// How long it took in all, in nanoseconds.
    pub took_ns: u64,
}

/// One replica of a task, as `wharf ps` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskStatus {
    /// The task's name.
    pub name: String,
    /// Which replica, from 0.
    pub index: u32,
    /// Which life of the replica, from 1.
    pub generation: u64,
    /// Where it is in that life.
    pub state: TaskState,
    /// The image's file.
    pub image: String,
    /// Memory of the guest in bytes.
    pub memory_bytes: u64,
    /// Processor time spent in the guest in nanoseconds, over all generations.
    pub run_ns: u64,
    /// Times that the guest was left, over all generations.
    pub exits: u64,
    /// Bytes that it wrote to its console, over all generations.
    pub console_bytes: u64,
    /// Connections that it has.
    pub connections: u32,
    /// Connections that it had, over all generations.
    pub connections_total: u64,
    /// Those of them that were cut off, by either side.
    pub connection_errors: u64,
    /// Bytes that came over connections, over all generations.
    pub received_bytes: u64,
    /// Bytes that went over connections, over all generations.
    pub sent_bytes: u64,
    /// Frames for it that went nowhere, over all generations: it had no room for them,
    /// or they were too long.
    pub received_frames_dropped: u64,
    /// Frames of its that went nowhere, over all generations: they were not from its
    /// own address, too short or too long, or more than was taken.
    pub sent_frames_dropped: u64,
    /// Times that it was started again.
    pub restarts: u64,
    /// Status of the last generation that ended, as `wharf run` would have
    /// exited with.
    pub exit_status: Option<u8>,
    /// Its weight in the scheduler.
    pub weight: u32,
    /// The part of the replica's new connections that it gets, in percent.
    pub share: u32,
    /// Where it stands, when it is not the replica's present life.
    pub beside: Option<Beside>,
    /// The worker that has it; none when it does not live.
    pub worker: Option<u32>,
    /// Why it is where it is, for people: the last fault, refusal or stop.
    pub reason: Option<String>,
}

/// Something that happened, in the order in which it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counts events of this cell, from 1.
    pub seq: u64,
    /// When, in nanoseconds since 1970.
    pub time_ns: u64,
    /// The replica, as `web.0`, or the slot, as `policy.router`; none when it concerns
    /// the whole cell.
    pub task: Option<String>,
    /// Its generation, 0 when it concerns the whole cell.
    pub generation: u64,
    /// What.
    pub kind: EventKind,
    /// The same for people; several lines for a fault report.
    pub detail: String,
}

/// Kinds of events.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A generation's first instruction is about to run.
    Started,
    /// A generation could not be made.
    StartFailed,
    /// The guest ended by an exit hypercall.
    Exited,
    /// The guest broke a rule.
    Faulted,
    /// The host ended the guest.
    Stopped,
    /// A new generation will be started after a pause.
    BackingOff,
    /// A replica went to another worker.
    Moved,
    /// A snapshot of it was written.
    Snapshotted,
    /// Another version of a task is to take its place.
    UpgradeBegun,
    /// It has got another part of the connections.
    UpgradeShared,
    /// It is in place.
    Upgraded,
    /// It served, and the old one is in place again.
    UpgradeRolledBack,
    /// It never served, and the old one is in place.
    UpgradeRefused,
    /// The cell serves.
    Up,
    /// Another process goes on with it.
    HandedOver,
    /// Another process was to go on with it, and it stays.
    HandoverFailed,
    /// The cell ends.
    Down,
    /// Another plugin decides, or what is built in by the operator's wish.
    PolicySwapped,
    /// A plugin passed its probation; the one before it is let go.
    PolicyConfirmed,
    /// A plugin failed to answer; what is built in did.
    PolicyStruck,
    /// A plugin was taken out until it is tried again.
    PolicyQuarantined,
    /// A plugin is tried again.
    PolicyRestored,
    /// The plugin before decides again.
    PolicyRolledBack,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 23] = [
        Self::Started,
        Self::StartFailed,
        Self::Exited,
        Self::Faulted,
        Self::Stopped,
        Self::BackingOff,
        Self::Moved,
        Self::Snapshotted,
        Self::UpgradeBegun,
        Self::UpgradeShared,
        Self::Upgraded,
        Self::UpgradeRolledBack,
        Self::UpgradeRefused,
        Self::Up,
        Self::HandedOver,
        Self::HandoverFailed,
        Self::Down,
        Self::PolicySwapped,
        Self::PolicyConfirmed,
        Self::PolicyStruck,
        Self::PolicyQuarantined,
        Self::PolicyRestored,
        Self::PolicyRolledBack,
    ];

    /// What it is called wherever it is written, JSON and metrics included.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::StartFailed => "start-failed",
            Self::Exited => "exited",
            Self::Faulted => "faulted",
            Self::Stopped => "stopped",
            Self::BackingOff => "backing-off",
            Self::Moved => "moved",
            Self::Snapshotted => "snapshotted",
            Self::UpgradeBegun => "upgrade-begun",
            Self::UpgradeShared => "upgrade-shared",
            Self::Upgraded => "upgraded",
            Self::UpgradeRolledBack => "upgrade-rolled-back",
            Self::UpgradeRefused => "upgrade-refused",
            Self::Up => "up",
            Self::HandedOver => "handed-over",
            Self::HandoverFailed => "handover-failed",
            Self::Down => "down",
            Self::PolicySwapped => "policy-swapped",
            Self::PolicyConfirmed => "policy-confirmed",
            Self::PolicyStruck => "policy-struck",
            Self::PolicyQuarantined => "policy-quarantined",
            Self::PolicyRestored => "policy-restored",
            Self::PolicyRolledBack => "policy-rolled-back",
        }
    }
}

impl Selector {
    /// Says whether it means this replica, or a life of it.
    #[must_use]
    pub fn matches(&self, name: &str, index: u32) -> bool {
        self.name == name && self.index.is_none_or(|wanted| wanted == index)
    }

    /// Says whether it means this life of a replica.
    #[must_use]
    pub fn means(&self, task: &TaskStatus) -> bool {
        let is_it = |wanted| wanted == task.generation;
        self.matches(&task.name, task.index) && self.generation.is_none_or(is_it)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let error = || SelectorError {
            text: text.to_owned(),
        };
        // The standard library takes a sign, too.
        let number = |text: &str| {
            let number = text.parse::<u64>().ok();
            number.filter(|_| !text.starts_with('+')).ok_or_else(error)
        };
        let (replica, generation) = match text.split_once('@') {
            Some((replica, generation)) => (replica, Some(number(generation)?)),
            None => (text, None),
        };
        let (name, index) = match replica.rsplit_once('.') {
            Some((name, index)) => (name, Some(number(index)?)),
            None => (replica, None),
        };
        let index = index.map(u32::try_from).transpose();
        let index = index.map_err(|_| error())?;
        // Each replica counts its own.
        let is_whole = generation.is_none() || index.is_some();
        if is_task_name(name) && is_whole {
            Ok(Self {
                name: name.to_owned(),
                index,
                generation,
            })
        } else {
            Err(error())
        }
    }
}

impl TryFrom<String> for Selector {
    type Error = SelectorError;

    fn try_from(text: String) -> Result<Self, SelectorError> {
        text.parse()
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.to_string()
    }
}

/// Says whether a task may be called so: letters, digits, `-` and `_`, 1 to 63
/// of them. No dot: that sets the index apart.
#[must_use]
pub fn is_task_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(index) = self.index {
            write!(f, ".{index}")?;
        }
        match self.generation {
            Some(generation) => write!(f, "@{generation}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{EventKind, Selector};

    /// The schema is derived from the type, so it has every variant.
    #[test]
    fn every_kind_is_listed_and_called_what_json_calls_it() {
        let schema = serde_json::to_value(<EventKind as utoipa::PartialSchema>::schema()).unwrap();
        let words: Vec<_> = EventKind::ALL.into_iter().map(EventKind::word).collect();
        assert_eq!(schema["enum"], serde_json::json!(words));
    }

    #[test]
    fn a_selector_names_a_task_or_a_replica() {
        let parse = |text: &str| text.parse::<Selector>();
        let web: Selector = parse("web").unwrap();
        assert!(web.matches("web", 0) && web.matches("web", 7) && !web.matches("we", 0));
        let first = parse("web.1").unwrap();
        assert!(first.matches("web", 1) && !first.matches("web", 0));
        assert_eq!(first.to_string(), "web.1");
        let life = parse("web.1@3").unwrap();
        assert_eq!(
            (life.generation, life.to_string().as_str()),
            (Some(3), "web.1@3")
        );
        let mut status = crate::control::fake::status("web", 1);
        for (generation, is_meant) in [(2, false), (3, true)] {
            status.generation = generation;
            assert_eq!(life.means(&status), is_meant);
            assert!(first.means(&status) && web.means(&status));
        }
        for bad in [
            "",
            ".",
            ".1",
            "web.",
            "web.x",
            "web.-1",
            "web.+1",
            "wéb",
            "web\u{200b}",
            "a b",
            "web.1.2",
            "web.99999999999",
            "web@1",
            "web.1@",
            "web.1@x",
            "web.1@+1",
            "web.1@1@1",
            "@1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
