//! Guest-physical memory, by copy only.
//!
//! The guest changes its memory whenever it runs, so a Rust reference into it
//! would be undefined behaviour however short its life. Everything here copies
//! bytes in or out with bounds checked by vm-memory, whose accesses are volatile.

#![expect(unsafe_code, reason = "mapping, advising and registering raw memory")]

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};
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
    backing: Backing,
    _reservation: MmapRegion,
}

/// Where the bytes of a guest's memory are.
#[derive(Debug)]
pub(crate) enum Backing {
    /// Nowhere else.
    Anonymous,
    /// In a file in memory, which another process can map as well.
    Shared(File),
    /// In a file, but for the pages that were written to.
    OnFile {
        /// The file.
        file: Arc<File>,
        /// Where in it.
        at: u64,
        /// The pages of which it has something.
        below: Arc<[Range<u64>]>,
    },
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
    /// Reserves `len` bytes of zeroed memory; nothing is resident until touched. When it
    /// `is_shared`, another process can go on with it.
    ///
    /// In `huge`, which begins at a multiple of [`HUGE_PAGE`], the host may use large
    /// pages; elsewhere, never, because a touch would make 2 MiB resident.
    ///
    /// # Errors
    ///
    /// When `len` is no multiple of [`PAGE`] or the host has no address space left.
    pub(crate) fn new(len: u64, huge: Range<u64>, is_shared: bool) -> Result<Self, Error> {
        if is_shared {
            match memory_file(len) {
                Ok(file) => return Self::shared(len, huge, file),
                // Above `ulimit -f`, most likely, which counts these files, too. Such a
                // guest cannot be handed over under the same limit.
                Err(e) => log::debug!("{e}: its memory is not shared"),
            }
        }
        let memory = Self::reserve(len)?;
        memory.advise_pages(huge);
        Ok(memory)
    }

    /// Memory that is what a file in memory has, which stays so for whoever else maps it.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::new`]; also when the file is not as long, or may become shorter.
    pub(crate) fn shared(len: u64, huge: Range<u64>, file: File) -> Result<Self, Error> {
        let failed = |source| Error::Memory { len, source };
        let found = file.metadata().map_err(failed)?.len();
        let seals = rustix::fs::fcntl_get_seals(&file).map_err(|e| failed(e.into()))?;
        // The kernel would end the process that touches what is gone.
        if found != len || !seals.contains(SealFlags::SHRINK) {
            return Err(failed(std::io::ErrorKind::InvalidInput.into()));
        }
        let mut memory = Self::reserve(len)?;
        memory.map(&file, 0, libc::MAP_SHARED)?;
        memory.backing = Backing::Shared(file);
        memory.advise_pages(huge);
        Ok(memory)
    }

    fn advise_pages(&self, huge: Range<u64>) {
        let (from, to) = (huge.start.min(self.len), huge.end.min(self.len));
        self.advise(0, from, Advice::SmallPages);
        self.advise(from, to, Advice::LargePages);
        self.advise(to.max(from), self.len, Advice::SmallPages);
    }

    /// Memory that has what `file` has from `at` on, of which a page is copied when
    /// it is written to: any number of guests share the others.
    ///
    /// The file must not become shorter while the memory lives: the kernel would end
    /// the process that touches what is gone.
    ///
    /// # Errors
    ///
    /// As [`GuestMemory::new`]; also when the file cannot be mapped.
    pub(crate) fn on_file(
        len: u64,
        file: &Arc<File>,
        at: u64,
        below: &Arc<[Range<u64>]>,
    ) -> Result<Self, Error> {
        let mut memory = Self::reserve(len)?;
        memory.map(file, at, libc::MAP_PRIVATE)?;
        memory.backing = Backing::OnFile {
            file: Arc::clone(file),
            at,
            below: Arc::clone(below),
        };
        Ok(memory)
    }

