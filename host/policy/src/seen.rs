//! Questions and answers as somebody beside the caller sees them.

use crossbeam_channel::{Sender, TrySendError};
use serde::{Deserialize, Serialize};
use wharf_model::policy::{Answer, Question};

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// What is built in.
    BuiltIn,
    /// The plugin.
    Plugin,
}

/// A question and what was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The question.
    pub question: Question,
    /// The answer that was acted upon: checked and final.
    pub answer: Answer,
    /// Who gave it.
    pub by: By,
    /// Why the plugin did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Where questions and answers are shown. Nobody who asks ever waits for who
/// watches: what finds no room is left out and counted.
pub(crate) struct Watcher {
    shown: Sender<Shown>,
    left_out: u64,
}

/// What a watcher gets.
#[derive(Clone, Debug)]
pub(crate) enum Shown {
    /// A question and its answer.
    Seen(Box<Seen>),
    /// So many were left out here.
    LeftOut(u64),
}

impl Watcher {
    pub(crate) const fn new(shown: Sender<Shown>) -> Self {
        Self { shown, left_out: 0 }
    }

    /// Shows it; false when nobody watches any more.
    pub(crate) fn show(&mut self, seen: impl Fn() -> Seen) -> bool {
        if self.left_out > 0 {
            match self.shown.try_send(Shown::LeftOut(self.left_out)) {
                Ok(()) => self.left_out = 0,
                Err(TrySendError::Full(_)) => {
                    self.left_out = self.left_out.saturating_add(1);
                    return true;
                }
                Err(TrySendError::Disconnected(_)) => return false,
            }
        }
        if self.shown.is_full() {
            self.left_out = 1;
            return true;
        }
        match self.shown.try_send(Shown::Seen(Box::new(seen()))) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.left_out = 1;
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}
