//! Guest-physical memory, by copy only.
//!
//! The guest changes its memory whenever it runs, so a Rust reference into it
//! would be undefined behaviour however short its life. Everything here copies
//! bytes in or out with bounds checked by vm-memory, whose accesses are volatile.

#![expect(unsafe_code, reason = "mapping, advising and registering raw memory")]

use std::ops::Range;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::mmap::{GuestRegionMmap, MmapRegion};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Error;

const _: () = assert!(usize::BITS == u64::BITS, "hosts have 64 bits");

/// A host length as a number that guests and KVM understand. Total, since
/// [hosts have 64 bits](self).
pub(crate) fn u64_of(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Bytes of a small page.
pub const PAGE: u64 = 4096;

/// Bytes of a large page.
pub const HUGE_PAGE: u64 = 2 * 1024 * 1024;

/// A guest-physical address. Only this module turns one into host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl Gpa {
    /// The address `bytes` further on; saturates, and no memory is there.
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}

/// A guest's memory: guest-physical 0 to its length, one anonymous mapping that
/// is 2 MiB-aligned in the host too, so that large guest pages can be backed by
/// large host pages.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    // Declared, and so dropped, before the reservation that it lies in.
    memory: GuestMemoryMmap,
    host_addr: u64,
    len: u64,
    _reservation: MmapRegion,
}

/// What the kernel is advised to do with memory. None of it changes contents.
#[derive(Clone, Copy, Debug)]
enum Advice {
    LargePages,
    SmallPages,
    Populate,
}

/// A virtual machine and its memory, which lives as long as it.
#[derive(Debug)]
pub(crate) struct Vm {
    // Declared, and so closed, before the memory that it maps.
    fd: VmFd,
    memory: GuestMemory,
}

impl Vm {
    /// Makes a VM over `memory`.
    ///
    /// # Errors
    ///
    /// As `KVM_CREATE_VM` and `KVM_SET_USER_MEMORY_REGION` (KVM api.rst §4.2, §4.35).
    pub(crate) fn create(kvm: &Kvm, memory: GuestMemory) -> Result<Self, Error> {
        let fd = kvm.create_vm().map_err(Error::kvm("create a VM"))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: memory.len,
            userspace_addr: memory.host_addr,
        };
        // SAFETY: the range is `memory`'s own mapping, and this structure keeps
        // that mapped until after it has closed the VM.
        unsafe { fd.set_user_memory_region(region) }.map_err(Error::kvm("set memory region"))?;
        Ok(Self { fd, memory })
    }

    /// The VM, for making its vCPU.
    pub(crate) const fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Its memory.
    pub(crate) const fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}

impl GuestMemory {
    /// Reserves `len` bytes of zeroed memory; nothing is resident until touched.
    ///
    /// In `huge`, which begins at a multiple of [`HUGE_PAGE`], the host may use large
    /// pages; elsewhere, never, because a touch would make 2 MiB resident.
    ///
    /// # Errors
    ///
    /// When `len` is no multiple of [`PAGE`] or the host has no address space left.
    pub(crate) fn new(len: u64, huge: Range<u64>) -> Result<Self, Error> {
        let failed = |source| Error::Memory { len, source };
        if len == 0 || !len.is_multiple_of(PAGE) {
            return Err(failed(std::io::ErrorKind::InvalidInput.into()));
        }
        let too_large = || failed(std::io::ErrorKind::OutOfMemory.into());
        let reserved = len.checked_add(HUGE_PAGE).ok_or_else(too_large)?;
        let reserved = usize::try_from(reserved).map_err(|_| too_large())?;
        let size = usize::try_from(len).map_err(|_| too_large())?;

        let reservation =
            MmapRegion::<()>::new(reserved).map_err(|e| failed(std::io::Error::other(e)))?;
        let start = reservation.as_ptr();
        let slack = start.align_offset(HUGE_PAGE.try_into().map_err(|_| too_large())?);
        // SAFETY: the reservation is 2 MiB longer than `size`, and align_offset
        // gives less than 2 MiB for a byte pointer, so the result and the `size`
        // bytes behind it stay inside the reservation.
        let base = unsafe { start.add(slack) };
        // SAFETY: `base` and `size` lie inside the reservation, as above, which
        // this structure keeps mapped until the region is dropped.
        let region =
            unsafe { MmapRegion::build_raw(base, size, reservation.prot(), reservation.flags()) }
                .map_err(|e| failed(std::io::Error::other(e)))?;
        let region = GuestRegionMmap::new(region, GuestAddress(0)).ok_or_else(too_large)?;
        let memory = GuestMemoryMmap::from_regions(vec![region])
            .map_err(|e| failed(std::io::Error::other(e)))?;

        let memory = Self {
            memory,
            // KVM and madvise get it as a number and work on what is behind.
            host_addr: u64::try_from(base.expose_provenance()).map_err(|_| too_large())?,
            len,
            _reservation: reservation,
        };
        let (from, to) = (huge.start.min(len), huge.end.min(len));
        memory.advise(0, from, Advice::SmallPages);
        memory.advise(from, to, Advice::LargePages);
        memory.advise(to.max(from), len, Advice::SmallPages);
        Ok(memory)
    }

