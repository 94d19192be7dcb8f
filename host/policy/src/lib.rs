//! Policies as sandboxed WebAssembly components.
//!
//! A [`Plugin`] is a component that was compiled and found to speak
//! `wharf:policy`; an [`Instance`] of it answers questions. A [`Slot`] is where the
//! host asks: it has a plugin or none, changes it between two questions, and always
//! answers.
//!
//! The only crate that runs Wasm; what `wharf build` does to make components of modules
//! is the edge's. It must never know KVM, guests, the control
//! socket or the configuration file; what is sensible to answer is decided in
//! [`wharf_model::policy`].

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::as_conversions,
        clippy::arithmetic_side_effects,
        reason = "a test may stop where it stands"
    )
)]

mod bindings;
mod bounds;
mod clock;
mod engine;
mod instance;
mod keeper;
mod notice;
mod plugin;
mod sandbox;
mod seen;
mod slot;
mod slots;
mod stats;
mod trace;

pub use bindings::VERSION;
pub use bounds::Excess;
pub use clock::now;
pub use engine::{Engine, EngineError, default_cache};
pub use instance::{Fault, Instance, Setup, State, TaskFacts};
pub use notice::{Notice, NoticeKind};
pub use plugin::{Identity, Plugin, Refusal, Surface, digest};
pub use seen::{By, Seen};
pub use slot::{
    CarriedSlot, CarryError, Difference, Held, OnFault, Rehearsal, RemoveRefusal, Removed,
    RollbackRefusal, RolledBack, Shadowed, Slot, SlotConfig, SlotStatus, StateMoved, SwapOptions,
    SwapRefusal, Swapped,
};
pub use slots::{CarriedSlots, OpenError, Opened, Slots};
pub use stats::{BUCKETS_NS, CallTimes};
pub use trace::{
    ReplayError, ReplayFailure, ReplayOptions, Replayed, TRACE_VERSION, Trace, TraceHeader,
    TraceLine, TracedPlugin, replay,
};
