//! A disk, as virtio-blk asks for it (virtio 1.2 §5.2).

use std::fmt;
use std::io;

use serde_json::Value;

use super::chain::Chain;
use super::ring::BYTES_AT_ONCE;
use super::user::UserMemory;
use super::{Broken, Terms};
use crate::handover::Luggage;
use crate::transfer::Buffers;

/// Bytes of a sector, in which the protocol counts.
pub const SECTOR: u64 = 512;

/// Most bytes of data in one request: what a guest may make its worker do at a
/// stretch. About a millisecond's worth of copying.
pub const REQUEST_MAX: u64 = 4 << 20;

/// What the driver is told of that: bytes of a segment, and segments.
const SIZE_MAX: u32 = 1 << 20;
const SEG_MAX: u32 = 4;

/// Most sectors of one discard, 4 GiB.
const DISCARD_MAX: u32 = 1 << 23;

/// What a request costs that waits for the medium or has a file system at work: a
/// whole look, since nobody knows how long that takes. So a worker waits for one of
/// them before other guests have their turn, and not for a ring full.
const UNBOUNDED: u64 = BYTES_AT_ONCE;

const QUEUE_SIZE: u16 = 256;
const HEADER_LEN: u64 = 16;
const ID_LEN: u64 = 20;
const DISCARD_SEGMENT_LEN: u64 = 16;

const FEATURE_SIZE_MAX: u64 = 1 << 1;
const FEATURE_SEG_MAX: u64 = 1 << 2;
const FEATURE_RO: u64 = 1 << 5;
const FEATURE_BLK_SIZE: u64 = 1 << 6;
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_DISCARD: u64 = 1 << 13;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;

const STATUS_OK: u8 = 0;
const STATUS_IOERR: u8 = 1;
const STATUS_UNSUPP: u8 = 2;

/// What keeps a disk's bytes.
///
/// Offsets and lengths are in bytes, multiples of [`SECTOR`], and within
/// [`Disk::len`]: the front end has checked that. An error is the guest's to see,
/// as "I/O error" and no more.
pub trait Disk: fmt::Debug + Send {
    /// Bytes that it holds, a multiple of [`SECTOR`]. Never changes.
    fn len(&self) -> u64;

    /// Whether it holds none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool;

    /// Whether [`Disk::discard`] does anything.
    fn can_discard(&self) -> bool;

    /// What it calls itself: text, at most 20 bytes of which count.
    fn id(&self) -> &str;

