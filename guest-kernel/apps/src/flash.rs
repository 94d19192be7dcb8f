//! A disk as the flash that the database ekv is made for.
//!
//! Flash does one thing after the other, and a disk what it likes between two flushes.
//! So each write waits for the one before it to last, unless both are in one sector,
//! which a disk writes whole or not at all. Pages that were used stay in memory.

use alloc::collections::BTreeMap;
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

pub struct DiskFlash {
    disk: BlockDevice,
    cache: BTreeMap<usize, Vec<u8>>,
    /// Where what may not last yet was written, if that was one sector.
    unflushed: Option<Option<u64>>,
}

impl DiskFlash {
    pub fn new(disk: BlockDevice) -> Self {
        Self {
            disk,
            cache: BTreeMap::new(),
            unflushed: None,
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
        if self.unflushed.is_some() {
            self.disk.flush().await?;
            self.unflushed = None;
        }
        Ok(())
    }

    async fn page(&mut self, page: usize) -> Result<&mut Vec<u8>, Error> {
        if !self.cache.contains_key(&page) {
            if self.cache.len() >= CACHED_MAX {
                self.cache.clear();
            }
            let mut bytes = vec![0; PAGE_SIZE];
            self.disk.read(address(page, 0), &mut bytes).await?;
            self.cache.insert(page, bytes);
        }
        Ok(self.cache.entry(page).or_default())
    }

    /// Writes the sectors of a page that have these bytes.
    async fn write_out(&mut self, page: usize, start: usize, end: usize) -> Result<(), Error> {
        let start = start / SECTOR_SIZE * SECTOR_SIZE;
        let end = end.next_multiple_of(SECTOR_SIZE);
        let at = address(page, start);
        let sector = (end - start == SECTOR_SIZE).then_some(at);
        if sector.is_none() || self.unflushed != Some(sector) {
            self.flush().await?;
        }
        let bytes = self.page(page).await?[start..end].to_vec();
        self.unflushed = Some(sector);
        let (written, _) = self.disk.write_from(at, bytes).await;
        if written.is_err() {
            // What the disk has of it, nobody knows.
            self.cache.remove(&page);
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
        let erased = vec![ERASE_VALUE; PAGE_SIZE];
        self.cache.insert(page.index(), erased);
        self.write_out(page.index(), 0, PAGE_SIZE).await
    }

    async fn read(&mut self, page: PageID, offset: usize, data: &mut [u8]) -> Result<(), Error> {
        let bytes = self.page(page.index()).await?;
        data.copy_from_slice(&bytes[offset..offset + data.len()]);
        Ok(())
    }

    async fn write(&mut self, page: PageID, offset: usize, data: &[u8]) -> Result<(), Error> {
        let end = offset + data.len();
        self.page(page.index()).await?[offset..end].copy_from_slice(data);
        self.write_out(page.index(), offset, end).await
    }
}

fn address(page: usize, offset: usize) -> u64 {
    FIRST + (page * PAGE_SIZE + offset) as u64
}
