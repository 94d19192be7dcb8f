//! What a unikernel links to run on wharf.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//!
//! use wharf::println;
//!
//! #[wharf::main]
//! fn main() {
//!     println!("Hello, {}!", wharf::args());
//! }
//! ```
//!
//! A package names this crate `wharf` (`wharf = { package = "wharf-rt", … }`),
//! because [`main`] refers to it by that name. With it come the entry point,
//! a global allocator, a panic handler, and the memory functions that compiled
//! code calls. A guest has one vCPU and no interrupts, so nothing here blocks
//! anything else; what waits, waits in the host ([`wait`]).
//!
//! - Leaving and waiting: [`exit`], [`wait`], [`Termination`].
//! - What the host said: [`boot`], [`args`].
//! - Output: [`println!`], [`print!`].
//! - Time: [`time`] to read and to sleep, [`timer`] for `async` code.
//! - Concurrency: `async fn main`, [`task::spawn`].
//! - Random numbers: [`random`].
//! - Disks: [`block`].
//! - TCP connections: [`stream`].
//! - State and connections that outlive a version: [`upgrade`].
//! - Ethernet frames, for a network stack of one's own: `net`, with the feature
//!   `embassy-net`.
//!
//! This crate must never know: KVM, how the host keeps its word, or any device
//! that the contract (`wharf-abi`) does not name. Start at `start.rs`.

#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing))]

extern crate alloc;

mod args;
pub mod block;
mod boot;
pub mod console;
pub mod device;
pub mod entropy;
mod executor;
// A guest is always built to abort on panic, and nothing else is: what a program
// of the host's has already stays out of a build that could be linked to one.
#[cfg(all(not(test), panic = "abort"))]
mod heap;
mod hypercall;
pub mod input;
mod mem;
#[cfg(feature = "embassy-net")]
pub mod net;
#[cfg(all(not(test), panic = "abort"))]
mod panic;
pub mod random;
mod source;
mod start;
pub mod stream;
pub mod task;
mod termination;
pub mod time;
pub mod timer;
mod transport;
pub mod upgrade;

pub use args::{Args, args};
pub use boot::boot;
pub use embassy_executor::Spawner;
pub use embassy_time;
pub use hypercall::{exit, wait};
pub use rand_core;
pub use termination::{ExitCode, Termination};
pub use wharf_abi::{self as abi, BootPage, Interest};
/// Makes a function the unikernel's main function.
///
/// It goes on a `fn` or an `async fn` without arguments, or on an `async fn`
/// with one: a [`Spawner`]. What the function returns ends the guest, by
/// [`Termination`]; tasks that still run then end with it. The future of an
/// `async fn` lives on the stack.
///
/// The attribute also writes the image's manifest. Its arguments, all optional:
///
/// | argument | meaning | default |
/// |---|---|---|
/// | `name = "kv"` | the image's name | the binary's |
/// | `memory_min = "8MiB"` | least memory to run with | none |
/// | `stack = "64KiB"` | stack | 256 KiB |
/// | `state = 2` | format of the state that it hands over ([`upgrade`]) | 0, none |
/// | `block = ["data"]` | block devices wanted, by name | none |
/// | `stream = [..]`, `net = [..]`, `entropy = [..]`, `console = [..]` | the same of other kinds | none |
///
/// Sizes are whole numbers with a unit: KiB, MiB or GiB. The version in the
/// manifest is the package's.
///
/// The crate's lint level for `unsafe_code` may be `deny`, not `forbid`: an
/// entry point is an exported symbol, and that counts as unsafe.
pub use wharf_rt_macros::main;

/// What the expansion of [`main`] uses. Not for people.
#[doc(hidden)]
pub mod __rt {
    pub use wharf_abi::note::Note;
    pub use wharf_abi::{DeviceKind, Manifest};

    pub use crate::boot::BootPointer;
    pub use crate::start::{start, start_async};
}
