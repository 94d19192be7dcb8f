//! Page tables, built in the host and copied out once.
//!
//! Four levels, 4 KiB and 2 MiB pages (Intel SDM vol. 3 §4.5). Every entry is
//! born *accessed* and *dirty*: the CPU then never writes to a table, and KVM's
//! shadow pager maps up to seven neighbours of a page on its first touch
//! (it passes over entries that were not accessed), which saves most of the
//! faults of a small guest's start.

use std::collections::BTreeMap;

use crate::image::Access;
use crate::memory::{Gpa, HUGE_PAGE, PAGE, u64_of};
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
    tables: Vec<Table>,
}

#[derive(Debug)]
struct Table {
    entries: Box<[u64; ENTRIES]>,
    /// Which table an entry points to, by the entry's index.
    children: BTreeMap<usize, usize>,
}

impl Table {
    fn new() -> Self {
        Self {
            entries: Box::new([0; ENTRIES]),
            children: BTreeMap::new(),
        }
    }
}

impl PageTables {
    /// Builds the tables of `mappings`, the root first, to stand at `base`.
    /// `None` when a table would lie past the last guest-physical address.
    pub(crate) fn build(base: Gpa, mappings: &[Mapping]) -> Option<Self> {
        let mut tables = Self {
            base,
            tables: vec![Table::new()],
        };
        for mapping in mappings {
            tables.map(mapping)?;
        }
        Some(tables)
    }

    /// What CR3 holds.
    pub(crate) const fn root(&self) -> Gpa {
        self.base
    }

    /// Bytes that the tables take.
    pub(crate) fn len(&self) -> u64 {
        PAGE.saturating_mul(u64_of(self.tables.len()))
    }

    /// Each table's place and contents.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (Gpa, Vec<u8>)> {
        self.tables.iter().zip(0_u64..).map(|(table, index)| {
            let bytes = table.entries.iter().flat_map(|entry| entry.to_le_bytes());
            (
                self.base.offset(index.saturating_mul(PAGE)),
                bytes.collect(),
            )
        })
    }

    fn map(&mut self, mapping: &Mapping) -> Option<()> {
        let mut done = 0;
        while done < mapping.len {
            let addr = mapping.addr.checked_add(done)?;
            let gpa = mapping.gpa.0.checked_add(done)?;
            let large = addr.is_multiple_of(HUGE_PAGE)
                && gpa.is_multiple_of(HUGE_PAGE)
                && mapping.len.saturating_sub(done) >= HUGE_PAGE;
            let (level, size, bit) = if large {
                (2, HUGE_PAGE, LARGE)
            } else {
                (1, PAGE, 0)
            };
            self.set(addr, level, gpa & ADDRESS | leaf_flags(mapping) | bit)?;
            done = done.checked_add(size)?;
        }
        Some(())
    }

    /// Writes the entry for `addr` in its table of `level`, making the tables above.
    fn set(&mut self, addr: u64, level: u8, entry: u64) -> Option<()> {
        let mut table = 0;
        for above in (level.checked_add(1)?..=TOP_LEVEL).rev() {
            table = self.child(table, index(addr, above)?)?;
        }
        let entries = &mut self.tables.get_mut(table)?.entries;
        *entries.get_mut(index(addr, level)?)? = entry;
        Some(())
    }

    /// The table that an entry points to, made when there is none.
    fn child(&mut self, table: usize, index: usize) -> Option<usize> {
        let new = self.tables.len();
        let parent = self.tables.get_mut(table)?;
        if let Some(child) = parent.children.get(&index) {
            return Some(*child);
        }
        let gpa = u64_of(new)
            .checked_mul(PAGE)
            .and_then(|offset| self.base.0.checked_add(offset))
            .filter(|gpa| gpa & !ADDRESS == 0)?;
        *parent.entries.get_mut(index)? = gpa | PRESENT | WRITABLE | USER | ACCESSED;
        parent.children.insert(index, new);
        self.tables.push(Table::new());
        Some(new)
    }
}

/// Nine bits of the address for each level, from bit 12 up.
fn index(addr: u64, level: u8) -> Option<usize> {
    let shift = u32::from(level).checked_mul(9)?.checked_add(3)?;
    usize::try_from(addr.checked_shr(shift)? & 0x1FF).ok()
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
            let entry = tables.tables[table].entries[super::index(addr, level).unwrap()];
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
        let tables = PageTables::build(BASE, &mappings).unwrap();
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
        let tables = PageTables::build(BASE, &[heap]).unwrap();
        assert_eq!(walk(&tables, heap.addr).unwrap().1, PAGE);
        assert_eq!(walk(&tables, heap.addr + (1 << 20)).unwrap().1, HUGE_PAGE);

        let skewed = Mapping {
            gpa: Gpa(0x10_1000),
            ..heap
        };
        let tables = PageTables::build(BASE, &[skewed]).unwrap();
        assert_eq!(walk(&tables, heap.addr + (1 << 20)).unwrap().1, PAGE);
    }

    #[test]
    fn far_apart_mappings_get_tables_of_their_own() {
        let far = |n: u64| mapping(n << 39, PAGE, n * PAGE, Access::Read, Owner::Guest);
        let tables = PageTables::build(BASE, &[far(0), far(1), far(127)]).unwrap();
        assert_eq!(tables.len(), (1 + 3 * 3) * PAGE);
        for n in [0, 1, 127] {
            assert_eq!(walk(&tables, n << 39).unwrap().0 & ADDRESS, n * PAGE);
        }
    }
}
