//! Whether a plugin's answer is one.

use std::ops::RangeInclusive;

use super::{
    Answer, AttachVerdict, Attachment, Canary, Choice, Connection, Direction, Judgement, Plan,
    Question, Verdict, View, built_in,
};
use crate::schedule::SLICE;

/// How long a slice may be, in nanoseconds: shorter ones cost more than they give
/// (leaving a guest takes 50 µs on KVM-PVM), longer ones keep the others waiting.
pub const SLICE_NS: RangeInclusive<u64> = 100_000..=100_000_000;

/// How long an upgrade may wait for its next step, in nanoseconds: a day.
const STEP_NS: RangeInclusive<u64> = 1_000_000..=86_400_000_000_000;

/// Bytes of a reason that are kept.
const REASON_LEN: usize = 256;

/// Bytes of state that a transformation may make.
pub const STATE_LEN: usize = 1 << 20;

/// An answer that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Nonsense {
    /// It names a replica that is not ready here.
    #[error("it chose replica {replica}, which is not ready on this worker")]
    NotReady {
        /// The one it named.
        replica: u32,
    },
    /// It names an earlier or later life of a replica that is ready.
    #[error("it chose generation {generation} of replica {replica}, which is at {alive}")]
    WrongGeneration {
        /// The one it named.
        replica: u32,
        /// And this life of it.
        generation: u64,
        /// But this one is alive.
        alive: u64,
    },
    /// It names a place that is not in the list.
    #[error("it chose {chosen} of {of} {what}")]
    NoSuchPlace {
        /// What the list is of.
        what: &'static str,
        /// The place it named, from 0.
        chosen: u32,
        /// How long the list is.
        of: usize,
    },
    /// It has not one weight for each target.
    #[error("it gave {weights} weights for {targets} targets")]
    WrongWeights {
        /// Weights that it gave.
        weights: usize,
        /// Targets that there are.
        targets: usize,
    },
    /// All its weights are 0.
    #[error("it gave every target the weight 0")]
    NoWeight,
    /// It lets a connection out that is for a task.
    #[error("it passed a connection to the outside that is for a task")]
    NotOutbound,
    /// A canary without a share, or with everything.
    #[error("it gave a canary {percent} %, which is not within 1 to 99")]
    Percent {
        /// What it said.
        percent: u32,
    },
    /// More state than a guest may have.
    #[error("it made {len} bytes of state, of at most {STATE_LEN}")]
    TooMuchState {
        /// Bytes that it made.
        len: usize,
    },
    /// It answers another question.
    #[error("it answered another question")]
    OtherQuestion,
}

/// Says whether `answer` is one to `question`, and makes it final: clamped, with
/// what it leaves to the built-in policy or to the lot filled in.
///
/// # Errors
///
/// What is wrong with it.
pub fn check(question: &Question, answer: Answer) -> Result<Answer, Nonsense> {
    Ok(match (question, answer) {
        (Question::Next(view), Answer::Next(choice)) => Answer::Next(next(view, choice)?),
        (Question::Attach(asked), Answer::Attach(verdict)) => {
            Answer::Attach(attach(asked, verdict)?)
        }
        (Question::Connect(asked), Answer::Connect(verdict)) => {
            Answer::Connect(connect(asked, verdict)?)
        }
        (Question::Review(_), Answer::Review(plan)) => Answer::Review(review(plan)?),
        (Question::Transform(..), Answer::Transform(Ok(state))) if state.len() > STATE_LEN => {
            return Err(Nonsense::TooMuchState { len: state.len() });
        }
        (Question::Transform(..), Answer::Transform(made)) => {
            Answer::Transform(made.map_err(|reason| short(&reason)))
        }
        (Question::Judge(_, old, new), Answer::Judge(judgement)) => {
            Answer::Judge(match judgement {
                Judgement::BuiltIn => built_in::judge(old, new),
                Judgement::Keep => Judgement::Keep,
                Judgement::Wait(time) => Judgement::Wait(step(time)),
                Judgement::Advance(canary) => Judgement::Advance(share(canary)?),
                Judgement::RollBack(reason) => Judgement::RollBack(short(&reason)),
            })
        }
        _ => return Err(Nonsense::OtherQuestion),
    })
}

