//! A guest on KVM: its image checked, its memory laid out, its vCPU run, its
//! faults explained.
//!
//! [`Image`](image::Image) turns a hostile file into checked parts.
//! [`Machine::boot`] lays it out in fresh guest memory ([`layout`]), writes page
//! tables and descriptor tables that the guest cannot reach, and
//! [`Machine::enter`] runs it until it makes a [`Call`], faults, or is
//! interrupted. What to do then is not decided here. [`device`] serves the rings of
//! the guest's devices; [`snapshot`] freezes a guest into a file and makes others of it.
//!
//! # Who is trusted
//!
//! The guest is hostile. It runs at CPL 3 with no privilege and no I/O port but
//! the hypercalls', so the page tables, which only the host writes, hold it. A
//! guest-supplied number is read once from the registers that KVM copied out;
//! a guest-supplied pointer is a [`UserSlice`], which only
//! [`Machine::read_user`] opens. No reference into guest memory exists anywhere:
//! `memory.rs` copies.
//!
//! # What this crate must never know
//!
//! Policies, configuration, devices' backends, other guests, the terminal. All
//! its `unsafe` is in `memory.rs`, `transfer.rs`, `ioctl.rs` and `time.rs`.

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

pub mod device;
pub mod fault;
pub mod handover;
pub mod image;
pub mod layout;
pub mod memory;
pub mod probe;
pub mod snapshot;
pub mod time;

mod boot;
mod cpuid;
mod descriptors;
mod error;
mod exit;
mod hvt;
mod ioctl;
mod machine;
mod paging;
mod report;
mod space;
#[cfg(test)]
mod testing;
mod transfer;
mod tun;
mod upgrade;
mod vcpu;

pub use boot::{Args, ArgsError, BootConfig};
pub use error::Error;
pub use exit::{Call, Exit};
pub use fault::Fault;
pub use machine::{Hypervisor, Machine};
pub use report::Report;
pub use space::UserSlice;
pub use transfer::Buffers;
pub use tun::Tun;
pub use upgrade::{BadLegacy, Legacy, Resting};
