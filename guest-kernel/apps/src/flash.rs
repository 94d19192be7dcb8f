//! A disk as the flash that the database ekv is made for.
//!
//! Flash does one thing after the other, and a disk what it likes between two flushes,
//! but for one sector, which it writes whole or not at all. So writes to one sector are
//! gathered, and a write that others may rely on waits until all before it last, and
//! those after it until it does. Of the rest there is no need to wait: a page of data
//! that was erased since the last flush means nothing before another page refers to it.
//! Pages that were used stay in memory.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use ekv::config::{ERASE_VALUE, MAX_PAGE_COUNT, PAGE_SIZE};
use ekv::flash::{Flash, PageID};
use wharf::block::{BlockDevice, Error, SECTOR};

const SECTOR_SIZE: usize = SECTOR as usize;

/// Pages in memory at most.
const CACHED_MAX: usize = 1024;

/// The first page says that the disk is a database; the rest are it.
const FIRST: u64 = PAGE_SIZE as u64;
const MAGIC: &[u8; 16] = b"wharf ekv 4K 32K";

/// What a page of data begins with, in ekv's format. One that begins with anything else
/// may say where all others are.
const DATA_MAGIC: [u8; 4] = 0x7fcb_f35d_u32.to_le_bytes();

pub struct DiskFlash {
    disk: BlockDevice,
    cache: BTreeMap<usize, Vec<u8>>,
    /// The write that others may still join.
    pending: Option<Piece>,
    /// Pages erased since the last flush.
    fresh: BTreeSet<usize>,
    /// Whether something was written since the disk's last flush.
    is_unflushed: bool,
    /// Whether others may rely on something of that.
    is_relied_on: bool,
}

/// Sectors of a page, and whether others may rely on what they have.
#[derive(Clone, Copy)]
struct Piece {
    page: usize,
    first: usize,
    last: usize,
    relied_on: bool,
}

impl DiskFlash {
    pub fn new(disk: BlockDevice) -> Self {
        Self {
            disk,
            cache: BTreeMap::new(),
            pending: None,
            fresh: BTreeSet::new(),
            is_unflushed: false,
            is_relied_on: false,
        }
    }

    /// Says whether somebody has marked the disk as a database.
    pub async fn is_marked(&self) -> Result<bool, Error> {
        let mut sector = [0; SECTOR_SIZE];
        self.disk.read(0, &mut sector).await?;
        Ok(sector.starts_with(MAGIC))
    }

    /// Marks the disk as a database, once all else of it lasts.
    pub async fn mark(&mut self) -> Result<(), Error> {
        self.flush().await?;
        let mut sector = [0; SECTOR_SIZE];
        sector[..MAGIC.len()].copy_from_slice(MAGIC);
        self.disk.write(0, &sector).await?;
        self.disk.flush().await
    }

    /// Makes everything last.
    pub async fn flush(&mut self) -> Result<(), Error> {
        self.write_pending().await?;
        self.fresh.clear();
        self.flush_disk().await
    }

    async fn flush_disk(&mut self) -> Result<(), Error> {
        if self.is_unflushed {
            self.disk.flush().await?;
            (self.is_unflushed, self.is_relied_on) = (false, false);
        }
        Ok(())
    }

    async fn page(&mut self, page: usize) -> Result<&mut Vec<u8>, Error> {
        if !self.cache.contains_key(&page) {
            self.make_room().await?;
            let mut bytes = vec![0; PAGE_SIZE];
            self.disk.read(address(page, 0), &mut bytes).await?;
            self.cache.insert(page, bytes);
        }
        Ok(self.cache.entry(page).or_default())
    }

    async fn make_room(&mut self) -> Result<(), Error> {
        if self.cache.len() >= CACHED_MAX {
            self.write_pending().await?;
            self.cache.clear();
        }
        Ok(())
    }

    /// Has a piece of a page written, at once or with those that follow.
    async fn submit(&mut self, piece: Piece) -> Result<(), Error> {
        let is_one = piece.first == piece.last;
        match &mut self.pending {
            Some(it) if is_one && (it.page, it.first) == (piece.page, piece.first) => {
                it.relied_on |= piece.relied_on;
                return Ok(());
            }
            _ => self.write_pending().await?,
        }
        self.pending = Some(piece);
        if is_one {
            return Ok(());
        }
        self.write_pending().await
    }

    async fn write_pending(&mut self) -> Result<(), Error> {
        let Some(piece) = self.pending.take() else {
            return Ok(());
        };
        if self.is_relied_on || piece.relied_on {
            self.flush_disk().await?;
        }
        let (start, end) = (piece.first * SECTOR_SIZE, (piece.last + 1) * SECTOR_SIZE);
        let Some(bytes) = self.cache.get(&piece.page) else {
            return Ok(());
        };
        let bytes = bytes[start..end].to_vec();
        (self.is_unflushed, self.is_relied_on) = (true, piece.relied_on);
        let (written, _) = self
            .disk
            .write_from(address(piece.page, start), bytes)
            .await;
        if written.is_err() {
            // What the disk has of it, nobody knows.
            self.cache.remove(&piece.page);
        }
        written
    }
}

impl Flash for DiskFlash {
    type Error = Error;

    fn page_count(&self) -> usize {
        let pages = self.disk.len().saturating_sub(FIRST) / PAGE_SIZE as u64;
        usize::try_from(pages).map_or(MAX_PAGE_COUNT, |pages| pages.min(MAX_PAGE_COUNT))
    }

    async fn erase(&mut self, page: PageID) -> Result<(), Error> {
        // A write that waits may be to the same page.
        self.write_pending().await?;
        self.make_room().await?;
        let page = page.index();
        self.cache.insert(page, vec![ERASE_VALUE; PAGE_SIZE]);
        self.fresh.insert(page);
        self.submit(Piece {
            page,
            first: 0,
            last: PAGE_SIZE / SECTOR_SIZE - 1,
            relied_on: false,
        })
        .await
    }

    async fn read(&mut self, page: PageID, offset: usize, data: &mut [u8]) -> Result<(), Error> {
        let bytes = self.page(page.index()).await?;
        data.copy_from_slice(&bytes[offset..offset + data.len()]);
        Ok(())
    }

    async fn write(&mut self, page: PageID, offset: usize, data: &[u8]) -> Result<(), Error> {
        let (page, end) = (page.index(), offset + data.len());
        self.page(page).await?[offset..end].copy_from_slice(data);
        let is_data = offset > 0 || data.starts_with(&DATA_MAGIC);
        self.submit(Piece {
            page,
            first: offset / SECTOR_SIZE,
            last: end.saturating_sub(1) / SECTOR_SIZE,
            relied_on: !(is_data && self.fresh.contains(&page)),
        })
        .await
    }
}

fn address(page: usize, offset: usize) -> u64 {
    FIRST + (page * PAGE_SIZE + offset) as u64
}