    /// Fills `into` from `at` on.
    ///
    /// # Errors
    ///
    /// When the bytes cannot be had.
    fn read(&mut self, at: u64, into: &Buffers<'_>) -> io::Result<()>;

    /// Stores `from` at `at`.
    ///
    /// # Errors
    ///
    /// When it cannot; what was there may be partly overwritten.
    fn write(&mut self, at: u64, from: &Buffers<'_>) -> io::Result<()>;

    /// Makes what was written so far survive whatever the disk can survive.
    ///
    /// # Errors
    ///
    /// When it may not.
    fn flush(&mut self) -> io::Result<()>;

    /// Forgets what is there; it then reads as anything, best as zeroes.
    ///
    /// # Errors
    ///
    /// When it cannot.
    fn discard(&mut self, at: u64, len: u64) -> io::Result<()>;

    /// Describes itself, for the same code in another process, which then has it as well:
    /// nothing of it is changed.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left, or it cannot be passed on as it is.
    fn carry(&self, luggage: &mut Luggage) -> io::Result<Value>;

    /// Another way to the same bytes, for a guest that is to take the place of the
    /// one that has this: what it writes stays beside until [`Disk::own`]. None when
    /// such a guest simply opens its own.
    fn share(&self) -> Option<io::Result<Box<dyn Disk>>> {
        None
    }

    /// Puts what was written beside where it belongs: from now on this is the one way
    /// to the bytes.
    ///
    /// # Errors
    ///
    /// When that fails; some of it may be there.
    fn own(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the driver is told of a disk.
pub(super) fn terms(disk: &dyn Disk) -> Terms {
    let mut features = FEATURE_SIZE_MAX | FEATURE_SEG_MAX | FEATURE_BLK_SIZE | FEATURE_FLUSH;
    if disk.is_read_only() {
        features |= FEATURE_RO;
    } else if disk.can_discard() {
        features |= FEATURE_DISCARD;
    }
    // struct virtio_blk_config, virtio 1.2 §5.2.4.
    let mut config = Vec::with_capacity(48);
    let sectors = disk.len().checked_div(SECTOR).unwrap_or(0);
    config.extend(sectors.to_le_bytes());
    config.extend(SIZE_MAX.to_le_bytes());
    config.extend(SEG_MAX.to_le_bytes());
    config.extend([0; 4]); // no geometry
    config.extend([0, 2, 0, 0]); // sectors of 512
    config.extend([0; 12]); // no topology, write-back for ever, one queue
    config.extend(DISCARD_MAX.to_le_bytes());
    config.extend(1_u32.to_le_bytes());
    config.extend(1_u32.to_le_bytes());
    Terms {
        device_type: 2,
        features,
        queue_count: 1,
        queue_size_max: QUEUE_SIZE,
        config,
    }
}

/// Does one request; returns what was written of the guest's memory and how much
/// work it was, both in bytes: what was moved, or [`UNBOUNDED`].
pub(super) fn serve(
    disk: &mut dyn Disk,
    accepted: u64,
    user: UserMemory<'_>,
    chain: &Chain,
) -> Result<(u32, u64), Broken> {
    let Some(room) = chain.writable_len().checked_sub(1) else {
        return Err(Broken::NoStatus);
    };
    let Some(data) = chain.readable_len().checked_sub(HEADER_LEN) else {
        return Err(Broken::NoHeader);
    };
    let status = chain.writable(user, room, 1)?;
    let mut header = [0; 16];
    chain.readable(user, 0, HEADER_LEN)?.copy_out(&mut header);
    let [kind @ .., _, _, _, _, _, _, _, _, _, _, _, _] = header;
    let [_, _, _, _, _, _, _, _, sector @ ..] = header;
    let at = u64::from_le_bytes(sector).checked_mul(SECTOR);

    let mut written = 0;
    let mut moved = 0;
    let done = match u32::from_le_bytes(kind) {
        TYPE_IN => match checked(disk, at, room) {
            Ok(at) => {
                (written, moved) = (room, room);
                disk.read(at, &chain.writable(user, 0, room)?)
            }
            Err(error) => Err(error),
        },
        TYPE_OUT => match checked(disk, at, data) {
            Ok(_) if disk.is_read_only() => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            Ok(at) => {
                moved = data;
                let done = disk.write(at, &chain.readable(user, HEADER_LEN, data)?);
                // Who cannot flush is promised that every write lasts.
                if accepted & FEATURE_FLUSH == 0 {
                    moved = UNBOUNDED;
                    done.and_then(|()| disk.flush())
                } else {
                    done
                }
            }
            Err(error) => Err(error),
        },
        TYPE_FLUSH => {
            moved = UNBOUNDED;
            disk.flush()
        }
        TYPE_GET_ID => {
            let mut id = disk.id().as_bytes().to_vec();
            id.resize(20, 0);
            written = room.min(ID_LEN);
            chain.writable(user, 0, written)?.copy_in(&id);
            Ok(())
        }
        TYPE_DISCARD if accepted & FEATURE_DISCARD != 0 => {
            let mut segment = [0; 16];
            let len = chain
                .readable(user, HEADER_LEN, data)?
                .copy_out(&mut segment);
            if data == DISCARD_SEGMENT_LEN && len == segment.len() {
                moved = UNBOUNDED;
                discard(disk, segment)
            } else {
                Err(io::ErrorKind::InvalidInput.into())
            }
        }
        _ => {
            status.copy_in(&[STATUS_UNSUPP]);
            return Ok((1, SECTOR));
        }
    };
    let code = match done {
        Ok(()) => STATUS_OK,
        Err(error) => {
            log::debug!("{}: {error}", disk.id());
            written = 0;
            STATUS_IOERR
        }
    };
    status.copy_in(&[code]);
    let written = u32::try_from(written).unwrap_or(u32::MAX);
    Ok((written.saturating_add(1), moved.max(SECTOR)))
}

/// Where a request begins, when all of it is on the disk and not too much.
fn checked(disk: &dyn Disk, at: Option<u64>, len: u64) -> io::Result<u64> {
    let fits = at
        .and_then(|at| at.checked_add(len))
        .is_some_and(|end| end <= disk.len());
    match at {
        Some(at) if fits && len.is_multiple_of(SECTOR) && len <= REQUEST_MAX => Ok(at),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// `struct virtio_blk_discard_write_zeroes`, virtio 1.2 §5.2.6.
fn discard(disk: &mut dyn Disk, segment: [u8; 16]) -> io::Result<()> {
    let [sector @ .., _, _, _, _, _, _, _, _] = segment;
    let [_, _, _, _, _, _, _, _, count @ .., _, _, _, _] = segment;
    let [_, _, _, _, _, _, _, _, _, _, _, _, flags @ ..] = segment;
    let count = u32::from_le_bytes(count);
    let len = u64::from(count).saturating_mul(SECTOR);
    let at = u64::from_le_bytes(sector).checked_mul(SECTOR);
    let end = at.and_then(|at| at.checked_add(len));
    match at {
        Some(at)
            if end.is_some_and(|end| end <= disk.len())
                && count <= DISCARD_MAX
                && flags == [0; 4] =>
        {
            disk.discard(at, len)
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}
