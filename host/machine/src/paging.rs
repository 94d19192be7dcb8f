//! Page tables, built in the host and copied out once.
//!
//! Four levels, 4 KiB and 2 MiB pages (Intel SDM vol. 3 §4.5). Every entry is
//! born *accessed* and *dirty*: the CPU then never writes to a table, and KVM's
//! shadow pager maps up to seven neighbours of a page on its first touch
//! (it passes over entries that were not accessed), which saves most of the
//! faults of a small guest's start.

use crate::image::Access;
use crate::memory::{Gpa, HUGE_PAGE, PAGE};
use crate::space::{Mapping, Owner};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

const ENTRIES: usize = 512;
const TOP_LEVEL: u8 = 4;

/// Page tables that start at one guest-physical address and grow upwards.
#[derive(Debug)]
pub(crate) struct PageTables {
    base: Gpa,
    tables: Vec<Box<[u64; ENTRIES]>>,
}

impl PageTables {
    /// Builds the tables of `mappings`, the root first, to stand at `base`.
    pub(crate) fn build(base: Gpa, mappings: &[Mapping]) -> Self {
        let mut tables = Self {
            base,
            tables: vec![Box::new([0; ENTRIES])],
        };
        for mapping in mappings {
            tables.map(mapping);
        }
        tables
    }

    /// What CR3 holds.
    pub(crate) const fn root(&self) -> Gpa {
        self.base
    }

    /// Bytes that the tables take.
    pub(crate) fn len(&self) -> u64 {
        PAGE.saturating_mul(self.tables.len().try_into().unwrap_or(u64::MAX))
    }

    /// Each table's place and contents.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (Gpa, Vec<u8>)> {
        self.tables.iter().zip(0_u64..).map(|(table, index)| {
            let bytes = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
            (self.gpa(index), bytes)
        })
    }

    fn gpa(&self, index: u64) -> Gpa {
        self.base.offset(index.saturating_mul(PAGE))
    }

    fn map(&mut self, mapping: &Mapping) {
        let mut done = 0;
        while done < mapping.len {
            let addr = mapping.addr.saturating_add(done);
            let gpa = mapping.gpa.offset(done);
            let large = addr.is_multiple_of(HUGE_PAGE)
                && gpa.0.is_multiple_of(HUGE_PAGE)
                && mapping.len.saturating_sub(done) >= HUGE_PAGE;
            let (level, size, bit) = if large {
                (2, HUGE_PAGE, LARGE)
            } else {
                (1, PAGE, 0)
            };
            self.set(addr, level, gpa.0 & ADDRESS | leaf_flags(mapping) | bit);
            done = done.saturating_add(size);
        }
    }

    /// Writes the entry for `addr` in its table of `level`, making the tables above.
    fn set(&mut self, addr: u64, level: u8, entry: u64) {
        let mut table = 0;
        for above in (level.saturating_add(1)..=TOP_LEVEL).rev() {
            table = self.child(table, index(addr, above));
        }
        if let Some(slot) = self.slot(table, index(addr, level)) {
            *slot = entry;
        }
    }

    /// The table that an entry points to, made when there is none.
    fn child(&mut self, table: usize, index: usize) -> usize {
        let base = self.base;
        let new = self.tables.len();
        let new_gpa = self.gpa(new.try_into().unwrap_or(u64::MAX));
        let Some(slot) = self.slot(table, index) else {
            return 0;
        };
        if *slot & PRESENT != 0 {
            let offset = (*slot & ADDRESS).saturating_sub(base.0);
            return usize::try_from(offset / PAGE).unwrap_or(0);
        }
        *slot = new_gpa.0 & ADDRESS | PRESENT | WRITABLE | USER | ACCESSED;
        self.tables.push(Box::new([0; ENTRIES]));
        new
    }

    fn slot(&mut self, table: usize, index: usize) -> Option<&mut u64> {
        self.tables.get_mut(table)?.get_mut(index)
    }
}

/// Nine bits of the address for each level, from bit 12 up; always below 512.
fn index(addr: u64, level: u8) -> usize {
    let shift = u32::from(level).saturating_mul(9).saturating_add(3);
    usize::try_from(addr.checked_shr(shift).unwrap_or(0) & 0x1FF).unwrap_or(0)
}

