//! `wit/policy.wit` as Rust types.

#![allow(
    clippy::all,
    clippy::restriction,
    dead_code,
    missing_docs,
    unreachable_pub,
    unsafe_code,
    unsafe_op_in_unsafe_fn,
    unused_qualifications,
    reason = "generated; `wit/policy.wit` is the manual"
)]

wit_bindgen::generate!({
    path: "../../wit",
    world: "upgrader-plugin",
    additional_derives: [PartialEq, Eq],
});

pub(crate) use exports::wharf::policy::{lifecycle, upgrader};

// Only of a component: in the symbols of ELF, `@` stands before a version.
#[cfg(target_family = "wasm")]
export!(Plugin with_types_in self);
#[cfg(target_family = "wasm")]
use super::Plugin;
