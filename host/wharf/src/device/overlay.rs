//! A disk whose file stays as it is: what is written goes to memory of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;

use serde_json::Value;
use wharf_machine::Buffers;
use wharf_machine::device::{Disk, SECTOR};
use wharf_machine::handover::Luggage;

use super::DiskError;
use super::carried::{CarriedDisk, described};
use super::heir::OnFile as _;
use super::memory::MemoryDisk;

/// Bytes of a page, the unit in which memory is taken.
const PAGE: u64 = 4096;
const SECTORS_IN_PAGE: u64 = PAGE / SECTOR;

/// Most memory that what a guest writes can take. Who writes more has a disk that
/// is full.
pub(super) const OVERLAY_MAX: u64 = 256 << 20;

/// A file below and what was written above it.
#[derive(Debug)]
pub(super) struct Overlay<B> {
    below: B,
    /// As large as the file; only written pages exist.
    above: MemoryDisk,
    /// Of each page that was written to, a bit for each sector that was.
    written: BTreeMap<u64, u8>,
}

impl<B: Disk> Overlay<B> {
    pub(super) fn new(below: B) -> Result<Self, DiskError> {
        let above = MemoryDisk::new(below.id().to_owned(), below.len())?;
        Ok(Self {
            below,
            above,
            written: BTreeMap::new(),
        })
    }

    /// Goes on with what another process had: what was written, as it was described.
    pub(super) fn go_on(below: B, above: File, written: &[u8]) -> Self {
        let above = MemoryDisk::go_on(above, below.id().to_owned(), below.len());
        // A page's number, and the bits of its sectors.
        let pages = written.as_chunks::<9>().0.iter();
        let page = |[number @ .., mask]: &[u8; 9]| (u64::from_le_bytes(*number), *mask);
        Self {
            below,
            above,
            written: pages.map(page).collect(),
        }
    }

    /// What is below.
    pub(super) const fn below(&mut self) -> &mut B {
        &mut self.below
    }

    /// The same, to look at.
    pub(super) const fn under(&self) -> &B {
        &self.below
    }

    /// What was written, in runs of bytes, with the file that has it.
    pub(super) fn written(&self) -> (&File, Vec<Range<u64>>) {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (page, mask) in &self.written {
            let first = page.saturating_mul(SECTORS_IN_PAGE);
            let sectors = (0..SECTORS_IN_PAGE).filter(|bit| mask & (1 << bit) != 0);
            for sector in sectors.map(|it| first.saturating_add(it)) {
                let at = sector.saturating_mul(SECTOR);
                let end = at.saturating_add(SECTOR);
                match runs.last_mut() {
                    Some(run) if run.end == at => run.end = end,
                    _ => runs.push(at..end),
                }
            }
        }
        (self.above.file(), runs)
    }

    fn is_written(&self, sector: u64) -> bool {
        let (page, bit) = place(sector);
        self.written.get(&page).is_some_and(|mask| mask & bit != 0)
    }

    /// Cuts a range of sectors where those that were written meet those that were not.
    fn runs(&self, sectors: Range<u64>) -> Vec<(Range<u64>, bool)> {
        let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
        for sector in sectors {
            let written = self.is_written(sector);
            let end = sector.saturating_add(1);
            match runs.last_mut() {
                Some((run, same)) if *same == written => run.end = end,
                _ => runs.push((sector..end, written)),
            }
        }
        runs
    }
}

impl<B: Disk> Disk for Overlay<B> {
    fn len(&self) -> u64 {
        self.below.len()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    /// As what is below can when it is written to itself: a guest finds the same device
    /// whatever its disk's mode, and so its snapshot does.
    fn can_discard(&self) -> bool {
        true
    }

    fn id(&self) -> &str {
        self.below.id()
    }

    fn carry(&self, luggage: &mut Luggage) -> io::Result<Value> {
        let mut written = Vec::new();
        for (page, mask) in &self.written {
            written.extend(page.to_le_bytes());
            written.push(*mask);
        }
        described(&CarriedDisk::Overlay {
            below: self.below.carry(luggage)?,
            above: luggage.put_file(self.above.file().try_clone()?.into()),
            written: luggage.put_bytes(&written),
        })
    }

    fn read(&mut self, at: u64, into: &Buffers<'_>) -> io::Result<()> {
        if self.written.is_empty() {
            return self.below.read(at, into);
        }
        for (run, written) in self.runs(sectors(at, into.len())) {
            let from = run.start.saturating_mul(SECTOR);
            let len = run.end.saturating_sub(run.start).saturating_mul(SECTOR);
            let part = into.part(from.saturating_sub(at), len);
            if written {
                self.above.read(from, &part)?;
            } else {
                self.below.read(from, &part)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, at: u64, from: &Buffers<'_>) -> io::Result<()> {
        let sectors = sectors(at, from.len());
        let pages = place(sectors.start).0..=place(sectors.end.saturating_sub(1)).0;
        let new = pages
            .filter(|page| !self.written.contains_key(page))
            .count();
        let all = u64::try_from(self.written.len().saturating_add(new)).unwrap_or(u64::MAX);
        if all.saturating_mul(PAGE) > OVERLAY_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.above.write(at, from)?;
        for sector in sectors {
            let (page, bit) = place(sector);
            *self.written.entry(page).or_default() |= bit;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Lets go of what was written there. It still counts as written: what is below is
    /// older than what the guest wrote, and nothing that it wrote.
    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        self.above.discard(at, len)
    }
}

fn sectors(at: u64, len: u64) -> Range<u64> {
    let sector = |at: u64| at.checked_div(SECTOR).unwrap_or(0);
    sector(at)..sector(at.saturating_add(len))
}

/// The page of a sector, and its bit there.
const fn place(sector: u64) -> (u64, u8) {
    (sector / SECTORS_IN_PAGE, 1 << (sector % SECTORS_IN_PAGE))
}