    /// Puts a file in the place of the zeroes.
    fn map(&mut self, file: &File, at: u64, how: libc::c_int) -> Result<(), Error> {
        let len = self.len;
        let failed = |source| Error::Memory { len, source };
        let invalid = || failed(std::io::ErrorKind::InvalidInput.into());
        let addr = usize::try_from(self.host_addr).map_err(|_| invalid())?;
        let size = usize::try_from(len).map_err(|_| invalid())?;
        let offset = i64::try_from(at).map_err(|_| invalid())?;
        // SAFETY: the range replaced is this structure's own mapping, all of it, to
        // which no reference exists; it stays within the reservation, which unmaps it.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::with_exposed_provenance_mut(addr),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                how | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(failed(std::io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Where its bytes are.
    pub(crate) const fn backing(&self) -> &Backing {
        &self.backing
    }

    /// An aligned mapping of zeroes in a reservation of its own.
    fn reserve(len: u64) -> Result<Self, Error> {
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

        Ok(Self {
            memory,
            // KVM and madvise get it as a number and work on what is behind.
            host_addr: u64::try_from(base.expose_provenance()).map_err(|_| too_large())?,
            len,
            backing: Backing::Anonymous,
            _reservation: reservation,
        })
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

    /// Bytes in all.
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    /// The numbers of the pages that may hold something, in ascending order: those
    /// that are resident or swapped out, or all when that cannot be told
    /// (Linux admin-guide/mm/pagemap.rst).
    pub(crate) fn used_pages(&self) -> Vec<u64> {
        let all = self.len.checked_div(PAGE).unwrap_or(0);
        let below = match &self.backing {
            Backing::Anonymous => return self.touched_pages(Touched::AtAll),
            // Somebody else may have written what was not touched here.
            Backing::Shared(file) => {
                return filled_pages(file, self.len).unwrap_or_else(|e| {
                    log::debug!("a file in memory: {e}");
                    (0..all).collect()
                });
            }
            Backing::OnFile { below, .. } => below,
        };
        // What the file has is there, touched or not.
        let mut used: BTreeSet<u64> = self.touched_pages(Touched::AtAll).into_iter().collect();
        used.extend(
            below
                .iter()
                .cloned()
                .flatten()
                .filter(|number| *number < all),
        );
        used.into_iter().collect()
    }

    /// The numbers of the pages that were touched, or of all when that cannot be told.
    pub(crate) fn touched_pages(&self, how: Touched) -> Vec<u64> {
        let all = self.len.checked_div(PAGE).unwrap_or(0);
        self.read_pagemap(all, how).unwrap_or_else(|e| {
            log::debug!("/proc/self/pagemap: {e}");
            (0..all).collect()
        })
    }

    fn read_pagemap(&self, all: u64, how: Touched) -> std::io::Result<Vec<u64>> {
        const ENTRY: usize = 8;
        const ENTRIES_AT_ONCE: u64 = 8192;
        const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
        /// Of a page of a file, which nobody has written to here.
        const OF_FILE: u64 = 1 << 61;
        let pagemap = File::open("/proc/self/pagemap")?;
        let first = self.host_addr.checked_div(PAGE).unwrap_or(0);
        let mut used = Vec::new();
        let mut from = 0_u64;
        while from < all {
            let count = all.saturating_sub(from).min(ENTRIES_AT_ONCE);
            let len = usize::try_from(count).unwrap_or(0).saturating_mul(ENTRY);
            let mut entries = vec![0; len];
            let at = first.saturating_add(from).saturating_mul(u64_of(ENTRY));
            pagemap.read_exact_at(&mut entries, at)?;
            for (number, entry) in (from..).zip(entries.chunks_exact(ENTRY)) {
                let entry = entry.try_into().map_or(u64::MAX, u64::from_le_bytes);
                let is_private = entry & OF_FILE == 0;
                if entry & PRESENT_OR_SWAPPED != 0 && (how == Touched::AtAll || is_private) {
                    used.push(number);
                }
            }
            from = from.saturating_add(count);
        }
        Ok(used)
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

/// A file in memory that stays as long as it is.
pub(crate) fn memory_file(len: u64) -> Result<File, Error> {
    let failed = |source| Error::Memory { len, source };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("wharf guest", flags).map_err(|e| failed(e.into()))?;
    let file = File::from(file);
    file.set_len(len).map_err(failed)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(|e| failed(e.into()))?;
    Ok(file)
}

/// The numbers of the pages of a file in memory that were ever written.
fn filled_pages(file: &File, len: u64) -> std::io::Result<Vec<u64>> {
    let mut filled = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing more.
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.max(start.saturating_add(1));
        let number = |at: u64| at.checked_div(PAGE).unwrap_or(0);
        filled.extend(number(start)..number(end.min(len).saturating_add(PAGE - 1)));
        at = end;
    }
    Ok(filled)
}

/// Which pages were touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touched {
    /// Those that were read or written to.
    AtAll,
    /// Those that are another's no more: of a file, those that were written to.
    Privately,
}

/// Bytes in the host's own memory that lie on large pages where the kernel has some: to
/// touch as many small ones for the first time costs more than to fill them.
#[derive(Clone, Debug)]
pub(crate) struct LargeBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl LargeBuffer {
    /// Zeroes, resident.
    pub(crate) fn new(len: usize) -> Self {
        const LARGE: usize = 2 * 1024 * 1024;
        const _: () = assert!(HUGE_PAGE == 2 * 1024 * 1024);
        let room = len.checked_next_multiple_of(LARGE).unwrap_or(len);
        // The allocator maps so much afresh and touches nothing of it.
        let mut bytes = vec![0_u8; room.saturating_add(LARGE)];
        let base = bytes.as_mut_ptr();
        let start = base.align_offset(LARGE).min(LARGE);
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_POPULATE_WRITE] {
            let addr = base.wrapping_add(start).cast();
            // SAFETY: the vector has `room` bytes from `start`, which is at most
            // `LARGE`, on, and nobody else has a reference to it; neither advice
            // changes what is in them.
            let done = unsafe { libc::madvise(addr, room, advice) };
            if done != 0 {
                log::debug!("madvise({advice}): {}", std::io::Error::last_os_error());
            }
        }
        Self { bytes, start, len }
    }

    /// One of another length, whose bytes are anything: this one, when it is long enough.
    pub(crate) fn of_len(self, len: usize) -> Self {
        if len <= self.len {
            Self { len, ..self }
        } else {
            Self::new(len)
        }
    }
}

impl std::ops::Deref for LargeBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let from = self.bytes.get(self.start..).unwrap_or_default();
        from.get(..self.len).unwrap_or_default()
    }
}

