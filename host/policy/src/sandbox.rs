//! What surrounds one instance: its limits, the time of its call, its log lines.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use wasmtime::component::HasData;
use wasmtime::{StoreContextMut, StoreLimits, StoreLimitsBuilder, UpdateDeadline};
use wharf_model::policy::SlotName;

use crate::bindings::log::{self, Level};
use crate::engine::{MEMORY_LEN, TABLE_LEN, TICK};

/// Lines that a plugin may log in a second; the rest is counted.
const LINES_PER_SECOND: u32 = 10;

/// Instances, memories and tables of one store: what a component of any language
/// needs.
const PARTS: usize = 48;

/// A call took too long.
#[derive(Debug, thiserror::Error)]
#[error("the call took longer than {0:?}")]
pub(crate) struct TimeOut(pub(crate) Duration);

/// The host's side of one instance.
pub(crate) struct Sandbox {
    pub(crate) limits: StoreLimits,
    /// How long the present call may take.
    pub(crate) budget: Duration,
    /// What the thread's clock showed at the first tick of the present call.
    pub(crate) first_tick: Option<Duration>,
    lines: Lines,
}

/// Counts log lines.
struct Lines {
    /// The slot that it is in; all that it could be in until it is asked something.
    slot: String,
    who: String,
    second: Instant,
    taken: u32,
    left_out: u64,
}

impl HasData for Sandbox {
    type Data<'a> = &'a mut Self;
}

impl Sandbox {
    /// For a plugin that is called so in the log, and could be in these slots.
    pub(crate) fn new(who: String, slots: &[SlotName]) -> Self {
        let slots: Vec<_> = slots.iter().map(|slot| slot.as_str()).collect();
        let limits = StoreLimitsBuilder::new()
            .memory_size(MEMORY_LEN)
            .table_elements(TABLE_LEN)
            .instances(PARTS)
            .memories(PARTS)
            .tables(PARTS)
            .build();
        Self {
            limits,
            budget: Duration::ZERO,
            first_tick: None,
            lines: Lines {
                slot: slots.join("/"),
                who,
                second: Instant::now(),
                taken: 0,
                left_out: 0,
            },
        }
    }

    /// Says in which slot it is.
    pub(crate) fn in_slot(&mut self, slot: SlotName) {
        if self.lines.slot != slot.as_str() {
            slot.as_str().clone_into(&mut self.lines.slot);
        }
    }
}

/// Called at each tick of the epoch during a call.
///
/// What counts is the time that the thread ran, from the first tick on: a host that
/// gives the thread no processor for a while must not be taken for a plugin that
/// loops. Costs nothing in a call that is over before the first tick.
pub(crate) fn tick(mut store: StoreContextMut<'_, Sandbox>) -> wasmtime::Result<UpdateDeadline> {
    let now = thread_time();
    let sandbox = store.data_mut();
    let first = *sandbox.first_tick.get_or_insert(now);
    // What was used before the first tick is a tick at most, and not counted.
    if now.saturating_sub(first) >= sandbox.budget {
        return Err(TimeOut(sandbox.budget).into());
    }
    let left = sandbox.budget.saturating_sub(now.saturating_sub(first));
    let ticks = left.as_nanos().checked_div(TICK.as_nanos()).unwrap_or(0);
    Ok(UpdateDeadline::Continue(
        u64::try_from(ticks).unwrap_or(1).max(1),
    ))
}

/// For how long this thread has run.
fn thread_time() -> Duration {
    // The clock exists on every Linux; without it calls would have no time at all.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::MAX, Duration::from)
}

impl log::Host for Sandbox {
    fn write(&mut self, level: Level, message: String) {
        self.lines.write(level, &message);
    }
}

impl Lines {
    fn write(&mut self, level: Level, message: &str) {
        if self.second.elapsed() >= Duration::from_secs(1) {
            if self.left_out > 0 {
                let (slot, who, count) = (&self.slot, &self.who, self.left_out);
                ::log::warn!("{slot}: {who}: {count} lines were left out");
            }
            (self.second, self.taken, self.left_out) = (Instant::now(), 0, 0);
        }
        if self.taken >= LINES_PER_SECOND {
            self.left_out = self.left_out.saturating_add(1);
            return;
        }
        self.taken = self.taken.saturating_add(1);
        let level = match level {
            Level::Debug => ::log::Level::Debug,
            Level::Info => ::log::Level::Info,
            Level::Warn => ::log::Level::Warn,
            Level::Error => ::log::Level::Error,
        };
        let message = wharf_model::policy::check::short(message);
        ::log::log!(level, "{}: {}: {message}", self.slot, self.who);
    }
}
