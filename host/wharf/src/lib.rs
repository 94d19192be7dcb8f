//! wharf: runs single-purpose ELF unikernels on KVM.
//!
//! This crate is the edge: it knows the command line, files, signals, terminals
//! and time, and joins the crates that do not know each other. What to do is
//! decided in `wharf-model`; how to do it to a guest is in `wharf-machine`.
//! Start at [`cli`], then [`run`].

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::as_conversions,
        clippy::arithmetic_side_effects
    )
)]

pub mod build;
pub mod cell;
pub mod cli;
pub mod config;
pub mod control;
pub mod device;
pub mod doctor;
mod guest;
mod headroom;
pub mod net;
mod path;
pub mod run;
pub mod scaffold;
pub mod text;
pub mod units;