    /// The memory as vm-memory has it, whose accesses are as this module's.
    pub(crate) const fn mmap(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Copies `bytes` in.
    ///
    /// # Errors
    ///
    /// When they do not fit between `at` and the end; nothing is written then.
    pub(crate) fn write(&self, at: Gpa, bytes: &[u8]) -> Result<(), Error> {
        self.check(at, bytes.len())?;
        self.memory
            .write_slice(bytes, GuestAddress(at.0))
            .map_err(|_| Error::outside(at, bytes.len()))
    }

    /// Copies out as much as `bytes` holds.
    ///
    /// # Errors
    ///
    /// When the range is not all inside the memory.
    pub(crate) fn read(&self, at: Gpa, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(at, bytes.len())?;
        self.memory
            .read_slice(bytes, GuestAddress(at.0))
            .map_err(|_| Error::outside(at, bytes.len()))
    }

    /// Makes the pages from `start` to `end` resident in one call, where the
    /// kernel can (Linux 5.14); elsewhere they become so one by one.
    pub(crate) fn populate(&self, start: Gpa, end: Gpa) {
        self.advise(start.0, end.0, Advice::Populate);
    }

    fn check(&self, at: Gpa, len: usize) -> Result<(), Error> {
        let fits = u64::try_from(len)
            .ok()
            .and_then(|len| at.0.checked_add(len))
            .is_some_and(|end| end <= self.len);
        if fits {
            Ok(())
        } else {
            Err(Error::outside(at, len))
        }
    }

    /// Advice is only that: a kernel that does not take it costs time, not truth.
    fn advise(&self, start: u64, end: u64, advice: Advice) {
        let number = match advice {
            Advice::LargePages => libc::MADV_HUGEPAGE,
            Advice::SmallPages => libc::MADV_NOHUGEPAGE,
            Advice::Populate => libc::MADV_POPULATE_WRITE,
        };
        let end = end.min(self.len);
        let Some(len) = end.checked_sub(start).filter(|&len| len > 0) else {
            return;
        };
        let (Ok(addr), Ok(len)) = (
            usize::try_from(self.host_addr.saturating_add(start)),
            usize::try_from(len),
        ) else {
            return;
        };
        let addr = std::ptr::with_exposed_provenance_mut(addr);
        // SAFETY: the range is inside this structure's own mapping, to which no
        // reference exists, and no `Advice` changes contents.
        let done = unsafe { libc::madvise(addr, len, number) };
        if done != 0 {
            log::debug!("madvise({advice:?}): {}", std::io::Error::last_os_error());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Gpa, GuestMemory, HUGE_PAGE, PAGE};

    #[test]
    fn memory_starts_zeroed_and_keeps_what_is_written() {
        let memory = GuestMemory::new(4 * HUGE_PAGE, HUGE_PAGE..4 * HUGE_PAGE).unwrap();
        let mut bytes = [1; 3];
        memory.read(Gpa(PAGE - 1), &mut bytes).unwrap();
        assert_eq!(bytes, [0; 3]);
        memory.write(Gpa(PAGE - 1), b"abc").unwrap();
        memory.read(Gpa(PAGE - 1), &mut bytes).unwrap();
        assert_eq!(&bytes, b"abc");
    }

    #[test]
    fn nothing_past_the_end_can_be_touched() {
        let memory = GuestMemory::new(PAGE, 0..0).unwrap();
        for at in [PAGE - 2, PAGE, u64::MAX, u64::MAX - 2] {
            assert!(memory.write(Gpa(at), b"abc").is_err(), "{at:#x}");
            assert!(memory.read(Gpa(at), &mut [0; 3]).is_err(), "{at:#x}");
        }
        let mut last = [9; 3];
        memory.read(Gpa(PAGE - 3), &mut last).unwrap();
        assert_eq!(last, [0; 3]);
    }

    #[test]
    fn absurd_sizes_are_refused() {
        for len in [0, 1, PAGE + 1, u64::MAX, u64::MAX - PAGE + 1, 1 << 62] {
            assert!(GuestMemory::new(len, 0..0).is_err(), "{len:#x}");
        }
    }

    #[test]
    fn host_memory_is_aligned_for_large_pages() {
        let memory = GuestMemory::new(3 * HUGE_PAGE, HUGE_PAGE..u64::MAX).unwrap();
        assert!(memory.host_addr.is_multiple_of(HUGE_PAGE));
    }
}
