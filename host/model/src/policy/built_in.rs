//! The policies that are always there.

use super::{
    Answer, AttachVerdict, Attachment, Choice, Connection, DeviceKind, Direction, Judgement,
    Observation, Plan, Proposal, Question, Verdict, View,
};
use crate::schedule::SLICE;

/// Errors in a hundred connections, beyond those of the old version, with which a
/// new version is kept.
const ERRORS_PERCENT: u64 = 1;

/// Answers a question, always with an answer that is one.
#[must_use]
pub fn built_in(question: &Question) -> Answer {
    match question {
        Question::Next(view) => Answer::Next(next(view)),
        Question::Attach(attachment) => Answer::Attach(attach(attachment)),
        Question::Connect(connection) => Answer::Connect(connect(connection)),
        Question::Review(_) => Answer::Review(Plan::Replace),
        Question::Transform(proposal, state) => Answer::Transform(transform(proposal, state)),
        Question::Judge(_, old, new) => Answer::Judge(judge(old, new)),
    }
}

/// Who is furthest behind, for a slice. Of no candidates, one that is none.
pub(super) fn next(view: &View) -> Choice {
    let first = view.ready.first();
    Choice {
        replica: first.map_or(u32::MAX, |it| it.replica),
        generation: first.map_or(0, |it| it.generation),
        slice: SLICE.as_nanos().try_into().unwrap_or(u64::MAX),
    }
}

/// The back end of the device's own name, and for frames the first; denied when there
/// is none.
#[must_use]
pub fn attach(attachment: &Attachment) -> AttachVerdict {
    // A wire is called what it is and not what the device is; the first is what is meant.
    let is_wire = attachment.kind == DeviceKind::Frames;
    let is_meant = |name: &String| is_wire || *name == attachment.device;
    match attachment.backends.iter().position(is_meant) {
        Some(place) => AttachVerdict::Backend(place.try_into().unwrap_or(u32::MAX)),
        None => AttachVerdict::Deny(format!(
            "nothing is configured for its device {:?}",
            attachment.device
        )),
    }
}

/// To the target with the fewest connections, which is the first; nobody gets out.
#[must_use]
pub fn connect(connection: &Connection) -> Verdict {
    let to_a_task = connection.direction != Direction::Outbound;
    if to_a_task && !connection.targets.is_empty() {
        Verdict::Target(0)
    } else {
        Verdict::Deny
    }
}

fn transform(proposal: &Proposal, state: &[u8]) -> Result<Vec<u8>, String> {
    let (old, new) = (proposal.old.state_schema, proposal.new.state_schema);
    if old == new {
        Ok(state.to_vec())
    } else {
        Err(format!(
            "state of format {old} is not of format {new}, and no upgrader turns it into that: name \
             one that does, [policy.upgrader]"
        ))
    }
}

pub(super) fn judge(old: &Observation, new: &Observation) -> Judgement {
    if new.faults > 0 {
        return Judgement::RollBack(format!("it faulted {} times", new.faults));
    }
    let (theirs, ours) = (percent(old), percent(new));
    if ours > theirs.saturating_add(ERRORS_PERCENT) {
        return Judgement::RollBack(format!(
            "{ours} % of its connections had errors, {theirs} % of the old one's"
        ));
    }
    Judgement::Keep
}

fn percent(of: &Observation) -> u64 {
    of.errors
        .saturating_mul(100)
        .checked_div(of.connections)
        .unwrap_or(0)
}
