//! Made-up questions at the edges of what can be asked.
//!
//! A plugin that is to be put into a slot in which nothing was asked yet must not
//! have its first question where it matters. None of these is impossible; all are
//! unusual.

use super::{
    Attachment, Candidate, Connection, DeviceKind, Direction, Endpoint, Observation, Proposal,
    Question, Slice, SliceEnd, SlotName, Target, Version, View,
};
use crate::Instant;

/// Most candidates and targets that a question has.
pub const MOST: u32 = 64;

/// Questions of a slot, for a host with so many replicas.
#[must_use]
pub fn questions(slot: SlotName, now: Instant, replicas: u32) -> Vec<Question> {
    let now = now.as_nanos();
    match slot {
        SlotName::Scheduler => [2, 8, MOST]
            .into_iter()
            .flat_map(|count| [Candidates::Alike, Candidates::Extreme].map(|kind| (count, kind)))
            .map(|(count, kind)| Question::Next(view(now, count, kind)))
            .collect(),
        SlotName::Router => {
            let attachments = [0, 1, MOST].map(|count| Question::Attach(attachment(now, count)));
            let connections = [
                (Direction::Inbound, replicas.clamp(1, MOST)),
                (Direction::Inbound, 0),
                (Direction::Between, 2),
                (Direction::Outbound, 0),
            ]
            .map(|(direction, count)| Question::Connect(connection(now, direction, count)));
            attachments.into_iter().chain(connections).collect()
        }
        SlotName::Upgrader => {
            let idle = Observation::default();
            let busy = Observation {
                connections: 1_000,
                errors: 10,
                faults: 0,
                median: 1_000_000,
                p99: 10_000_000,
            };
            let broken = Observation {
                errors: 1_000,
                faults: 3,
                ..busy
            };
            let proposal = || proposal(now);
            vec![
                Question::Review(proposal()),
                Question::Judge(proposal(), idle, idle),
                Question::Judge(proposal(), busy, busy),
                Question::Judge(proposal(), busy, broken),
            ]
        }
    }
}

#[derive(Clone, Copy)]
enum Candidates {
    /// Of one weight, in order.
    Alike,
    /// Of the largest and smallest numbers there are.
    Extreme,
}

fn view(now: u64, count: u32, kind: Candidates) -> View {
    let candidate = |replica: u32| match kind {
        Candidates::Alike => Candidate {
            replica,
            weight: 100,
            generation: 1,
            ran: 0,
            virtual_time: u64::from(replica),
            ready_since: now,
        },
        Candidates::Extreme if replica.is_multiple_of(2) => Candidate {
            replica,
            weight: 1,
            generation: u64::MAX,
            ran: u64::MAX,
            virtual_time: u64::MAX,
            ready_since: 0,
        },
        Candidates::Extreme => Candidate {
            replica,
            weight: 10_000,
            generation: 1,
            ran: 0,
            virtual_time: 0,
            ready_since: now,
        },
    };
    View {
        now,
        worker: 0,
        last: Some(Slice {
            replica: 0,
            end: SliceEnd::Preempted,
            ran: 2_000_000,
        }),
        ready: (0..count).map(candidate).collect(),
    }
}

fn attachment(now: u64, backends: u32) -> Attachment {
    Attachment {
        now,
        replica: 0,
        generation: 1,
        device: "data".to_owned(),
        kind: DeviceKind::Block,
        backends: (0..backends)
            .map(|number| format!("disk{number}"))
            .collect(),
    }
}

fn connection(now: u64, direction: Direction, targets: u32) -> Connection {
    let target = |replica| Target {
        replica,
        connections: 0,
        generation: 1,
    };
    Connection {
        now,
        lot: u64::MAX,
        direction,
        from_replica: (direction != Direction::Inbound).then_some(0),
        source: Endpoint {
            high: 0,
            low: 0xffff_7f00_0001,
            port: 40_000,
        },
        destination: Endpoint {
            high: 0,
            low: 0xffff_7f00_0001,
            port: 80,
        },
        targets: (0..targets).map(target).collect(),
    }
}

fn proposal(now: u64) -> Proposal {
    let version = |generation| Version {
        digest: "0".repeat(64),
        generation,
        state_schema: 1,
    };
    Proposal {
        now,
        replica: 0,
        old: version(1),
        new: version(2),
        connections: 0,
        labels: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::questions;
    use crate::Instant;
    use crate::policy::{SlotName, built_in, check};

    #[test]
    fn what_is_built_in_answers_every_question() {
        for slot in SlotName::ALL {
            let asked = questions(slot, Instant::from_nanos(5), 3);
            assert!(asked.len() >= 4);
            for question in asked {
                assert_eq!(question.slot(), slot);
                let answer = built_in(&question);
                assert_eq!(check(&question, answer.clone()).as_ref(), Ok(&answer));
            }
        }
    }
}
