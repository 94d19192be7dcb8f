//! What every upgrader must do.

use wharf_model::policy::{Answer, Judgement, Observation, Plan, Proposal, Question, Version};

use super::{Make, NUMBERS, Policy, answer, deterministic_answers, survives_any_state};

/// How often a good version is judged at most before it is kept.
const JUDGED_MOST: usize = 100;

/// Holds an upgrader to the whole set.
///
/// # Panics
///
/// When it breaks a rule.
pub fn conforms(make: &Make<'_>) {
    says_the_same_to_any_proposal(make);
    hands_state_of_one_format_over(make);
    keeps_no_version_that_faults(make);
    keeps_a_good_version(make);
    goes_on_from_its_state(make);
    let some: Vec<_> = odd_questions().into_iter().step_by(19).collect();
    survives_any_state(make, &[100; 3], &some);
}

/// Every answer is one, and the same of two fresh policies; who says no says why.
///
/// # Panics
///
/// When it is not.
pub fn says_the_same_to_any_proposal(make: &Make<'_>) {
    let asked = odd_questions();
    let answers = deterministic_answers(make, &[100; 3], &asked);
    for (question, said) in asked.iter().zip(answers) {
        let why = match said {
            Answer::Review(Plan::Refuse(why))
            | Answer::Transform(Err(why))
            | Answer::Judge(Judgement::RollBack(why)) => why,
            _ => continue,
        };
        assert!(!why.is_empty(), "no reason: {question:?}");
    }
}

/// State for a version of the same format is handed over as it is.
///
/// # Panics
///
/// When it is not.
pub fn hands_state_of_one_format_over(make: &Make<'_>) {
    let mut policy = make(&[100; 3]);
    for state in [vec![], vec![7], vec![9; 1 << 20]] {
        let question = Question::Transform(proposal(0, 3), state.clone());
        let said = answer(&mut *policy, &question);
        assert_eq!(said, Answer::Transform(Ok(state)));
    }
}

/// A version that ended by a fault goes, whatever else it did and whenever.
///
/// # Panics
///
/// When it does not.
pub fn keeps_no_version_that_faults(make: &Make<'_>) {
    for judged_before in 0..6 {
        for schema in [0, 1] {
            let mut policy = make(&[100; 3]);
            let asked = proposal(1, schema);
            let mut upgrade = Upgrade::begin(&mut *policy, asked.clone());
            for _ in 0..judged_before {
                upgrade.judged(&mut *policy);
            }
            for observed in observations().into_iter().filter(|it| it.faults > 0) {
                let old = Observation::default();
                let question = Question::Judge(asked.clone(), old, observed);
                let said = answer(&mut *policy, &question);
                let goes = matches!(said, Answer::Judge(Judgement::RollBack(_)));
                assert!(goes, "{said:?} of {observed:?}");
            }
        }
    }
}

/// A version without faults and errors, and as quick as the old one, is kept in the
/// end.
///
/// # Panics
///
/// When it is not.
pub fn keeps_a_good_version(make: &Make<'_>) {
    for schema in [0, 1] {
        let mut policy = make(&[100; 3]);
        let mut upgrade = Upgrade::begin(&mut *policy, proposal(2, schema));
        let mut judged = (0..JUDGED_MOST).map(|_| upgrade.judged(&mut *policy));
        let last = judged.find(|it| !matches!(it, Judgement::Wait(_) | Judgement::Advance(_)));
        assert_eq!(last, Some(Judgement::Keep));
    }
}

/// A fresh policy that was given the state of another judges as that one does, in
/// the midst of an upgrade.
///
/// # Panics
///
/// When it does not.
pub fn goes_on_from_its_state(make: &Make<'_>) {
    for before in 0..5 {
        let mut old = make(&[100; 3]);
        let mut upgrade = Upgrade::begin(&mut *old, proposal(0, 0));
        for _ in 0..before {
            upgrade.judged(&mut *old);
        }
        let mut new = make(&[100; 3]);
        if let Some(state) = old.save() {
            new.restore(&state).expect("it takes its own state");
        }
        let mut same = upgrade.clone();
        for _ in 0..5 {
            assert_eq!(upgrade.judged(&mut *old), same.judged(&mut *new));
        }
    }
}

/// An upgrade of a task to the next generation, with these formats of state.
#[must_use]
pub fn proposal(replica: u32, state_schema: u32) -> Proposal {
    let version = |generation| Version {
        digest: "0123456789abcdef".repeat(4),
        generation,
        state_schema,
    };
    Proposal {
        now: 0,
        replica,
        old: version(1),
        new: version(2),
        connections: 0,
        labels: Vec::new(),
    }
}

/// An upgrade on a simulated host, to a version that does as well as the old one.
#[derive(Clone, Debug)]
pub struct Upgrade {
    proposal: Proposal,
    /// What the old version did.
    pub old: Observation,
    /// What the new version did.
    pub new: Observation,
}

impl Upgrade {
    /// Asks whether it may begin.
    ///
    /// # Panics
    ///
    /// When the answer is none.
    pub fn begin(policy: &mut dyn Policy, proposal: Proposal) -> Self {
        answer(policy, &Question::Review(proposal.clone()));
        let quick = Observation {
            median: 1_000_000,
            p99: 5_000_000,
            ..Observation::default()
        };
        Self {
            proposal,
            old: quick,
            new: quick,
        }
    }

    /// Lets both versions take 100 connections and asks what becomes of the new one.
    ///
    /// # Panics
    ///
    /// When the answer is none.
    pub fn judged(&mut self, policy: &mut dyn Policy) -> Judgement {
        self.old.connections += 100;
        self.new.connections += 100;
        self.proposal.now += 60_000_000_000;
        let question = Question::Judge(self.proposal.clone(), self.old, self.new);
        match answer(policy, &question) {
            Answer::Judge(judgement) => judgement,
            other => panic!("{other:?}"),
        }
    }
}

fn observations() -> Vec<Observation> {
    let mut all = Vec::new();
    for (place, connections) in NUMBERS.into_iter().enumerate() {
        for errors in NUMBERS {
            for faults in [0, 1, u32::MAX] {
                all.push(Observation {
                    connections,
                    errors,
                    faults,
                    median: errors,
                    p99: NUMBERS[(place + 3) % NUMBERS.len()],
                });
            }
        }
    }
    all
}

fn odd_questions() -> Vec<Question> {
    let mut asked = Vec::new();
    for (place, number) in NUMBERS.into_iter().enumerate() {
        let low = u32::try_from(number % (1 << 32)).unwrap();
        for replica in [0, 2, u32::MAX] {
            let mut odd = proposal(replica, low);
            (odd.now, odd.connections) = (number, low);
            (odd.old.generation, odd.new.generation) = (number, number.wrapping_add(1));
            odd.new.state_schema = [low, 0][place % 2];
            odd.new.digest = "\u{1b}".repeat(place);
            odd.labels = vec![("tier".to_owned(), "x".repeat(place * 1000)); place];
            asked.push(Question::Review(odd.clone()));
            asked.push(Question::Transform(odd.clone(), vec![255; place * 10_000]));
            for (old, new) in observations().iter().rev().zip(observations()) {
                asked.push(Question::Judge(odd.clone(), *old, new));
            }
        }
    }
    asked
}
