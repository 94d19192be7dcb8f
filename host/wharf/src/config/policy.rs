//! Policies: plugins in place of what is built in.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::Table;
use toml::de::ValueDeserializer;

use super::field::Field;
use super::findings::Findings;
use super::section::Key;

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

/// Who decides in place of a plugin that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFault {
    /// What is built in.
    #[default]
    BuiltIn,
    /// No one: what was asked for is refused. Routers only.
    Deny,
}

impl Policies {
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
    fn read(
        field: Field<'_>,
        on_fault: &[(&str, OnFault)],
        found: &mut Findings<'_>,
    ) -> Option<Self> {
        let keys = &[PLUGIN, DEADLINE, ON_FAULT, CONFIG];
        let section = field.section("a policy", keys, found)?;
        found.add_unsupported(
            field.at(),
            "policy plugins come with a later version of wharf: take this table out",
        );
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
