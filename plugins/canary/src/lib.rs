//! A router: a share of the clients to tasks that are on trial.
//!
//! The replicas of a task with the label `canary = "10"` get 10 percent of the
//! clients whose connections they could take; the tasks without that label get the
//! rest. Of several canaries each has its share, those of the lowest number first
//! when they want more than all. A client stays with what it got as long as the
//! shares stay: it is told by its address, or by its number when it is a task. Of
//! the replicas on its side, the one with the fewest connections takes the next.
//!
//! Devices, and connections to the outside, are left to the built-in policy.
//!
//! | label of a task | |
//! |---|---|
//! | `canary = "2.5"` | its share in percent, 0 to 100 |
//!
//! | setting | default | |
//! |---|---|---|
//! | `sticky` | `true` | `false`: each connection by lot |
//! | `seed` | `0` | another number makes other clients the first |
//!
//! ```toml
//! [policy.router]
//! plugin = "plugins/canary"
//! config = { seed = 7 }
//!
//! [[task]]
//! name = "web-next"
//! labels = { canary = "10" }
//! ```

mod bindings;

use std::sync::Mutex;

use bindings::{lifecycle, router};
use lifecycle::{Identity, Setting, Task};
use router::{AttachVerdict, Attachment, Connection, Direction, Verdict};
use wharf_plugin_settings::{Settings, open, thousandths, wrong};

/// All, in thousandths of a percent.
const ALL: u64 = 100_000;

static POLICY: Mutex<Canary> = Mutex::new(Canary {
    sticky: true,
    seed: 0,
    groups: Vec::new(),
});

struct Canary {
    sticky: bool,
    seed: u64,
    /// By number of the replica: what it belongs to.
    groups: Vec<Option<Group>>,
}

/// The replicas of a task that is on trial.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Group {
    /// Number of the task's first replica.
    first: usize,
    /// Its share, in thousandths of a percent.
    share: u64,
}

impl Canary {
    fn configure(settings: Vec<Setting>, tasks: &[Task]) -> Result<Self, String> {
        let mut by = Settings::new(settings.into_iter().map(|it| (it.key, it.value)));
        let bool = |text: &str| text.parse().ok();
        let sticky = by.read("sticky", true, "true or false", bool)?;
        let seed = by.number("seed", 0..=u64::MAX, 0)?;
        by.finish()?;
        let group = |task: &Task| {
            let Some(label) = task.labels.iter().find(|it| it.key == "canary") else {
                return Ok(None);
            };
            let wanted = "a share in percent from 0 to 100, such as canary = \"10\"";
            let refusal = || wrong("canary", &label.value, wanted);
            let share = thousandths(&label.value).filter(|share| *share <= ALL);
            let share = share.ok_or_else(|| format!("task {}: label {}", task.name, refusal()))?;
            let first = tasks.iter().position(|it| it.name == task.name);
            Ok(first.map(|first| Group { first, share }))
        };
        Ok(Self {
            sticky,
            seed,
            groups: tasks.iter().map(group).collect::<Result<_, String>>()?,
        })
    }

    fn connect(&self, asked: &Connection) -> Verdict {
        if asked.direction == Direction::Outbound {
            return Verdict::BuiltIn;
        }
        let side = self.side(asked);
        // Those with the fewest connections come first.
        let mut places = (0..).zip(&asked.targets);
        let taken = places.find(|(_, target)| self.group(target.replica) == side);
        taken.map_or(Verdict::BuiltIn, |(place, _)| Verdict::Target(place))
    }

    /// Which canary takes the connection, if one does.
    fn side(&self, asked: &Connection) -> Option<Group> {
        let targets = asked.targets.iter().map(|it| self.group(it.replica));
        let mut groups: Vec<Group> = targets.clone().flatten().collect();
        groups.sort_by_key(|it| it.first);
        groups.dedup();
        let mut point = self.point(asked);
        for group in &groups {
            match point.checked_sub(group.share) {
                None => return Some(*group),
                Some(rest) => point = rest,
            }
        }
        // For the rest, unless there is none: then those on trial are all there is.
        let rest = targets.clone().any(|it| it.is_none());
        groups.last().copied().filter(|_| !rest)
    }

    /// Where a connection falls, below [`ALL`].
    fn point(&self, asked: &Connection) -> u64 {
        let (source, from) = (asked.source, asked.from_replica);
        let known = from.is_some() || (source.high, source.low) != (0, 0);
        let drawn = if self.sticky && known {
            let from = from.map_or(0, |it| u64::from(it).saturating_add(1));
            let seeded = mixed(self.seed);
            [source.high, source.low, from]
                .into_iter()
                .fold(seeded, |hash, part| mixed(hash ^ part))
        } else {
            asked.lot
        };
        drawn.checked_rem(ALL).unwrap_or(0)
    }

    fn group(&self, replica: u32) -> Option<Group> {
        let number = usize::try_from(replica).ok()?;
        self.groups.get(number).copied().flatten()
    }
}

/// Scatters numbers that lie close together: the finisher of splitmix64. Written
/// out, because a client's side must not change with the version of a library.
const fn mixed(number: u64) -> u64 {
    let mut it = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    it ^ (it >> 31)
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

    fn configure(settings: Vec<Setting>, tasks: Vec<Task>) -> Result<(), String> {
        *open(&POLICY) = Canary::configure(settings, &tasks)?;
        Ok(())
    }

    fn save() -> Vec<u8> {
        Vec::new()
    }

    fn restore(_schema: u32, _state: Vec<u8>) -> Result<(), String> {
        Err("canary keeps no state".to_owned())
    }
}

impl router::Guest for Plugin {
    fn attach(_attachment: Attachment) -> AttachVerdict {
        AttachVerdict::BuiltIn
    }

    fn connect(connection: Connection) -> Verdict {
        open(&POLICY).connect(&connection)
    }
}

#[cfg(test)]
mod tests;