fn leaf_flags(mapping: &Mapping) -> u64 {
    let access = match mapping.access {
        Access::Read => NO_EXECUTE,
        Access::ReadWrite => WRITABLE | NO_EXECUTE,
        Access::ReadExecute => 0,
    };
    let owner = match mapping.owner {
        Owner::Guest => USER,
        Owner::Host => 0,
    };
    PRESENT | ACCESSED | DIRTY | access | owner
}

#[cfg(test)]
mod tests {
    use super::{ADDRESS, LARGE, NO_EXECUTE, PRESENT, PageTables, USER, WRITABLE};
    use crate::image::Access;
    use crate::memory::{Gpa, HUGE_PAGE, PAGE};
    use crate::space::{Mapping, Owner};

    const BASE: Gpa = Gpa(0x10_0000);

    /// What the CPU would find: the leaf entry and its page size.
    fn walk(tables: &PageTables, addr: u64) -> Option<(u64, u64)> {
        let mut gpa = BASE.0;
        for level in (1..=4).rev() {
            let table = usize::try_from((gpa - BASE.0) / PAGE).unwrap();
            let entry = tables.tables[table][super::index(addr, level)];
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 1 {
                return Some((entry, PAGE));
            }
            if entry & LARGE != 0 {
                assert_eq!(level, 2);
                return Some((entry, HUGE_PAGE));
            }
            gpa = entry & ADDRESS;
        }
        None
    }

    fn mapping(addr: u64, len: u64, gpa: u64, access: Access, owner: Owner) -> Mapping {
        Mapping {
            addr,
            len,
            gpa: Gpa(gpa),
            access,
            owner,
        }
    }

    #[test]
    fn every_page_is_mapped_as_asked_and_no_other() {
        let mappings = [
            mapping(0x40_0000, PAGE, 0x5000, Access::ReadExecute, Owner::Guest),
            mapping(0x40_1000, 2 * PAGE, 0x6000, Access::ReadWrite, Owner::Guest),
            mapping(0x40_4000, PAGE, 0x9000, Access::Read, Owner::Host),
        ];
        let tables = PageTables::build(BASE, &mappings);
        assert_eq!(tables.len(), 4 * PAGE);
        for mapping in &mappings {
            for page in (0..mapping.len).step_by(PAGE as usize) {
                let (entry, size) = walk(&tables, mapping.addr + page).unwrap();
                assert_eq!(size, PAGE);
                assert_eq!(entry & ADDRESS, mapping.gpa.0 + page);
                assert_eq!(entry & WRITABLE != 0, mapping.access == Access::ReadWrite);
                assert_eq!(
                    entry & NO_EXECUTE == 0,
                    mapping.access == Access::ReadExecute
                );
                assert_eq!(entry & USER != 0, mapping.owner == Owner::Guest);
            }
        }
        for hole in [
            0,
            0x3F_F000,
            0x40_3000,
            0x40_5000,
            0x60_0000,
            0x4000_0000,
            1 << 46,
        ] {
            assert_eq!(walk(&tables, hole), None, "{hole:#x}");
        }
    }

    #[test]
    fn two_mib_pages_are_used_where_both_addresses_allow() {
        // 3 MiB from 1 MiB on: small pages up to 2 MiB, then one large page.
        let heap = mapping(
            0x7000_0010_0000,
            3 << 20,
            0x10_0000,
            Access::ReadWrite,
            Owner::Guest,
        );
        let tables = PageTables::build(BASE, &[heap]);
        assert_eq!(walk(&tables, heap.addr).unwrap().1, PAGE);
        assert_eq!(walk(&tables, heap.addr + (1 << 20)).unwrap().1, HUGE_PAGE);

        let skewed = Mapping {
            gpa: Gpa(0x10_1000),
            ..heap
        };
        let tables = PageTables::build(BASE, &[skewed]);
        assert_eq!(walk(&tables, heap.addr + (1 << 20)).unwrap().1, PAGE);
    }

    #[test]
    fn far_apart_mappings_get_tables_of_their_own() {
        let far = |n: u64| mapping(n << 39, PAGE, n * PAGE, Access::Read, Owner::Guest);
        let tables = PageTables::build(BASE, &[far(0), far(1), far(127)]);
        assert_eq!(tables.len(), (1 + 3 * 3) * PAGE);
        for n in [0, 1, 127] {
            assert_eq!(walk(&tables, n << 39).unwrap().0 & ADDRESS, n * PAGE);
        }
    }
}
