//! Guests of Solo5's hvt contract, written for it here: what they are promised, what
//! they may not do, and what is refused before they run.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that goes wrong stops"
)]

mod calls;
mod devices;
mod hostile;
mod images;
mod scenarios;
mod start;
mod suite;
mod taps;
mod upgrades;
