//! Why a guest is not frozen, or none is made of a file.

use std::io;
use std::path::PathBuf;

use super::state::Cpu;
use crate::Error;
use crate::device::{CONNECTIONS_MAX, DeviceFault};
use crate::image::ImageError;
use crate::layout::LayoutError;

/// A guest cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// It has ended.
    #[error("the guest has ended: a snapshot is of one that can go on")]
    Over,
    /// The answer to a call that it did not make, or none to one that it did.
    #[error("a defect of wharf's: an answer without a call, or none to one")]
    Answer,
    /// Nobody could find its queues again.
    #[error(
        "the guest has overwritten how it set up its device {device}: a snapshot needs it as it was"
    )]
    SetUp {
        /// The device's place in the device table.
        device: usize,
    },
    /// More than a snapshot has room for.
    #[error(
        "the guest has {count} connections: take a snapshot when it has no more than {CONNECTIONS_MAX}"
    )]
    Connections {
        /// How many.
        count: usize,
    },
    /// Its contract knows of no new random numbers, and of no connections cut off.
    #[error(
        "guests of Solo5's cannot be frozen: one of their clones would not know that it is another"
    )]
    Foreign,
    /// The host failed.
    #[error(transparent)]
    Host(#[from] Error),
}

/// A snapshot could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The disk is full, or the owner's part of it.
    #[error(
        "no room for snapshot {} ({bytes} bytes): free some there or name a file on another disk",
        path.display()
    )]
    NoRoom {
        /// Where.
        path: PathBuf,
        /// Bytes that it takes.
        bytes: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// Something else went wrong.
    #[error("cannot write snapshot {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Something has that name that is not a file.
    #[error("{} is not a regular file: name another one for the snapshot", path.display())]
    NotRegular {
        /// The path as it was given.
        path: PathBuf,
    },
    /// Something has that name that is not a snapshot.
    #[error("{} is there already and no snapshot: name another file, or remove it", path.display())]
    InUse {
        /// The path as it was given.
        path: PathBuf,
    },
    /// wharf gave an image that the guest does not run.
    #[error("a defect of wharf's: a snapshot with another guest's image")]
    Image,
}

/// A file that no guest can be made of.
#[derive(Debug, thiserror::Error)]
#[error("snapshot {}: {why}", path.display())]
pub struct SnapshotError {
    /// The path as it was given.
    pub path: PathBuf,
    /// The rule that it breaks.
    pub why: Unusable,
}

/// A rule for snapshots.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It cannot be opened or read.
    #[error("cannot be read ({0})")]
    Io(io::Error),
    /// A directory, pipe, socket or device.
    #[error("not a regular file: name one that `wharf snapshot` wrote")]
    NotRegular,
    /// Something else.
    #[error("not a snapshot: name a file that `wharf snapshot` wrote")]
    NotSnapshot,
    /// Another wharf wrote it.
    #[error(
        "of format {found}, and this wharf reads format {}: take a new one with this wharf",
        super::file::VERSION
    )]
    Version {
        /// What it says.
        found: u32,
    },
    /// It is not as long as it says.
    #[error("has {len} bytes and should have {expected}: copy it again or take a new one")]
    Length {
        /// Bytes that there are.
        len: u64,
        /// Bytes that it speaks of.
        expected: u64,
    },
    /// Not a bit of it may be wrong.
    #[error("damaged, its {part} fails the checksum: copy it again or take a new one")]
    Corrupt {
        /// What is wrong.
        part: &'static str,
    },
    /// A guest does not expect its CPU to change.
    #[error("taken on another CPU ({theirs}; this one is {ours}): take a new one on this machine")]
    Cpu {
        /// The one that it was taken on.
        theirs: Box<Cpu>,
        /// This machine's.
        ours: Box<Cpu>,
    },
    /// What it says of the guest cannot be of one.
    #[error("not of a guest ({0}): take a new one")]
    Malformed(&'static str),
    /// Its image is none.
    #[error("its image is refused ({0}): take a new one")]
    Image(ImageError),
    /// Its image does not fit its memory.
    #[error("its parts do not fit together ({0}): take a new one")]
    Layout(LayoutError),
}

/// A guest could not be made of a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Its clock cannot go on.
    #[error("the guest's clock shows more than a clock can: start the image afresh")]
    Clock,
    /// A device's page does not say what it said.
    #[error(
        "device {device} is not what the snapshot's guest set up: attach it as it was, written to or read-only, or take a new snapshot"
    )]
    Device {
        /// Its place in the device table.
        device: usize,
        /// What is wrong with its set-up, when there is one.
        #[source]
        fault: Option<DeviceFault>,
    },
    /// The host failed.
    #[error(transparent)]
    Host(#[from] Error),
}
