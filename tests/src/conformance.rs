//! What every policy of a slot must do, whoever wrote it: the built-in ones and each
//! plugin are held to the same sentences.
//!
//! A set takes a way to [make](Make) a fresh policy. [`scheduler`], [`router`] and
//! [`upgrader`] ask it what a host asks and what none would ask, judge the answers
//! with [`check()`], and play long stretches on a simulated host.

use wharf_model::policy::{Answer, Question, built_in, check};

pub mod router;
pub mod scheduler;
pub mod upgrader;

/// A policy that can be asked.
pub trait Policy {
    /// What it says, before anybody checked it.
    ///
    /// # Panics
    ///
    /// When it has no answer.
    fn ask(&mut self, question: &Question) -> Answer;

    /// Its state; none when it keeps none.
    fn save(&mut self) -> Option<Vec<u8>>;

    /// Gives it state.
    ///
    /// # Errors
    ///
    /// Why it does not take it.
    fn restore(&mut self, state: &[u8]) -> Result<(), String>;
}

/// Makes a fresh policy that was told of a task of each of these weights.
pub type Make<'a> = dyn Fn(&[u32]) -> Box<dyn Policy> + 'a;

/// The built-in policies, which know nothing of tasks and keep nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct BuiltIn;

impl Policy for BuiltIn {
    fn ask(&mut self, question: &Question) -> Answer {
        built_in(question)
    }

    fn save(&mut self) -> Option<Vec<u8>> {
        None
    }

    fn restore(&mut self, _state: &[u8]) -> Result<(), String> {
        Err("there is no state".to_owned())
    }
}

/// Numbers that a careless policy gets wrong.
pub const NUMBERS: [u64; 8] = [
    0,
    1,
    999,
    2_000_000,
    1 << 32,
    u64::MAX / 10_000,
    u64::MAX / 2 + 1,
    u64::MAX,
];

/// What a policy says, found good, clamped and with nothing left to the built-in
/// one.
///
/// # Panics
///
/// When the answer is none.
pub fn answer(policy: &mut dyn Policy, question: &Question) -> Answer {
    let said = policy.ask(question);
    match check(question, said.clone()) {
        Ok(answer) => answer,
        Err(nonsense) => panic!("{nonsense}: {said:?} to {question:?}"),
    }
}

/// Two fresh policies say the same to the same questions, and what they say are
/// answers. Gives them.
///
/// # Panics
///
/// When they do not.
pub fn deterministic_answers(make: &Make<'_>, weights: &[u32], asked: &[Question]) -> Vec<Answer> {
    let (mut one, mut two) = (make(weights), make(weights));
    let both = |question| {
        let said = answer(&mut *one, question);
        assert_eq!(said, answer(&mut *two, question), "asked {question:?}");
        said
    };
    asked.iter().map(both).collect()
}

/// State that nobody saved is taken or refused; either way the policy goes on
/// answering.
///
/// # Panics
///
/// When it does not.
pub fn survives_any_state(make: &Make<'_>, weights: &[u32], asked: &[Question]) {
    let mut dice = Dice::new(9);
    for length in [0, 1, 7, 8, 16, 24, 48, 64, 1024, 65_536] {
        for fill in [0, 255, 256] {
            let byte = |_| u8::try_from(fill).unwrap_or_else(|_| dice.byte());
            let state: Vec<u8> = (0..length).map(byte).collect();
            let mut policy = make(weights);
            if policy.save().is_none() {
                return;
            }
            // Whether it takes it is its own business.
            let _ = policy.restore(&state);
            for question in asked {
                answer(&mut *policy, question);
            }
        }
    }
}

/// Draws numbers that are the same in every run.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice that draw what this number stands for.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `sides`, which is not 0.
    pub fn roll(&mut self, sides: u64) -> u64 {
        // Knuth's constants; the high bits are the good ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.roll(256)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use wharf_model::policy::{AttachVerdict, Choice, Judgement, Verdict};

    use super::*;

    /// A policy that is the built-in one but for some questions.
    struct Bad(fn(&Question) -> Option<Answer>);

    impl Policy for Bad {
        fn ask(&mut self, question: &Question) -> Answer {
            self.0(question).unwrap_or_else(|| built_in(question))
        }

        fn save(&mut self) -> Option<Vec<u8>> {
            None
        }

        fn restore(&mut self, _state: &[u8]) -> Result<(), String> {
            Ok(())
        }
    }

    #[test]
    #[should_panic(expected = "0 waited")]
    fn a_scheduler_that_starves_a_task_does_not_conform() {
        scheduler::conforms(&|_| {
            Box::new(Bad(|question| match question {
                Question::Next(view) => {
                    let highest = view.ready.iter().max_by_key(|it| it.replica)?;
                    Some(Answer::Next(Choice {
                        replica: highest.replica,
                        generation: highest.generation,
                        slice: 0,
                    }))
                }
                _ => None,
            }))
        });
    }

    #[test]
    #[should_panic(expected = "which is not ready")]
    fn a_scheduler_that_names_nobody_does_not_conform() {
        scheduler::conforms(&|_| {
            Box::new(Bad(|question| match question {
                Question::Next(view) if view.ready.len() == 33 => Some(Answer::Next(Choice {
                    replica: 96,
                    generation: 1,
                    slice: 0,
                })),
                _ => None,
            }))
        });
    }

    #[test]
    #[should_panic(expected = "to the outside")]
    fn a_router_that_passes_what_is_for_a_task_does_not_conform() {
        let pass = |question: &Question| match question {
            Question::Connect(_) => Some(Answer::Connect(Verdict::Pass)),
            _ => None,
        };
        router::conforms(&move |_| Box::new(Bad(pass)));
    }

    #[test]
    #[should_panic(expected = "denied without a reason")]
    fn a_router_that_gives_no_reason_does_not_conform() {
        let deny = |question: &Question| match question {
            Question::Attach(_) => Some(Answer::Attach(AttachVerdict::Deny(String::new()))),
            _ => None,
        };
        router::conforms(&move |_| Box::new(Bad(deny)));
    }

    #[test]
    #[should_panic(expected = "Keep")]
    fn an_upgrader_that_keeps_what_faults_does_not_conform() {
        let keep = |question: &Question| match question {
            Question::Judge(..) => Some(Answer::Judge(Judgement::Keep)),
            _ => None,
        };
        upgrader::conforms(&move |_| Box::new(Bad(keep)));
    }
}
