//! A guest's memory as the guest itself may use it.
//!
//! virtio-queue reads and writes rings through vm-memory's [`GuestMemory`]. Here
//! that is not the guest's physical memory, of which most is not for it to touch,
//! but its address space: an address in a ring is one that the guest itself uses,
//! and what it may not read or write does not exist. vm-memory calls such a
//! thing an IOMMU.

use std::iter::FusedIterator;

use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    GuestMemoryResult, Permissions, VolatileSlice,
};

use crate::image::Access;
use crate::memory::u64_of;
use crate::space::{AddressSpace, Mapping, Run};
use crate::transfer::Buffers;

/// The memory and who may touch what of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UserMemory<'m> {
    memory: &'m GuestMemoryMmap,
    space: &'m AddressSpace,
}

impl<'m> UserMemory<'m> {
    pub(crate) const fn new(memory: &'m GuestMemoryMmap, space: &'m AddressSpace) -> Self {
        Self { memory, space }
    }

    /// The pieces of host memory behind a range, of which there may be several; an
    /// error ends them where the guest may not go on.
    pub(crate) fn pieces(self, addr: u64, len: usize, access: Permissions) -> Pieces<'m> {
        Pieces {
            memory: self,
            mappings: self.space.from(addr),
            at: addr,
            left: len,
            access,
        }
    }

    /// The pieces of a range that the guest itself may use so, all of it, or nothing.
    pub(crate) fn buffers(self, addr: u64, len: u64, access: Permissions) -> Option<Buffers<'m>> {
        let mut buffers = Buffers::default();
        for piece in self.pieces(addr, usize::try_from(len).ok()?, access) {
            buffers.push(piece.ok()?);
        }
        Some(buffers)
    }

    /// Whether the guest itself may use a range so, all of it.
    pub(crate) fn may(self, addr: u64, len: u64, access: Permissions) -> bool {
        let Some(end) = addr.checked_add(len) else {
            return false;
        };
        let mut mappings = self.space.from(addr);
        let mut at = addr;
        while at < end {
            match mappings.next().filter(|it| allows(it, access)) {
                Some(mapping) => at = mapping.end(),
                None => return false,
            }
        }
        true
    }

    /// Copies out what the guest may read, all of it, or nothing.
    pub(crate) fn read<const N: usize>(self, addr: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let from = self.buffers(addr, u64_of(N), Permissions::Read)?;
        from.copy_out(&mut bytes);
        Some(bytes)
    }

    /// Copies in where the guest may write, all of it, or nothing.
    pub(crate) fn write(self, addr: u64, bytes: &[u8]) -> Option<()> {
        let to = self.buffers(addr, u64_of(bytes.len()), Permissions::Write)?;
        to.copy_in(bytes);
        Some(())
    }

    /// The bytes at `addr` that the guest may execute, as many as there are up to
    /// `room`'s length.
    pub(crate) fn fetch(self, addr: u64, room: &mut [u8]) -> usize {
        let mut fetched = 0_usize;
        while let Some(rest) = room.get_mut(fetched..).filter(|rest| !rest.is_empty()) {
            let at = addr.checked_add(u64_of(fetched));
            let mapping = at.and_then(|at| self.space.at(at));
            let (Some(at), Some(mapping)) = (at, mapping) else {
                break;
            };
            let left = usize::try_from(mapping.end().saturating_sub(at)).unwrap_or(usize::MAX);
            let len = rest.len().min(left);
            if mapping.access != Access::ReadExecute {
                break;
            }
            let Some(piece) = self.buffers(at, u64_of(len), Permissions::Read) else {
                break;
            };
            fetched = fetched.saturating_add(piece.copy_out(rest));
        }
        fetched
    }

    /// Whether there is anything of the guest's at an address.
    pub(crate) fn has(self, addr: u64) -> bool {
        self.space.at(addr).is_some()
    }

    /// Whether the range lies within one mapping of the guest's that it may write.
    pub(crate) fn is_ring(self, addr: u64, len: u64) -> bool {
        self.space.at(addr).is_some_and(|mapping| {
            let room = mapping.end().saturating_sub(addr);
            allows(mapping, Permissions::ReadWrite) && len <= room
        })
    }
}

impl GuestMemory for UserMemory<'_> {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.pieces(addr.0, count, access)
            .all(|piece| piece.is_ok())
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, ()>> {
        Ok(self.pieces(addr.0, count, access))
    }
}

