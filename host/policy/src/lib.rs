//! Policies as sandboxed WebAssembly components.
//!
//! A [`Plugin`] is a component that was compiled and found to speak
//! `wharf:policy`; an [`Instance`] of it answers questions. A [`Slot`] is where the
//! host asks: it has a plugin or none, changes it between two questions, and always
//! answers.
//!
//! The only crate that knows Wasm. It must never know KVM, guests, the control
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
mod engine;
mod instance;
mod plugin;
mod sandbox;

pub use bindings::VERSION;
pub use engine::{Engine, EngineError};
pub use instance::{Fault, Instance, Setup, State, TaskFacts};
pub use plugin::{Identity, Plugin, Refusal, Surface};
