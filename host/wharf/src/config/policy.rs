//! Policies: plugins in place of what is built in.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::de::ValueDeserializer;
use toml::{Table, Value};
use wharf_model::policy::SlotName;
use wharf_policy::{OnFault, SlotConfig};

use super::field::Field;
use super::findings::Findings;
use super::section::Key;
use crate::cell::PolicySpec;

const SCHEDULER: Key = Key::new("scheduler", "[policy.scheduler]");
const ROUTER: Key = Key::new("router", "[policy.router]");
const UPGRADER: Key = Key::new("upgrader", "[policy.upgrader]");

const PLUGIN: Key = Key::new("plugin", "plugin = \"plugins/fair-share\"");
const DEADLINE: Key = Key::new("deadline", "deadline = \"1ms\"");
const ON_FAULT: Key = Key::new("on-fault", "on-fault = \"built-in\"");
const CONFIG: Key = Key::new("config", "config = { boost = 2 }");

/// The slots and what is in them; an empty one has what is built in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policies {
    /// Who runs next, and for how long.
    pub scheduler: Option<Policy>,
    /// Which replica a connection goes to.
    pub router: Option<Policy>,
    /// Whether a new generation is good.
    pub upgrader: Option<Policy>,
}

/// A plugin in a slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The plugin: a component or the source of one.
    pub plugin: PathBuf,
    /// How long one call may take; the slot's own when there is none.
    pub deadline: Option<Duration>,
    /// Who decides when the plugin cannot.
    pub on_fault: OnFault,
    /// What the plugin is configured with.
    pub config: Table,
}

impl Policies {
    /// Those that there are, with their slots.
    pub fn all(&self) -> impl Iterator<Item = (SlotName, &Policy)> {
        let slots = [
            (SlotName::Scheduler, &self.scheduler),
            (SlotName::Router, &self.router),
            (SlotName::Upgrader, &self.upgrader),
        ];
        let there = slots.into_iter();
        there.filter_map(|(slot, policy)| Some((slot, policy.as_ref()?)))
    }

    pub(super) fn read(field: Field<'_>, found: &mut Findings<'_>) -> Self {
        let Some(section) = field.section("[policy]", &[SCHEDULER, ROUTER, UPGRADER], found) else {
            return Self::default();
        };
        let built_in = ("built-in", OnFault::BuiltIn);
        let deny = ("deny", OnFault::Deny);
        let mut slot = |key, words: &[_]| Policy::read(section.get(key)?, words, found);
        Self {
            scheduler: slot(SCHEDULER, &[built_in]),
            router: slot(ROUTER, &[built_in, deny]),
            upgrader: slot(UPGRADER, &[built_in]),
        }
    }
}

impl Policy {
    /// What a cell is told of it, when its component is there.
    #[must_use]
    pub fn spec(&self, slot: SlotName, plugin: PathBuf) -> PolicySpec {
        let usual = SlotConfig::of(slot);
        PolicySpec {
            slot,
            plugin,
            settings: self.settings(),
            config: SlotConfig {
                deadline: self.deadline.unwrap_or(usual.deadline),
                on_fault: self.on_fault,
            },
        }
    }

    /// `config` as plugins get it: text as it is, and everything else as TOML writes
    /// it.
    fn settings(&self) -> Vec<(String, String)> {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let settings = self.config.iter();
        settings
            .map(|(key, value)| (key.clone(), text(value)))
            .collect()
    }

    fn read(
        field: Field<'_>,
        on_fault: &[(&str, OnFault)],
        found: &mut Findings<'_>,
    ) -> Option<Self> {
        let keys = &[PLUGIN, DEADLINE, ON_FAULT, CONFIG];
        let section = field.section("a policy", keys, found)?;
        let plugin = section.require(PLUGIN, found);
        let plugin = plugin.and_then(|it| it.path(found));
        let deadline = section.get(DEADLINE).and_then(|it| {
            let deadline = it.duration(found)?;
            if deadline.is_zero() {
                it.wrong_unlike("leaves no time", found);
            }
            Some(deadline)
        });
        let chosen = section.get(ON_FAULT);
        let chosen = chosen.and_then(|it| it.word(on_fault, found));
        let config = section.get(CONFIG).and_then(|it| read_table(it, found));
        Some(Self {
            plugin: plugin.unwrap_or_default(),
            deadline,
            on_fault: chosen.unwrap_or_default(),
            config: config.unwrap_or_default(),
        })
    }
}

fn read_table(field: Field<'_>, found: &mut Findings<'_>) -> Option<Table> {
    field.open_section(found)?;
    match Table::deserialize(ValueDeserializer::from(field.value.clone())) {
        Ok(table) => Some(table),
        // Only now do numbers have to be ones.
        Err(error) => {
            let at = error.span().map_or(field.at(), |span| span.start);
            found.add(
                at,
                "config holds a number that is too large: write it as text",
            );
            None
        }
    }
}