/// See [`UserMemory::pieces`].
#[derive(Clone, Debug)]
pub(crate) struct Pieces<'m> {
    memory: UserMemory<'m>,
    mappings: Run<'m>,
    at: u64,
    left: usize,
    access: Permissions,
}

impl<'m> Pieces<'m> {
    fn piece(&mut self) -> Option<VolatileSlice<'m>> {
        let mapping = self.mappings.next()?;
        if !allows(mapping, self.access) {
            return None;
        }
        let room = mapping.end().checked_sub(self.at)?;
        let len = self.left.min(usize::try_from(room).ok()?);
        let gpa = mapping.gpa.offset(self.at.checked_sub(mapping.addr)?);
        let piece = self
            .memory
            .memory
            .get_slice(GuestAddress(gpa.0), len)
            .ok()?;
        self.at = self.at.checked_add(u64::try_from(len).ok()?)?;
        self.left = self.left.checked_sub(len)?;
        Some(piece)
    }
}

impl<'m> Iterator for Pieces<'m> {
    type Item = GuestMemoryResult<VolatileSlice<'m>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let at = GuestAddress(self.at);
        let piece = self.piece();
        if piece.is_none() {
            self.left = 0;
        }
        Some(piece.ok_or(GuestMemoryError::InvalidGuestAddress(at)))
    }
}

impl FusedIterator for Pieces<'_> {}

impl<'m> GuestMemorySliceIterator<'m, ()> for Pieces<'m> {}

fn allows(mapping: &Mapping, access: Permissions) -> bool {
    let granted = match mapping.access {
        Access::Read | Access::ReadExecute => Permissions::Read,
        Access::ReadWrite => Permissions::ReadWrite,
    };
    granted.allow(access)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, Permissions};

    use super::{GuestMemory, UserMemory};
    use crate::image::Access;
    use crate::memory::{Gpa, GuestMemory as Memory, PAGE};
    use crate::space::{AddressSpace, Mapping, Owner};

    fn check(test: impl FnOnce(UserMemory<'_>)) {
        let mapping = |addr, gpa, access, owner| Mapping {
            addr,
            len: PAGE,
            gpa: Gpa(gpa),
            access,
            owner,
        };
        let space = AddressSpace::new(&[
            mapping(0x10000, 0x3000, Access::ReadWrite, Owner::Guest),
            mapping(0x11000, 0x1000, Access::ReadWrite, Owner::Guest),
            mapping(0x12000, 0x2000, Access::ReadExecute, Owner::Guest),
            mapping(0x13000, 0, Access::ReadWrite, Owner::Host),
        ]);
        let memory = Memory::new(4 * PAGE, 0..0, false).unwrap();
        test(UserMemory::new(memory.mmap(), &space));
    }

    #[test]
    fn a_range_may_cross_mappings_but_no_ring_does() {
        check(|user| {
            user.write_slice(b"ab", GuestAddress(0x10FFF)).unwrap();
            let mut bytes = [0; 2];
            user.read_slice(&mut bytes, GuestAddress(0x10FFF)).unwrap();
            assert_eq!(&bytes, b"ab");
            assert!(user.is_ring(0x10000, PAGE) && user.is_ring(0x11FFF, 1));
            assert!(!user.is_ring(0x10FFF, 2) && !user.is_ring(0x12000, 1));
        });
    }

    #[test]
    fn what_the_guest_may_not_do_cannot_be_done_for_it() {
        check(|user| {
            let may = |addr, len: usize, access| {
                let checked = user.check_range(GuestAddress(addr), len, access);
                let asked = user.may(addr, u64::try_from(len).unwrap(), access);
                assert_eq!(checked, asked, "{addr:#x}+{len:#x} {access:?}");
                checked
            };
            assert!(may(0x10000, 0, Permissions::Write) && may(0, 0, Permissions::Read));
            assert!(may(0x10001, 0x1FFF, Permissions::ReadWrite));
            assert!(may(0x12000, 4096, Permissions::Read));
            for (addr, len, access) in [
                (0x12000, 1, Permissions::Write),
                (0x11FFF, 2, Permissions::Write),
                (0x13000, 1, Permissions::Read),
                (0x12FFF, 2, Permissions::Read),
                (0, 1, Permissions::Read),
                (0xFFFF, 2, Permissions::Read),
                (u64::MAX, 1, Permissions::Read),
                (u64::MAX, 2, Permissions::Read),
                (0x10000, usize::MAX, Permissions::Read),
            ] {
                assert!(!may(addr, len, access), "{addr:#x}+{len:#x} {access:?}");
            }
        });
    }
}
