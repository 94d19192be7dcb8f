//! Every decision of the host, and nothing else.
//!
//! A decision is a function of the time and of what happened:
//! `(now, Event) -> Action`. What happened is told by the crates around this
//! one, which also carry the actions out. So every rule here is tested by a
//! script that runs in microseconds, with time as an argument.
//!
//! This crate must never know: an operating system, a clock, a lock, a thread,
//! KVM, Wasm, a file. Start at [`task`].

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

pub mod cell;
pub mod outcome;
pub mod policy;
pub mod schedule;
pub mod stream;
pub mod switch;
pub mod task;
pub mod time;
pub mod upgrade;

#[cfg(test)]
mod world;

pub use outcome::{Outcome, Stop};
pub use task::{Action, Event, Task};
pub use time::Instant;