impl std::ops::DerefMut for LargeBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let from = self.bytes.get_mut(self.start..).unwrap_or_default();
        from.get_mut(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::{Backing, Gpa, GuestMemory, HUGE_PAGE, LargeBuffer, PAGE, memory_file};

    #[test]
    fn a_large_buffer_is_as_long_as_was_asked_and_of_zeroes() {
        for len in [0, 1, 4096, 3 << 20, (8 << 20) + 1] {
            let mut buffer = LargeBuffer::new(len);
            assert!(buffer.len() == len && buffer.iter().all(|byte| *byte == 0));
            buffer.fill(1);
            let shorter = buffer.of_len(len / 2);
            assert!(shorter.len() == len / 2 && shorter.iter().all(|byte| *byte == 1));
            assert_eq!(shorter.of_len(len + 1).len(), len + 1);
        }
    }

    #[test]
    fn memory_starts_zeroed_and_keeps_what_is_written() {
        let memory = GuestMemory::new(4 * HUGE_PAGE, HUGE_PAGE..4 * HUGE_PAGE, false).unwrap();
        let mut bytes = [1; 3];
        memory.read(Gpa(PAGE - 1), &mut bytes).unwrap();
        assert_eq!(bytes, [0; 3]);
        memory.write(Gpa(PAGE - 1), b"abc").unwrap();
        memory.read(Gpa(PAGE - 1), &mut bytes).unwrap();
        assert_eq!(&bytes, b"abc");
    }

    #[test]
    fn nothing_past_the_end_can_be_touched() {
        let memory = GuestMemory::new(PAGE, 0..0, false).unwrap();
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
            assert!(GuestMemory::new(len, 0..0, false).is_err(), "{len:#x}");
        }
    }

    #[test]
    fn host_memory_is_aligned_for_large_pages() {
        let memory = GuestMemory::new(3 * HUGE_PAGE, HUGE_PAGE..u64::MAX, false).unwrap();
        assert!(memory.host_addr.is_multiple_of(HUGE_PAGE));
    }

    #[test]
    fn shared_memory_is_what_another_mapping_of_it_has() {
        let huge = HUGE_PAGE..4 * HUGE_PAGE;
        let memory = GuestMemory::new(4 * HUGE_PAGE, huge.clone(), true).unwrap();
        memory.write(Gpa(5 * PAGE), b"abc").unwrap();
        let Backing::Shared(file) = memory.backing() else {
            panic!("{memory:?}");
        };
        let file = file.try_clone().unwrap();
        let other = GuestMemory::shared(4 * HUGE_PAGE, huge, file).unwrap();
        // What it has not touched itself is there all the same.
        assert_eq!(other.used_pages(), [5]);
        let mut bytes = [0; 3];
        other.read(Gpa(5 * PAGE), &mut bytes).unwrap();
        assert_eq!(&bytes, b"abc");
        other.write(Gpa(4 * HUGE_PAGE - 3), b"def").unwrap();
        memory.read(Gpa(4 * HUGE_PAGE - 3), &mut bytes).unwrap();
        assert_eq!(&bytes, b"def");
        drop(memory);
        other.read(Gpa(5 * PAGE), &mut bytes).unwrap();
        assert_eq!(&bytes, b"abc");
        let used = other.used_pages();
        assert!(used.contains(&5) && used.contains(&2047) && used.len() < 600);
    }

    #[test]
    fn a_file_that_may_become_shorter_is_no_memory() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(HUGE_PAGE).unwrap();
        assert!(GuestMemory::shared(HUGE_PAGE, 0..0, file).is_err());
        let file = memory_file(HUGE_PAGE).unwrap();
        assert!(GuestMemory::shared(2 * HUGE_PAGE, 0..0, file).is_err());
    }
}
