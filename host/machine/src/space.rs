//! A guest's address space, as the host remembers it.
//!
//! The host wrote the page tables and the guest cannot, so this list is the
//! truth about every pointer a guest can pass; the tables are never read back.

use crate::image::Access;
use crate::memory::{Gpa, GuestMemory};
use serde::{Deserialize, Serialize};

/// A range that a guest claims to own: unchecked until
/// `AddressSpace::read` opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSlice {
    /// Guest-virtual address of the first byte.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
}

/// One run of guest-virtual pages over as many guest-physical ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address, page-aligned.
    pub addr: u64,
    /// Bytes, a multiple of the page size.
    pub len: u64,
    /// What is there.
    pub gpa: Gpa,
    /// What may be done with it.
    pub access: Access,
    /// Who may do it.
    pub owner: Owner,
}

/// Who may touch a mapping (the U/S bit of its pages).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The guest, at CPL 3.
    Guest,
    /// Only the CPU on the host's behalf, at CPL 0.
    Host,
}

impl Mapping {
    /// First address behind the mapping.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.addr.saturating_add(self.len)
    }

    const fn holds(&self, addr: u64) -> bool {
        self.addr <= addr && addr < self.end()
    }
}

/// Everything that the guest may touch.
#[derive(Debug)]
pub(crate) struct AddressSpace {
    guest: Vec<Mapping>,
}

impl AddressSpace {
    /// Takes the guest's mappings, which must not overlap.
    #[must_use]
    pub(crate) fn new(mappings: &[Mapping]) -> Self {
        let mut guest: Vec<_> = mappings
            .iter()
            .filter(|m| m.owner == Owner::Guest)
            .copied()
            .collect();
        guest.sort_unstable_by_key(|m| m.addr);
        Self { guest }
    }

    /// The guest's mapping that holds `addr`.
    #[must_use]
    pub(crate) fn at(&self, addr: u64) -> Option<&Mapping> {
        self.from(addr).next()
    }

    /// The guest's mappings from the one that holds `addr` on, as far as each begins where
    /// the one before it ends: an image may have tens of thousands, of which a long range
    /// is to find the next without a search.
    pub(crate) fn from(&self, addr: u64) -> Run<'_> {
        let after = self.guest.partition_point(|m| m.addr <= addr);
        let rest = after.checked_sub(1).and_then(|at| self.guest.get(at..));
        Run {
            rest: rest.unwrap_or_default().iter(),
            at: addr,
        }
    }

    /// Copies out the first `limit` bytes of a slice, or nothing when the guest
    /// may not read *all* of it. An empty slice is always readable.
    #[must_use]
    pub(crate) fn read(
        &self,
        memory: &GuestMemory,
        slice: UserSlice,
        limit: u64,
    ) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let end = slice.addr.checked_add(slice.len)?;
        let mut wanted = usize::try_from(limit.min(slice.len)).ok()?;
        let mut at = slice.addr;
        let mut mappings = self.from(at);
        while at < end {
            let mapping = mappings.next()?;
            if wanted > 0 {
                let piece = mapping.end().min(end).checked_sub(at)?;
                let len = wanted.min(usize::try_from(piece).ok()?);
                let start = bytes.len();
                bytes.resize(start.checked_add(len)?, 0);
                let gpa = mapping.gpa.offset(at.checked_sub(mapping.addr)?);
                memory.read(gpa, bytes.get_mut(start..)?).ok()?;
                wanted = wanted.saturating_sub(len);
            }
            at = mapping.end();
        }
        Some(bytes)
    }
}

/// See [`AddressSpace::from`].
#[derive(Clone, Debug)]
pub(crate) struct Run<'s> {
    rest: std::slice::Iter<'s, Mapping>,
    at: u64,
}

impl<'s> Iterator for Run<'s> {
    type Item = &'s Mapping;

    fn next(&mut self) -> Option<Self::Item> {
        let mapping = self.rest.next().filter(|it| it.holds(self.at))?;
        self.at = mapping.end();
        Some(mapping)
    }
}

#[cfg(test)]
mod tests {
    use super::{AddressSpace, Mapping, Owner, UserSlice};
    use crate::image::Access;
    use crate::memory::{Gpa, GuestMemory, PAGE};

    fn space() -> (AddressSpace, GuestMemory) {
        let mapping = |addr, gpa, owner| Mapping {
            addr,
            len: PAGE,
            gpa: Gpa(gpa),
            access: Access::Read,
            owner,
        };
        // Neighbours in virtual memory, apart and swapped in physical.
        let space = AddressSpace::new(&[
            mapping(0x12000, 0, Owner::Host),
            mapping(0x11000, 0x1000, Owner::Guest),
            mapping(0x10000, 0x3000, Owner::Guest),
        ]);
        let memory = GuestMemory::new(4 * PAGE, 0..0, false).unwrap();
        memory.write(Gpa(0x3fff), b"a").unwrap();
        memory.write(Gpa(0x1000), b"b").unwrap();
        (space, memory)
    }

    #[test]
    fn a_slice_may_cross_mappings() {
        let (space, memory) = space();
        let slice = UserSlice {
            addr: 0x10fff,
            len: 2,
        };
        assert_eq!(space.read(&memory, slice, 10).unwrap(), b"ab");
        assert_eq!(space.read(&memory, slice, 1).unwrap(), b"a");
        let all = UserSlice {
            addr: 0x10000,
            len: 0x2000,
        };
        assert_eq!(space.read(&memory, all, u64::MAX).unwrap().len(), 0x2000);
    }

    #[test]
    fn one_bad_byte_spoils_the_whole_slice() {
        let (space, memory) = space();
        for (addr, len) in [
            (0, 1),
            (0xffff, 1),
            (0xffff, 2),
            (0x10000, 0x2001),
            (0x11fff, 2),
            (0x12000, 1), // the host's
            (0x10000, u64::MAX),
            (u64::MAX, 1),
            (u64::MAX, u64::MAX),
            (0x8000_0000_0000, 1),
        ] {
            assert_eq!(
                space.read(&memory, UserSlice { addr, len }, 1),
                None,
                "{addr:#x}+{len:#x}"
            );
        }
    }

    #[test]
    fn an_empty_slice_is_readable_wherever_it_points() {
        let (space, memory) = space();
        for addr in [0, 1, 0x10000, 0x12000, u64::MAX] {
            let slice = UserSlice { addr, len: 0 };
            assert_eq!(space.read(&memory, slice, 8), Some(Vec::new()));
        }
    }
}
