//! What a policy is asked and may answer, and who answers while a plugin cannot.
//!
//! The same shapes as `wit/policy.wit`, which is their manual; here they are
//! values that can be recorded and asked again. Moments are nanoseconds of the
//! host's monotonic clock, durations nanoseconds.
//!
//! - [`built_in()`] answers every question.
//! - [`check()`] says whether a plugin's answer is one, and clamps it.
//! - [`rehearsal`] makes questions up, to try a plugin with.
//! - [`slot`] decides who is in force, and what follows when a plugin fails.

pub mod built_in;
pub mod check;
pub mod rehearsal;
pub mod slot;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use built_in::built_in;
pub use check::{Nonsense, STATE_LEN, check};

/// What a policy decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotName {
    /// Who runs next on a worker, and for how long.
    Scheduler,
    /// What a device is attached to, and where a connection goes.
    Router,
    /// Whether a task is replaced, how, and whether that went well.
    Upgrader,
}

/// A question to a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// `scheduler.next`
    Next(View),
    /// `router.attach`
    Attach(Attachment),
    /// `router.connect`
    Connect(Connection),
    /// `upgrader.review`
    Review(Proposal),
    /// `upgrader.transform`: the state that is to be turned into another format.
    Transform(Proposal, Vec<u8>),
    /// `upgrader.judge`: what the old version did, and the new one.
    Judge(Proposal, Observation, Observation),
}

/// What a policy says; the case is that of the question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Who runs.
    Next(Choice),
    /// What a device gets.
    Attach(AttachVerdict),
    /// Where a connection goes.
    Connect(Verdict),
    /// How to go about an upgrade.
    Review(Plan),
    /// The state in the new format, or why there is none.
    Transform(Result<Vec<u8>, String>),
    /// What becomes of a new version.
    Judge(Judgement),
}

/// How a slice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SliceEnd {
    /// It was used up, or a sleeper woke.
    Preempted,
    /// The task waits.
    Waits,
    /// The task is over.
    Ended,
}

/// The slice before this question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Slice {
    /// Who ran.
    pub replica: u32,
    /// How it ended.
    pub end: SliceEnd,
    /// For how long it ran.
    pub ran: u64,
}

/// A task that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Candidate {
    /// Which replica.
    pub replica: u32,
    /// Its weight.
    pub weight: u32,
    /// Which life of it.
    pub generation: u64,
    /// For how long it ran in this life.
    pub ran: u64,
    /// What the built-in policy goes by.
    pub virtual_time: u64,
    /// Since when it is ready.
    pub ready_since: u64,
}

/// What a worker asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct View {
    /// The time.
    pub now: u64,
    /// Which worker.
    pub worker: u32,
    /// What ran last there.
    pub last: Option<Slice>,
    /// The ready tasks, in the order of the built-in policy.
    pub ready: Vec<Candidate>,
}

/// Who runs, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Choice {
    /// Which replica.
    pub replica: u32,
    /// Which life of it.
    pub generation: u64,
    /// For how long.
    pub slice: u64,
}

/// Kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// Blocks of storage.
    Block,
    /// A byte stream.
    Stream,
    /// Ethernet frames.
    Frames,
}

/// A device that an image declares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Attachment {
    /// The time.
    pub now: u64,
    /// Whose device.
    pub replica: u32,
    /// Which life of it.
    pub generation: u64,
    /// Its name in the manifest.
    pub device: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Names of what it could be attached to.
    pub backends: Vec<String>,
}

/// What a device gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachVerdict {
    /// What the built-in policy says.
    BuiltIn,
    /// The back end of this place in the list.
    Backend(u32),
    /// Nothing, for this reason.
    Deny(String),
}

/// Which way a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From outside to a task.
    Inbound,
    /// From a task to the outside.
    Outbound,
    /// From a task to another.
    Between,
}

/// An address, IPv4 as ::ffff:a.b.c.d, and a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Endpoint {
    /// The first eight bytes.
    pub high: u64,
    /// The last eight bytes.
    pub low: u64,
    /// The port.
    pub port: u16,
}

