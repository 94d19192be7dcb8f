//! What a change of a slot takes, says, and is refused for.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use wharf_model::policy::{Answer, Question, SlotName};

use crate::instance::Fault;

/// Plugins that may be tried for one slot at a time: each has an instance.
pub(super) const CANDIDATES: usize = 3;

/// How to swap.
#[derive(Clone, Debug, Default)]
pub struct SwapOptions {
    /// What the plugin is configured with. When there is nothing, what the one
    /// before it was configured with, if that has the same name.
    pub settings: Option<Vec<(String, String)>>,
    /// How many live questions it answers beside the one in force first.
    pub shadow: u64,
    /// How long it waits for them.
    pub shadow_patience: Duration,
    /// Do everything but the cut.
    pub dry_run: bool,
    /// Do not hand the state over.
    pub discard_state: bool,
    /// Set when nobody waits for the outcome any more: a shadow then ends, and nothing
    /// is changed.
    pub given_up: Arc<AtomicBool>,
}

/// A plugin that was put in, or could be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swapped {
    /// What was in force before.
    pub old: String,
    /// Name and version of the plugin.
    pub new: String,
    /// What it was rehearsed with.
    pub rehearsal: Rehearsal,
    /// What it answered beside the one in force.
    pub shadowed: Option<Shadowed>,
    /// What became of the state.
    pub state: StateMoved,
    /// For how long callers had to wait; none on a dry run.
    pub pause: Option<Duration>,
}

/// What a candidate was asked before anybody depended on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    /// Questions that had really been asked.
    pub recorded: usize,
    /// Made-up ones, at the edges of what can be asked.
    pub made_up: usize,
}

/// What a candidate answered beside the plugin in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shadowed {
    /// Live questions that it was asked.
    pub asked: u64,
    /// Those that it answered as the one in force did.
    pub agreed: u64,
    /// Questions that came too fast for it.
    pub left_out: u64,
    /// The first that it answered otherwise.
    pub differences: Vec<Difference>,
}

/// A question that two policies answer differently.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Difference {
    /// Which question it was, from 0.
    pub number: u64,
    /// The question.
    pub question: Question,
    /// What was answered.
    pub was: Answer,
    /// What the other says.
    pub would: Answer,
}

/// What became of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateMoved {
    /// There was none.
    None,
    /// So many bytes were handed over.
    Bytes(usize),
    /// The plugin begins anew, for this reason.
    Fresh(String),
}

/// Why a plugin was not put in.
#[derive(Debug, thiserror::Error)]
pub enum SwapRefusal {
    /// It answers other questions.
    #[error("{plugin} is no {slot}: it exports {fits}")]
    NotForSlot {
        /// The plugin.
        plugin: String,
        /// Where it was to go.
        slot: SlotName,
        /// Where it could go.
        fits: String,
    },
    /// It does not read the state of the one in force.
    #[error(
        "{plugin} reads state of formats {oldest} to {newest}, and what is in force keeps format \
         {found}: swap with --discard-state to begin anew"
    )]
    Schema {
        /// The plugin.
        plugin: String,
        /// The oldest that it reads.
        oldest: u32,
        /// The newest that it reads.
        newest: u32,
        /// What there is.
        found: u32,
    },
    /// It cannot be set up, or does not take the state.
    #[error("{plugin}: {fault}")]
    Fault {
        /// The plugin.
        plugin: String,
        /// What went wrong.
        fault: Fault,
    },
    /// It failed in the rehearsal.
    #[error("{plugin} failed in rehearsal, at question {number}: {reason}")]
    Rehearsal {
        /// The plugin.
        plugin: String,
        /// Which question, from 0.
        number: usize,
        /// What went wrong.
        reason: String,
    },
    /// It failed when it was made to answer at once.
    #[error("{plugin} failed as it was warmed up, at question {number}: {reason}")]
    WarmUp {
        /// The plugin.
        plugin: String,
        /// Which question, from 0.
        number: usize,
        /// What went wrong.
        reason: String,
    },
    /// It failed beside the one in force.
    #[error("{plugin} failed as a shadow, at question {number}: {reason}")]
    Shadow {
        /// The plugin.
        plugin: String,
        /// Which question, from 0.
        number: u64,
        /// What went wrong.
        reason: String,
    },
    /// Nobody asked.
    #[error(
        "only {asked} of {wanted} questions came within {} s: nothing was changed; a scheduler \
         is asked when several guests are ready on one worker, a router when somebody connects: \
         see to that, or wait longer with --within", patience.as_secs()
    )]
    FewQuestions {
        /// Questions that came.
        asked: u64,
        /// Questions that were to come.
        wanted: u64,
        /// How long it was waited for them.
        patience: Duration,
    },
    /// Who wanted the swap has gone.
    #[error("{plugin} was a shadow that nobody waits for any more: nothing was changed")]
    GivenUp {
        /// The plugin.
        plugin: String,
    },
    /// The slot was changed while the plugin was tried.
    #[error(
        "{plugin} was tried beside another: the {slot} has meanwhile been given to {now}, try again"
    )]
    Changed {
        /// The plugin.
        plugin: String,
        /// The slot.
        slot: SlotName,
        /// What is in force.
        now: String,
    },
    /// Enough plugins are being tried.
    #[error(
        "{CANDIDATES} other changes of the {0} are being made: try again when one of them is over"
    )]
    Busy(SlotName),
    /// Another process is about to decide.
    #[error(transparent)]
    Held(#[from] Held),
}

/// A slot is not changed while it goes to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {0} goes to another process at this moment: try again")]
pub struct Held(pub SlotName);

/// What was taken out, or could be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// What was in force.
    pub old: String,
    /// For how long callers had to wait; none on a dry run.
    pub pause: Option<Duration>,
}

/// Why no plugin was taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoveRefusal {
    /// There is none.
    #[error("what is built in is in force in the {0} already")]
    NothingThere(SlotName),
    /// Another process is about to decide.
    #[error(transparent)]
    Held(#[from] Held),
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// What was in force.
    pub old: String,
    /// What is.
    pub new: String,
    /// For how long callers had to wait.
    pub pause: Duration,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum RollbackRefusal {
    /// There is nothing.
    #[error("there is nothing that {0} could go back to")]
    Nothing(SlotName),
    /// It does not work any more.
    #[error("cannot go back: {0}")]
    Swap(#[from] SwapRefusal),
}
