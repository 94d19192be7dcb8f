//! What every router must do.

use wharf_model::policy::{
    Answer, AttachVerdict, Attachment, Connection, DeviceKind, Direction, Endpoint, Question,
    Target,
};

use super::{Make, NUMBERS, deterministic_answers, survives_any_state};

/// Holds a router to the whole set.
///
/// # Panics
///
/// When it breaks a rule.
pub fn conforms(make: &Make<'_>) {
    attaches_to_what_there_is(make);
    sends_connections_somewhere(make);
    survives_any_state(make, &[100; 3], &connections());
}

/// A device gets a back end of the list, or nothing for a reason.
///
/// # Panics
///
/// When it does not.
pub fn attaches_to_what_there_is(make: &Make<'_>) {
    let asked = attachments();
    let answers = deterministic_answers(make, &[100; 3], &asked);
    for (question, said) in asked.iter().zip(answers) {
        if let Answer::Attach(AttachVerdict::Deny(reason)) = said {
            assert!(!reason.is_empty(), "denied without a reason: {question:?}");
        }
    }
}

/// A connection goes to one of the targets, to the outside when that is where it was
/// made to, or nowhere; and to the same of two fresh policies.
///
/// # Panics
///
/// When it does not.
pub fn sends_connections_somewhere(make: &Make<'_>) {
    deterministic_answers(make, &[100; 3], &connections());
}

/// A connection, as the tests change it.
#[must_use]
pub fn connection(direction: Direction, targets: &[u32]) -> Connection {
    let target = |(connections, replica): (u32, &u32)| Target {
        replica: *replica,
        connections,
        generation: 1,
    };
    Connection {
        now: 0,
        lot: 0,
        direction,
        from_replica: None,
        source: Endpoint::default(),
        destination: Endpoint::default(),
        targets: (0..).zip(targets).map(target).collect(),
    }
}

fn attachments() -> Vec<Question> {
    let long = "x".repeat(10_000);
    let many: Vec<String> = (0..64).map(|it| format!("backend-{it}")).collect();
    let named = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect();
    let lists: [Vec<String>; 5] = [
        Vec::new(),
        named(&["data"]),
        named(&["a", "data", "data"]),
        named(&["", &long]),
        many,
    ];
    let mut asked = Vec::new();
    for kind in [DeviceKind::Block, DeviceKind::Stream, DeviceKind::Frames] {
        for device in ["data", "", "backend-63", "\u{1b}[2J\0", &long] {
            for (backends, number) in lists.iter().zip(NUMBERS) {
                asked.push(Question::Attach(Attachment {
                    now: number,
                    replica: u32::try_from(number % (1 << 32)).unwrap(),
                    generation: number,
                    device: device.to_owned(),
                    kind,
                    backends: backends.clone(),
                }));
            }
        }
    }
    asked
}

fn connections() -> Vec<Question> {
    let many: Vec<u32> = (0..64).rev().collect();
    let lists = [&[][..], &[0], &[2, 1, 0], &[7, u32::MAX], &[1; 5], &many];
    let mut asked = Vec::new();
    for direction in [Direction::Inbound, Direction::Outbound, Direction::Between] {
        for targets in lists {
            for number in NUMBERS {
                for from_replica in [None, Some(1), Some(u32::MAX)] {
                    let endpoint = |port| Endpoint {
                        high: number.rotate_left(7),
                        low: number,
                        port,
                    };
                    asked.push(Question::Connect(Connection {
                        now: number,
                        lot: number,
                        from_replica,
                        source: endpoint(0),
                        destination: endpoint(u16::try_from(number % 65_536).unwrap()),
                        ..connection(direction, targets)
                    }));
                }
            }
        }
    }
    asked
}
