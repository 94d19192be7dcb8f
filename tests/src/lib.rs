//! The words that wharf's tests are written in.
//!
//! [`elf`] and [`hvt`] make images, good and bad; [`guest`] runs raw machine code in a
//! real VM, and [`frames`] has guests of it for a wire; [`plugin`] makes plugins, good and
//! bad; [`command`] runs the real binary, [`host`] keeps one running, [`tap`] has a
//! network for it, [`net`] and [`process`] say what is free and what is used, and
//! [`mod@bench`] is for those that measure, and [`floor`] the least that there is to it. Tests under `tests/` are sentences and tables
//! made of these. Levels that need `/dev/kvm` say aloud when they skip, and fail instead
//! when `REQUIRE_KVM=1` is set.

pub mod bench;
pub mod command;
pub mod conformance;
pub mod disk;
pub mod elf;
pub mod floor;
pub mod frames;
pub mod guest;
pub mod handover;
pub mod host;
pub mod http;
pub mod hvt;
pub mod load;
pub mod net;
pub mod plugin;
pub mod process;
pub mod tap;