/// The same for the question that is asked most.
///
/// # Errors
///
/// What is wrong with it.
pub fn next(view: &View, choice: Choice) -> Result<Choice, Nonsense> {
    // During an upgrade there are two lives of a replica.
    let same = |it: &&super::Candidate| it.replica == choice.replica;
    let exactly = |it: &&super::Candidate| same(it) && it.generation == choice.generation;
    let mut ready = view.ready.iter();
    let found = ready.clone().find(exactly).or_else(|| ready.find(same));
    let Some(candidate) = found else {
        return Err(Nonsense::NotReady {
            replica: choice.replica,
        });
    };
    if candidate.generation != choice.generation {
        return Err(Nonsense::WrongGeneration {
            replica: choice.replica,
            generation: choice.generation,
            alive: candidate.generation,
        });
    }
    let slice = match choice.slice {
        0 => SLICE.as_nanos().try_into().unwrap_or(u64::MAX),
        ns => ns.clamp(*SLICE_NS.start(), *SLICE_NS.end()),
    };
    Ok(Choice { slice, ..choice })
}

fn attach(asked: &Attachment, verdict: AttachVerdict) -> Result<AttachVerdict, Nonsense> {
    Ok(match verdict {
        AttachVerdict::BuiltIn => built_in::attach(asked),
        AttachVerdict::Backend(place) => {
            in_list("back ends", place, asked.backends.len())?;
            AttachVerdict::Backend(place)
        }
        AttachVerdict::Deny(reason) => AttachVerdict::Deny(short(&reason)),
    })
}

fn connect(asked: &Connection, verdict: Verdict) -> Result<Verdict, Nonsense> {
    Ok(match verdict {
        Verdict::BuiltIn => built_in::connect(asked),
        Verdict::Target(place) => {
            in_list("targets", place, asked.targets.len())?;
            Verdict::Target(place)
        }
        Verdict::Spread(weights) => Verdict::Target(draw(asked, &weights)?),
        Verdict::Pass if asked.direction != Direction::Outbound => {
            return Err(Nonsense::NotOutbound);
        }
        Verdict::Pass => Verdict::Pass,
        Verdict::Deny => Verdict::Deny,
    })
}

/// The target that the lot falls on.
fn draw(asked: &Connection, weights: &[u32]) -> Result<u32, Nonsense> {
    if weights.len() != asked.targets.len() {
        return Err(Nonsense::WrongWeights {
            weights: weights.len(),
            targets: asked.targets.len(),
        });
    }
    let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let mut left = asked.lot.checked_rem(sum).ok_or(Nonsense::NoWeight)?;
    for (place, weight) in (0..).zip(weights) {
        match left.checked_sub(u64::from(*weight)) {
            Some(rest) => left = rest,
            None => return Ok(place),
        }
    }
    Err(Nonsense::NoWeight)
}

fn review(plan: Plan) -> Result<Plan, Nonsense> {
    Ok(match plan {
        Plan::BuiltIn | Plan::Replace => Plan::Replace,
        Plan::BlueGreen(time) => Plan::BlueGreen(step(time)),
        Plan::Canary(canary) => Plan::Canary(share(canary)?),
        Plan::Defer(time) => Plan::Defer(step(time)),
        Plan::Refuse(reason) => Plan::Refuse(short(&reason)),
    })
}

fn share(canary: Canary) -> Result<Canary, Nonsense> {
    if !(1..=99).contains(&canary.percent) {
        return Err(Nonsense::Percent {
            percent: canary.percent,
        });
    }
    Ok(Canary {
        period: step(canary.period),
        ..canary
    })
}

fn step(time: u64) -> u64 {
    time.clamp(*STEP_NS.start(), *STEP_NS.end())
}

fn in_list(what: &'static str, chosen: u32, of: usize) -> Result<(), Nonsense> {
    let there = usize::try_from(chosen).is_ok_and(|place| place < of);
    there
        .then_some(())
        .ok_or(Nonsense::NoSuchPlace { what, chosen, of })
}

/// A reason, cut where it gets long, without what a terminal would obey.
#[must_use]
pub fn short(reason: &str) -> String {
    let clean = |c: char| if commands_terminal(c) { ' ' } else { c };
    let mut text = String::new();
    for c in reason.chars().map(clean) {
        if text.len().saturating_add(c.len_utf8()) > REASON_LEN {
            text.push('…');
            break;
        }
        text.push(c);
    }
    text
}

/// Whether a terminal would obey a character instead of showing it. That are not only
/// control characters: some turn the direction of writing, or end a line, and so change
/// what seems to be written.
#[must_use]
pub fn commands_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests;
