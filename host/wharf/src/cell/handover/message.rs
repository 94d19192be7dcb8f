//! What the two processes say to each other.
//!
//! A newer version may add fields that have a default, and messages that only a newer
//! one is sent; nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use wharf_abi::{Answer, Status};
use wharf_machine::handover::{Announced, BadLuggage, BytesRef, Carried, FileRef, Luggage};
use wharf_model::cell::{Cell as Model, TaskKey};
use wharf_model::{Action, Instant};
use wharf_policy::CarriedSlots;

use crate::cell::console::Piece;
use crate::cell::meters::Counts;
use crate::cell::protocol::{Event, EventKind, UpgradeStatus};
use crate::cell::{CellConfig, TaskSpec};
use crate::guest::CarriedRun;
use crate::net::Publish;

/// A message.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::cell) enum Message {
    /// Who speaks.
    Hello {
        /// [`FORMAT`](super::FORMAT).
        format: u32,
        /// Of wharf, for people.
        version: String,
    },
    /// Everything but the guests.
    World(Box<World>),
    /// Guests can come.
    Ready,
    /// An image, which has the next number.
    Image(BytesRef),
    /// A guest is about to come: a machine can be made for it.
    Announce(Box<Announcement>),
    /// Is its machine there?
    Reserve(TaskKey),
    /// It is.
    Reserved,
    /// The guest does not come: it has ended, or is not to be had.
    Nevermind(TaskKey),
    /// It comes.
    Guest(Box<CarriedGuest>),
    /// It is taken.
    Taken,
    /// Something is not done, for this reason.
    Refused(String),
    /// Whatever was taken is to be given back.
    GiveBack,
    /// A guest that was taken has ended meanwhile.
    Lost(TaskKey),
    /// Everything was given back.
    Empty,
    /// All guests have come.
    Finish(Box<Finish>),
    /// The other process is the host now.
    Serving,
}

/// What a new process sets itself up with.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cell) struct World {
    pub(in crate::cell) config: CellConfig,
    pub(in crate::cell) slots: CarriedSlots,
    /// The components of plugins, by their digests.
    pub(in crate::cell) components: Vec<(String, BytesRef)>,
    pub(in crate::cell) ports: Vec<PortFile>,
    /// What the addresses at the switch begin with.
    pub(in crate::cell) switch: [u8; 2],
}

/// A published port that is listened on.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cell) struct PortFile {
    pub(in crate::cell) task: usize,
    pub(in crate::cell) publish: Publish,
    pub(in crate::cell) listener: FileRef,
}

/// A guest that still runs.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cell) struct Announcement {
    pub(in crate::cell) key: TaskKey,
    pub(in crate::cell) spec: TaskSpec,
    /// The number of its image.
    pub(in crate::cell) image: usize,
    pub(in crate::cell) machine: Announced,
    /// What is kept of its console so far.
    pub(in crate::cell) console: CarriedConsole,
}

/// A part of a console.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cell) struct CarriedConsole {
    pub(in crate::cell) start: u64,
    pub(in crate::cell) bytes: BytesRef,
}

/// A guest that stands still.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cell) struct CarriedGuest {
    pub(in crate::cell) key: TaskKey,
    pub(in crate::cell) machine: Carried,
    pub(in crate::cell) run: CarriedRun,
    pub(in crate::cell) next: Next,
    pub(in crate::cell) counts: Counts,
    /// What was written to its console since it was announced.
    pub(in crate::cell) console: CarriedConsole,
}

/// What is to be done first at its next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::cell) enum Next {
    /// Enter it, with the two registers of an answer.
    Enter(Option<(u64, u64)>),
    Park(Option<Instant>),
    Write(Option<Instant>),
}

impl Next {
    /// None for a guest that is over.
    pub(in crate::cell) fn of(action: Action) -> Option<Self> {
        Some(match action {
            Action::Enter(answer) => Self::Enter(answer.map(|it| (it.status.raw(), it.value))),
            Action::Park { until } => Self::Park(until),
            Action::Write { until } => Self::Write(until),
            Action::End(_) => return None,
        })
    }

    /// None when it has an answer that there is not.
    pub(in crate::cell) fn action(self) -> Option<Action> {
        Some(match self {
            Self::Enter(None) => Action::Enter(None),
            Self::Enter(Some((status, value))) => {
                let status = Status::from_raw(status)?;
                Action::Enter(Some(Answer { status, value }))
            }
            Self::Park(until) => Action::Park { until },
            Self::Write(until) => Action::Write { until },
        })
    }
}

/// What the supervisor knows, when all guests have gone.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cell) struct Finish {
    pub(in crate::cell) model: Model,
    /// What the supervisor's clock shows.
    pub(in crate::cell) now: Instant,
    pub(in crate::cell) members: Vec<CarriedMember>,
    pub(in crate::cell) events: CarriedEvents,
    pub(in crate::cell) upgrades: Vec<UpgradeStatus>,
    pub(in crate::cell) last_upgrade: u64,
    /// Connections that wait for a guest.
    pub(in crate::cell) stranded: Vec<Stranded>,
    pub(in crate::cell) control: Control,
}

/// A replica, living or not.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cell) struct CarriedMember {
    pub(in crate::cell) spec: TaskSpec,
    pub(in crate::cell) image: Option<usize>,
    pub(in crate::cell) pinned: Option<usize>,
    pub(in crate::cell) previous: Option<(TaskSpec, usize)>,
    pub(in crate::cell) reason: Option<String>,
    /// Of one whose guest did not come over.
    pub(in crate::cell) rest: Option<(Counts, CarriedConsole)>,
}

/// What happened so far.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in crate::cell) struct CarriedEvents {
    pub(in crate::cell) last: u64,
    pub(in crate::cell) kept: Vec<Event>,
    pub(in crate::cell) counts: Vec<(EventKind, u64)>,
}

/// A connection that found nobody yet.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cell) struct Stranded {
    pub(in crate::cell) port: usize,
    pub(in crate::cell) socket: FileRef,
    pub(in crate::cell) source: SocketAddr,
    pub(in crate::cell) from: Option<u32>,
    /// For how long it has waited, in nanoseconds.
    pub(in crate::cell) waited: u64,
}

/// The control socket.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cell) struct Control {
    #[serde(with = "crate::path")]
    pub(in crate::cell) path: PathBuf,
    pub(in crate::cell) listener: FileRef,
    pub(in crate::cell) lock: FileRef,
    /// The file that the cell was configured by, for people.
    pub(in crate::cell) config: Option<String>,
}

impl CarriedConsole {
    /// With the bytes put into this luggage.
    pub(in crate::cell) fn put(piece: &Piece, luggage: &mut Luggage) -> Self {
        Self {
            start: piece.start,
            bytes: luggage.put_bytes(&piece.bytes),
        }
    }

    /// Takes it out again.
    pub(in crate::cell) fn take(&self, luggage: &Luggage) -> Result<Piece, BadLuggage> {
        Ok(Piece {
            start: self.start,
            bytes: luggage.bytes(self.bytes)?.to_vec(),
        })
    }
}
