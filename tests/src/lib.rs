//! The words that wharf's tests are written in.
//!
//! [`elf`] makes images, good and bad; [`guest`] runs raw machine code in a real
//! VM; [`command`] runs the real binary; [`conformance`] is what policies are held
//! to. Tests under `tests/` are sentences and tables made of these. Levels that need
//! `/dev/kvm` say aloud when they skip, and fail instead when `REQUIRE_KVM=1` is set.

pub mod command;
pub mod conformance;
pub mod elf;
pub mod guest;
pub mod host;
