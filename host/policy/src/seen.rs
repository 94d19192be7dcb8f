//! Questions and answers as somebody beside the caller sees them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use serde::{Deserialize, Serialize};
use wharf_model::policy::{Answer, Proposal, Question, Verdict};

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

/// Most bytes of questions and answers that wait for one who watches: far above what
/// a queue of ordinary ones takes, and a few of those that carry a mebibyte of state.
const QUEUE_LEN: usize = 8 << 20;

/// Where questions and answers are shown. Nobody who asks ever waits for who
/// watches: what finds no room is left out and counted.
pub(crate) struct Watcher {
    shown: Sender<Shown>,
    left_out: u64,
    /// Bytes that wait, for as long as somebody watches.
    waiting: Weak<AtomicUsize>,
}

/// Where somebody sees them. Who drops it watches no more.
#[derive(Debug)]
pub(crate) struct Window {
    shown: Receiver<Shown>,
    waiting: Arc<AtomicUsize>,
}

/// What a watcher gets.
#[derive(Clone, Debug)]
pub(crate) enum Shown {
    /// A question and its answer.
    Seen(Box<Seen>),
    /// So many were left out here.
    LeftOut(u64),
}

/// A window with room for so many questions, and what shows them there.
pub(crate) fn window(questions: usize) -> (Watcher, Window) {
    let (show, shown) = bounded(questions);
    let waiting = Arc::default();
    let watcher = Watcher {
        shown: show,
        left_out: 0,
        waiting: Arc::downgrade(&waiting),
    };
    (watcher, Window { shown, waiting })
}

impl Window {
    /// The next; none when there is none for so long, or nothing is shown any more.
    pub(crate) fn next(&self, patience: Duration) -> Option<Shown> {
        let shown = self.shown.recv_timeout(patience).ok()?;
        if let Shown::Seen(seen) = &shown {
            self.waiting.fetch_sub(seen.len(), Ordering::Relaxed);
        }
        Some(shown)
    }
}

impl Watcher {
    /// Whether anybody does.
    pub(crate) fn is_watched(&self) -> bool {
        self.waiting.strong_count() > 0
    }

    /// Shows it; false when nobody watches any more.
    pub(crate) fn show(&mut self, seen: impl Fn() -> Seen) -> bool {
        let Some(waiting) = self.waiting.upgrade() else {
            return false;
        };
        if waiting.load(Ordering::Relaxed) >= QUEUE_LEN {
            self.left_out = self.left_out.saturating_add(1);
            return true;
        }
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
        let seen = Box::new(seen());
        let len = seen.len();
        // Before it is there to be taken out.
        waiting.fetch_add(len, Ordering::Relaxed);
        match self.shown.try_send(Shown::Seen(seen)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                waiting.fetch_sub(len, Ordering::Relaxed);
                self.left_out = 1;
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}

impl Seen {
    /// Bytes that it takes in memory, near enough: everything of it whose length a
    /// guest, a plugin or an operator chooses.
    fn len(&self) -> usize {
        let texts = |texts: &mut dyn Iterator<Item = &String>| -> usize {
            texts
                .map(|it| size_of::<String>().saturating_add(it.len()))
                .sum()
        };
        let labels = |of: &Proposal| texts(&mut of.labels.iter().flat_map(|(k, v)| [k, v]));
        let question = match &self.question {
            Question::Next(view) => size_of_val(view.ready.as_slice()),
            Question::Attach(asked) => texts(&mut asked.backends.iter()),
            Question::Connect(asked) => size_of_val(asked.targets.as_slice()),
            Question::Review(asked) | Question::Judge(asked, ..) => labels(asked),
            Question::Transform(asked, state) => labels(asked).saturating_add(state.len()),
        };
        let answer = match &self.answer {
            Answer::Connect(Verdict::Spread(weights)) => size_of_val(weights.as_slice()),
            Answer::Transform(Ok(state)) => state.len(),
            // Numbers, and reasons that were cut to a line.
            _ => 0,
        };
        size_of::<Self>()
            .saturating_add(question)
            .saturating_add(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wharf_model::policy::{Answer, Proposal, Question, Version};

    use super::{By, QUEUE_LEN, Seen, Shown, window};

    /// A question that carries a mebibyte of state, and its answer another.
    fn large() -> Seen {
        let version = |generation| Version {
            digest: String::new(),
            generation,
            state_schema: 1,
        };
        let proposal = Proposal {
            now: 1,
            replica: 0,
            old: version(1),
            new: version(2),
            connections: 0,
            labels: Vec::new(),
        };
        let state = vec![7; 1 << 20];
        Seen {
            answer: Answer::Transform(Ok(state.clone())),
            question: Question::Transform(proposal, state),
            by: By::BuiltIn,
            failure: None,
        }
    }

    #[test]
    fn what_waits_for_a_watcher_is_bounded_in_bytes_too() {
        let (mut watcher, window) = window(4096);
        for _ in 0..20 {
            assert!(watcher.show(large));
        }
        let seen = || -> Vec<Shown> {
            let next = || window.next(Duration::ZERO);
            std::iter::from_fn(next).collect()
        };
        assert_eq!(seen().len(), QUEUE_LEN / (2 << 20));
        assert!(watcher.show(large));
        let after = seen();
        assert!(
            matches!(after[..], [Shown::LeftOut(16), Shown::Seen(_)]),
            "what was read makes room"
        );
        drop(window);
        assert!(!watcher.is_watched() && !watcher.show(large));
    }
}
