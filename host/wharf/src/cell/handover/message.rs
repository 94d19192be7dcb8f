//! What the two processes say to each other.
//!
//! A newer version may add fields that have a default, and messages that only a newer
//! one is sent; nothing else, and nothing at all to what a guest is described by, which
//! goes both ways: for that, [`FORMAT`](super::FORMAT) changes. What an older one does not
//! understand it refuses, and everything goes on where it was.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use wharf_abi::{Answer, Status};
use wharf_machine::handover::{Announced, BadLuggage, BytesRef, Carried, FileRef, Luggage};
use wharf_model::cell::{Cell as Model, TaskKey};
use wharf_model::{Action, Instant, Outcome};
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
    /// It is prepared for what was said.
    Ready,
    /// Policies as they are now: guests are about to come.
    Policies {
        slots: CarriedSlots,
        /// The components of plugins, by their digests.
        components: Components,
    },
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
    /// A guest that was taken is not to be had any more.
    Lost(Box<Lost>),
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
    pub(in crate::cell) components: Components,
    pub(in crate::cell) ports: Vec<PortFile>,
    /// What the addresses at the switch begin with.
    pub(in crate::cell) switch: [u8; 2],
}

/// The components of plugins, by their digests.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(in crate::cell) struct Components(Vec<(String, BytesRef)>);

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

/// A guest that does not come back.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cell) struct Lost {
    pub(in crate::cell) key: TaskKey,
    /// How it has ended, if that is known.
    pub(in crate::cell) outcome: Outcome,
    pub(in crate::cell) report: Option<String>,
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
    /// What an older version has no name for is left out.
    #[serde(deserialize_with = "known")]
    pub(in crate::cell) kept: Vec<Event>,
    #[serde(deserialize_with = "known")]
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

/// Those of a list that are understood.
fn known<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Vec<T>, D::Error> {
    let all: Vec<serde_json::Value> = Vec::deserialize(from)?;
    let understood = all.into_iter().map(serde_json::from_value);
    Ok(understood.filter_map(Result::ok).collect())
}

impl Components {
    /// With the components put into this luggage, and taken out of the slots.
    pub(in crate::cell) fn put(slots: &CarriedSlots, luggage: &mut Luggage) -> Self {
        let components = slots.components.iter();
        let put = components.map(|(digest, it)| (digest.clone(), luggage.put_bytes(it)));
        Self(put.collect())
    }

    /// Takes them out again, to where the slots have them.
    pub(in crate::cell) fn take(
        self,
        slots: &mut CarriedSlots,
        luggage: &Luggage,
    ) -> Result<(), BadLuggage> {
        for (digest, bytes) in self.0 {
            slots
                .components
                .insert(digest, luggage.bytes(bytes)?.into());
        }
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::CarriedEvents;
    use crate::cell::protocol::EventKind;

    #[test]
    fn what_a_newer_version_has_seen_is_no_reason_to_refuse_it() {
        let newer = r#"{
            "last": 7,
            "kept": [
                {"seq": 6, "time_ns": 1, "task": null, "generation": 0, "kind": "dreamt", "detail": ""},
                {"seq": 7, "time_ns": 1, "task": null, "generation": 0, "kind": "up", "detail": ""}
            ],
            "counts": [["dreamt", 3], ["up", 1]]
        }"#;
        let events: CarriedEvents = serde_json::from_str(newer).unwrap();
        assert_eq!((events.last, events.kept[0].seq), (7, 7));
        assert_eq!(events.counts, [(EventKind::Up, 1)]);
    }
}
