//! The contract between the wharf host and its guests.
//!
//! A *guest* is one freestanding ELF image that runs at CPL 3 in x86-64 long
//! mode. It owns no page table, no descriptor table and no interrupt: it
//! computes, reads its [`BootPage`], and asks for the rest by [`Hypercall`].
//! Both sides compile this crate, so there is one copy of every number.
//!
//! # A guest's life
//!
//! 1. The host reads the image's [`Manifest`] from its ELF note ([`note`]),
//!    binds every device that it declares, or refuses to start.
//! 2. It maps each `PT_LOAD` segment with exactly the permissions the ELF names
//!    (never writable *and* executable), a read-only [`BootPage`], a stack with
//!    an unmapped guard page below, and a zeroed heap.
//! 3. It enters the image's entry point as if it were an
//!    `extern "C" fn(boot: *const BootPage) -> !`: RDI holds the boot page's
//!    address, RSP + 8 is a multiple of 16, all other general registers are 0,
//!    the direction flag is clear and MXCSR and the x87 control word have their
//!    reset values.
//! 4. The guest ends by [`Hypercall::Exit`]. Any exception, forbidden port or
//!    bad pointer ends it too, as a fault.
//!
//! # Versions
//!
//! [`AbiVersion::CURRENT`] names this contract. A host runs an image when the
//! major numbers are equal and the image's minor number is not above the
//! host's: a minor step only adds (fields at the end of [`BootPage`],
//! hypercalls, interest bits), a major step may change anything.
//!
//! This crate must never know: KVM, an operating system, how a guest is linked,
//! or what a host does with an answer. Start at [`boot`], then [`hypercall`], then
//! [`device`], [`stream`], [`net`] and [`upgrade`].

#![no_std]
#![forbid(unsafe_code)]

pub mod boot;
pub mod clock;
pub mod device;
pub mod hypercall;
pub mod manifest;
pub mod net;
pub mod note;
pub mod stream;
pub mod upgrade;
mod version;

pub use boot::{BootPage, Span};
pub use clock::Clock;
pub use device::{DeviceEntry, DevicePage};
pub use hypercall::{Answer, Hypercall, Interest, Status};
pub use manifest::{DeviceKind, DeviceRequest, Manifest};
pub use version::AbiVersion;
