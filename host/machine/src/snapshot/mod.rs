//! A guest frozen, and any number of guests that go on from there.
//!
//! ```text
//!   Machine ──save──▶ Saved ──write_to──▶ file ──open──▶ Snapshot ──restore──▶ Machine
//!   guest stands         may take its time                     as often as wanted
//! ```
//!
//! A snapshot holds the registers that a guest itself can set, its memory, and of its
//! devices what the memory does not say. Nothing that holds a guest in is taken from
//! it: page tables, descriptor tables, system registers and the boot page are made
//! anew from the image and a few numbers, by the code that boots a guest. So a forged
//! file makes a guest that may do what a booted one may, and no more.
//!
//! Clones share the file's pages until they write to them. The file must therefore
//! stay as it is while they run; a new snapshot under the same name is another file
//! and does no harm.
//!
//! This module must never know: tasks, policies, what stands behind a device.

mod error;
mod file;
mod restore;
mod state;
#[cfg(test)]
mod tests;

use std::path::Path;

use wharf_abi::Answer;

pub use error::{RestoreError, SaveError, SnapshotError, Unusable, WriteError};
pub use restore::{Prepared, RestoreConfig, Snapshot};
pub use state::Cpu;
pub(crate) use state::Registers;
use state::State;

use crate::device::CONNECTIONS_MAX;
use crate::image::Image;
use crate::machine::{Machine, Standing};
use crate::memory::{Gpa, LargeBuffer, PAGE, u64_of};

/// Bytes of a page, as a length in the host.
const PAGE_LEN: usize = 4096;
const _: () = assert!(PAGE == 4096);

/// A page that need not be kept.
const ZEROES: [u8; PAGE_LEN] = [0; PAGE_LEN];

/// Room for what a snapshot copies. Made beforehand, it spares the guest the time that
/// memory takes to be had.
#[derive(Debug)]
pub struct Room(LargeBuffer);

impl Room {
    /// Room for so many bytes of a guest's memory. A guest that uses more has to wait.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self(LargeBuffer::new(usize::try_from(bytes).unwrap_or(0)))
    }
}

/// A guest as it was, in the host's memory.
#[derive(Debug)]
pub struct Saved {
    state: State,
    memory_len: u64,
    /// The numbers of the pages that may hold something, ascending, and the pages.
    numbers: Vec<u64>,
    pages: LargeBuffer,
}

impl Machine {
    /// Copies a guest, which must stand where it can go on: in a call that is not
    /// [`Call::Exit`](crate::Call::Exit), or interrupted. `pending` is what the call
    /// returns in whoever is restored; a guest that is not in a call takes none. It
    /// may be an early return: a wait may always end before its deadline.
    ///
    /// The machine itself goes on as it would have.
    ///
    /// # Errors
    ///
    /// [`SaveError`]; the machine is as before.
    pub fn save(&mut self, pending: Option<Answer>) -> Result<Saved, SaveError> {
        self.save_into(Room::new(0), pending)
    }

    /// The same, into `room`.
    ///
    /// # Errors
    ///
    /// As [`Machine::save`].
    pub fn save_into(&mut self, room: Room, pending: Option<Answer>) -> Result<Saved, SaveError> {
        if self.hvt.is_some() {
            return Err(SaveError::Foreign);
        }
        match (self.standing, pending) {
            (Standing::Over, _) => return Err(SaveError::Over),
            (Standing::InCall, Some(_)) | (Standing::Interrupted, None) => {}
            _ => return Err(SaveError::Answer),
        }
        self.vcpu.retire()?;
        let mut registers = self.vcpu.registers();
        if let Some(Answer { status, value }) = pending {
            (registers.rax, registers.rdx) = (status.raw(), value);
        }
        let memory = self.vm.memory();
        let devices = self.devices.save(memory, &self.space);
        let devices = devices.map_err(|device| SaveError::SetUp { device })?;
        for state in &devices {
            let count = state.streams.as_ref().map_or(0, |it| it.connections.len());
            if count > CONNECTIONS_MAX {
                return Err(SaveError::Connections { count });
            }
        }
        let state = State {
            cpu: self.cpu.as_ref().clone(),
            origin: self.origin.clone(),
            monotonic_ns: self.monotonic_ns(),
            registers: Registers::new(&registers),
            fpu: self.vcpu.fpu()?,
            devices,
        };
        let numbers = memory.used_pages();
        let mut pages = room.0.of_len(numbers.len().saturating_mul(PAGE_LEN));
        let mut room = &mut *pages;
        for run in numbers.chunk_by(|number, next| number.checked_add(1) == Some(*next)) {
            let len = run.len().saturating_mul(PAGE_LEN);
            let (now, later) = room.split_at_mut_checked(len).unwrap_or_default();
            let first = run.first().copied().unwrap_or(0);
            memory.read(Gpa(first.saturating_mul(PAGE)), now)?;
            room = later;
        }
        Ok(Saved {
            state,
            memory_len: memory.len(),
            numbers,
            pages,
        })
    }
}

impl Saved {
    /// Writes a snapshot of a guest that runs `image`. It is under another name until
    /// it is whole and on the disk, so that what has this name is always whole.
    ///
    /// # Errors
    ///
    /// [`WriteError`]; nothing is left behind, and what was there is still there.
    pub fn write_to(&self, image: &Image, path: &Path) -> Result<(), WriteError> {
        file::write_to(self, image, path)
    }

    /// Bytes of the guest's memory that were copied.
    #[must_use]
    pub fn resident(&self) -> u64 {
        u64_of(self.pages.len())
    }

    /// The pages that hold something, with their numbers.
    fn full_pages(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let pages = self.pages.chunks_exact(PAGE_LEN);
        let numbered = self.numbers.iter().copied().zip(pages);
        numbered.filter(|(_, page)| *page != ZEROES)
    }
}