/// A task that could take a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Target {
    /// Which replica.
    pub replica: u32,
    /// Connections that it has.
    pub connections: u32,
    /// Which life of it.
    pub generation: u64,
}

/// A new connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Connection {
    /// The time.
    pub now: u64,
    /// Drawn by lot for this connection.
    pub lot: u64,
    /// Which way it goes.
    pub direction: Direction,
    /// Who connects, when that is a task.
    pub from_replica: Option<u32>,
    /// Where it comes from.
    pub source: Endpoint,
    /// Where it was made to.
    pub destination: Endpoint,
    /// Who could take it, those with the fewest connections first.
    pub targets: Vec<Target>,
}

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Where the built-in policy says.
    BuiltIn,
    /// To the target of this place in the list.
    Target(u32),
    /// To one of the targets by lot, with these weights.
    Spread(Vec<u32>),
    /// To where it was made to, outside.
    Pass,
    /// Nowhere.
    Deny,
}

/// A version of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Version {
    /// SHA-256 of its image, in hexadecimal.
    pub digest: String,
    /// Which life of the replica.
    pub generation: u64,
    /// Format of its state; 0 when it has none.
    pub state_schema: u32,
}

/// An upgrade that somebody wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Proposal {
    /// The time.
    pub now: u64,
    /// Which replica.
    pub replica: u32,
    /// What runs now.
    pub old: Version,
    /// What is to run.
    pub new: Version,
    /// Connections that the old one has.
    pub connections: u32,
    /// Labels of the new one.
    pub labels: Vec<(String, String)>,
}

/// A canary's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Canary {
    /// Its share of new connections in percent.
    pub percent: u32,
    /// For how long.
    pub period: u64,
}

/// How to go about an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plan {
    /// As the built-in policy says.
    BuiltIn,
    /// The new one takes the old one's place.
    Replace,
    /// Both run; new connections go to the new one. Judged after this time.
    BlueGreen(u64),
    /// Both run; the new one gets a share.
    Canary(Canary),
    /// To be asked again after so long.
    Defer(u64),
    /// Not at all, for this reason.
    Refuse(String),
}

/// What one version did since an upgrade began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Observation {
    /// Connections that it took.
    pub connections: u64,
    /// Those that ended with an error.
    pub errors: u64,
    /// Times that it ended by a fault.
    pub faults: u32,
    /// Time to the first byte of its answers, median.
    pub median: u64,
    /// The same, 99th percentile.
    pub p99: u64,
}

/// What becomes of a new version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judgement {
    /// What the built-in policy says.
    BuiltIn,
    /// It stays.
    Keep,
    /// To be looked at again after so long.
    Wait(u64),
    /// It gets this share, and is looked at again.
    Advance(Canary),
    /// The old one comes back, for this reason.
    RollBack(String),
}

/// A copy that goes into memory which is there: questions are asked all the time.
impl Question {
    /// Becomes a copy of `other`, without taking new memory for what is asked often.
    pub fn become_copy_of(&mut self, other: &Self) {
        match (self, other) {
            (Self::Next(kept), Self::Next(view)) => {
                let mut ready = std::mem::take(&mut kept.ready);
                ready.clone_from(&view.ready);
                *kept = View { ready, ..*view };
            }
            (Self::Connect(kept), Self::Connect(asked)) => {
                let mut targets = std::mem::take(&mut kept.targets);
                targets.clone_from(&asked.targets);
                *kept = Connection { targets, ..*asked };
            }
            (kept, other) => *kept = other.clone(),
        }
    }
}

impl Question {
    /// Whose question it is.
    #[must_use]
    pub const fn slot(&self) -> SlotName {
        match self {
            Self::Next(_) => SlotName::Scheduler,
            Self::Attach(_) | Self::Connect(_) => SlotName::Router,
            Self::Review(_) | Self::Transform(..) | Self::Judge(..) => SlotName::Upgrader,
        }
    }
}

impl SlotName {
    /// All there are, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Scheduler, Self::Router, Self::Upgrader];

    /// As operators write it, and as the interface in `wit/policy.wit` is called.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::Router => "router",
            Self::Upgrader => "upgrader",
        }
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
