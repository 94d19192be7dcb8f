//! wharf: runs single-purpose ELF unikernels on KVM.
//!
//! This crate is the edge: it knows the command line, files, signals, terminals
//! and time, and joins the crates that do not know each other. What to do is
//! decided in `wharf-model`; how to do it to a guest is in `wharf-machine`.
//! Start at [`cli`], then [`run`].

#![forbid(unsafe_code)]

pub mod cli;
pub mod run;
pub mod units;
