//! An upgrader: turns the state of the example service `session` from the format of one
//! version into that of the other, so that neither has to know of the other.
//!
//! Format 1 is a list of keys and values, each with its length before it. Format 2 has
//! a count behind each pair. Going back forgets the counts. Everything else is left to
//! the built-in policy.
//!
//! ```toml
//! [policy.upgrader]
//! plugin = "plugins/session-formats"
//! ```

mod bindings;

use bindings::{lifecycle, upgrader};
use lifecycle::{Identity, Setting, Task};
use upgrader::{Judgement, Observation, Plan, Proposal};
use wharf_plugin_settings::{Settings, same_format};

/// Puts a count of 0 behind each pair.
fn first_to_second(mut state: &[u8]) -> Option<Vec<u8>> {
    let mut made = Vec::with_capacity(state.len());
    while !state.is_empty() {
        made.extend_from_slice(pair(&mut state)?);
        made.extend_from_slice(&0_u32.to_le_bytes());
    }
    Some(made)
}

/// Takes the count from behind each pair.
fn second_to_first(mut state: &[u8]) -> Option<Vec<u8>> {
    let mut made = Vec::with_capacity(state.len());
    while !state.is_empty() {
        made.extend_from_slice(pair(&mut state)?);
        state = state.split_at_checked(4)?.1;
    }
    Some(made)
}

/// A key and its value, with their lengths.
fn pair<'a>(state: &mut &'a [u8]) -> Option<&'a [u8]> {
    let whole = *state;
    text(state)?;
    text(state)?;
    let len = whole.len().checked_sub(state.len())?;
    whole.get(..len)
}

/// Passes over a text.
fn text(state: &mut &[u8]) -> Option<()> {
    let (len, rest) = state.split_first_chunk()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    *state = rest.get(len..)?;
    Some(())
}

fn transform(old: u32, new: u32, state: Vec<u8>) -> Result<Vec<u8>, String> {
    let made = match (old, new) {
        (1, 2) => first_to_second(&state),
        (2, 1) => second_to_first(&state),
        _ => return same_format(old, new, state),
    };
    made.ok_or_else(|| format!("{} bytes of state are none of format {old}", state.len()))
}

struct Plugin;

impl lifecycle::Guest for Plugin {
    fn describe() -> Identity {
        Identity {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state_schema: 0,
            oldest_schema: 0,
        }
    }

    fn configure(settings: Vec<Setting>, _tasks: Vec<Task>) -> Result<(), String> {
        Settings::new(settings.into_iter().map(|it| (it.key, it.value))).finish()
    }

    fn save() -> Vec<u8> {
        Vec::new()
    }

    fn restore(_schema: u32, _state: Vec<u8>) -> Result<(), String> {
        Err("session-formats keeps no state".to_owned())
    }
}

impl upgrader::Guest for Plugin {
    fn review(_proposal: Proposal) -> Plan {
        Plan::BuiltIn
    }

    fn transform(proposal: Proposal, state: Vec<u8>) -> Result<Vec<u8>, String> {
        transform(proposal.old.state_schema, proposal.new.state_schema, state)
    }

    fn judge(_proposal: Proposal, _old: Observation, _new: Observation) -> Judgement {
        Judgement::BuiltIn
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
mod tests {
    use super::transform;

    fn text(text: &str) -> Vec<u8> {
        let len = u32::try_from(text.len()).unwrap();
        [&len.to_le_bytes(), text.as_bytes()].concat()
    }

    #[test]
    fn pairs_get_a_count_and_lose_it_again() {
        let pairs = [("a", "1"), ("key", ""), ("", "value")];
        let first: Vec<u8> = pairs
            .iter()
            .flat_map(|(key, value)| [text(key), text(value)].concat())
            .collect();
        let second = transform(1, 2, first.clone()).unwrap();
        assert_eq!(second.len(), first.len() + 3 * 4);
        assert_eq!(transform(2, 1, second).unwrap(), first);
        assert_eq!(transform(1, 2, Vec::new()).unwrap(), []);
    }

    #[test]
    fn what_is_no_state_is_refused() {
        for state in [vec![1], vec![9, 0, 0, 0, 1], text("key without a value")] {
            transform(1, 2, state.clone()).unwrap_err();
            transform(2, 1, state).unwrap_err();
        }
        transform(1, 3, Vec::new()).unwrap_err();
    }
}
