//! Moving bytes between files and guest memory without a stop in between.
//!
//! The kernel copies straight into and out of the guest's pages. It gets addresses
//! that vm-memory checked, and nobody makes a Rust reference of them: the guest may
//! change the bytes while the host looks.

#![expect(unsafe_code, reason = "the kernel is given raw guest memory")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

use crate::memory::u64_of;

/// Most pieces that one call of the kernel's takes (`IOV_MAX` is 1024).
const PIECES_MAX: usize = 256;

/// Pieces of a guest's memory that belong together, in order.
///
/// Whoever holds it has been allowed to read or to write it by whoever made it.
#[derive(Clone, Debug, Default)]
pub struct Buffers<'m> {
    pieces: Vec<VolatileSlice<'m>>,
    len: u64,
}

impl<'m> Buffers<'m> {
    pub(crate) fn push(&mut self, piece: VolatileSlice<'m>) {
        self.len = self.len.saturating_add(u64_of(piece.len()));
        self.pieces.push(piece);
    }

    /// Bytes in all.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes from `from` on, or as many as there are.
    #[must_use]
    pub fn part(&self, from: u64, len: u64) -> Self {
        let mut part = Self::default();
        let (mut skip, mut left) = (from, len);
        for piece in &self.pieces {
            let here = u64_of(piece.len());
            let take = here.saturating_sub(skip).min(left);
            if let (Ok(at), Ok(bytes)) = (usize::try_from(skip), usize::try_from(take))
                && bytes > 0
                && let Ok(piece) = piece.subslice(at, bytes)
            {
                part.push(piece);
            }
            skip = skip.saturating_sub(here);
            left = left.saturating_sub(take);
        }
        part
    }

    /// Fills all of it from a file.
    ///
    /// # Errors
    ///
    /// As preadv(2); [`io::ErrorKind::UnexpectedEof`] when the file ends before.
    pub fn read_from(&self, file: BorrowedFd<'_>, at: u64) -> io::Result<()> {
        self.move_all(at, io::ErrorKind::UnexpectedEof, |pieces, offset| {
            // SAFETY: each entry is host memory of a guest that lives for `'m`, to
            // which no reference exists, so the kernel may write it; the count is
            // the array's, at most `PIECES_MAX`.
            unsafe {
                libc::preadv(
                    file.as_raw_fd(),
                    pieces.as_ptr(),
                    i32::try_from(pieces.len()).unwrap_or(0),
                    offset,
                )
            }
        })
    }

    /// Writes all of it to a file.
    ///
    /// # Errors
    ///
    /// As pwritev(2); [`io::ErrorKind::WriteZero`] when the file takes no more.
    pub fn write_to(&self, file: BorrowedFd<'_>, at: u64) -> io::Result<()> {
        self.move_all(at, io::ErrorKind::WriteZero, |pieces, offset| {
            // SAFETY: as in `read_from`; the kernel only reads.
            unsafe {
                libc::pwritev(
                    file.as_raw_fd(),
                    pieces.as_ptr(),
                    i32::try_from(pieces.len()).unwrap_or(0),
                    offset,
                )
            }
        })
    }

    /// Fills it with what a file has at the moment, which has to be something: else
    /// this waits.
    ///
    /// # Errors
    ///
    /// As readv(2).
    pub fn read_some(&self, file: BorrowedFd<'_>) -> io::Result<usize> {
        self.once(0, |pieces| {
            // SAFETY: each entry is host memory of a guest that lives for `'m`, to which
            // no reference exists, so the kernel may write it; the count is the array's,
            // at most `PIECES_MAX`.
            unsafe {
                libc::readv(
                    file.as_raw_fd(),
                    pieces.as_ptr(),
                    i32::try_from(pieces.len()).unwrap_or(0),
                )
            }
        })
    }

    /// Fills it with what a socket has, as far as that goes; does not wait.
    ///
    /// # Errors
    ///
    /// As recvmsg(2).
    pub fn receive_from(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.message(|message| {
            // SAFETY: the message names host memory of a guest that lives for `'m`, to
            // which no reference exists, so the kernel may write it.
            unsafe { libc::recvmsg(socket.as_raw_fd(), message, libc::MSG_DONTWAIT) }
        })
    }

    /// Gives a socket as much of it as it takes; does not wait.
    ///
    /// # Errors
    ///
    /// As sendmsg(2).
    pub fn send_to(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        self.message(|message| {
            // SAFETY: as in `receive_from`; the kernel only reads.
            unsafe { libc::sendmsg(socket.as_raw_fd(), message, FLAGS) }
        })
    }

    /// Calls with all pieces as one message of a stream socket's.
    fn message(&self, call: impl Fn(&mut libc::msghdr) -> isize) -> io::Result<usize> {
        self.once(0, |pieces| {
            // SAFETY: a message of zeroes is one without anything.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = pieces.as_mut_ptr();
            message.msg_iovlen = pieces.len();
            call(&mut message)
        })
    }

    /// Copies bytes in, as many as fit, and says how many.
    pub fn copy_in(&self, mut bytes: &[u8]) -> usize {
        let all = bytes.len();
        for piece in &self.pieces {
            let (now, later) = bytes.split_at(bytes.len().min(piece.len()));
            piece.copy_from(now);
            bytes = later;
        }
        all.saturating_sub(bytes.len())
    }

    /// Copies bytes out, as many as there are room for, and says how many.
    pub fn copy_out(&self, mut room: &mut [u8]) -> usize {
        let all = room.len();
        for piece in &self.pieces {
            let (now, later) = room.split_at_mut(room.len().min(piece.len()));
            piece.copy_to(now);
            room = later;
        }
        all.saturating_sub(room.len())
    }

    /// Calls for all bytes, as often as it takes.
    fn move_all(
        &self,
        at: u64,
        at_end: io::ErrorKind,
        call: impl Fn(&[libc::iovec], i64) -> isize,
    ) -> io::Result<()> {
        let mut done = 0_u64;
        while done < self.len {
            let offset = at
                .checked_add(done)
                .and_then(|offset| i64::try_from(offset).ok())
                .ok_or(io::ErrorKind::InvalidInput)?;
            match self.once(done, |pieces| call(pieces, offset))? {
                0 => return Err(at_end.into()),
                moved => done = done.saturating_add(u64_of(moved)),
            }
        }
        Ok(())
    }

    /// Calls with what is left after `done` bytes, until no signal interrupts that.
    fn once(&self, done: u64, call: impl Fn(&mut [libc::iovec]) -> isize) -> io::Result<usize> {
        loop {
            let moved = match self.pieces.as_slice() {
                // Most are one piece and done at once: no list for these.
                [piece] if done == 0 => call(&mut [entry(piece)]),
                _ => call(&mut self.vector(done)),
            };
            if let Ok(moved) = usize::try_from(moved) {
                return Ok(moved);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// What is left after `done` bytes, as the kernel takes it.
    fn vector(&self, done: u64) -> Vec<libc::iovec> {
        if done == 0 {
            return self.pieces.iter().take(PIECES_MAX).map(entry).collect();
        }
        let rest = self.part(done, self.len);
        rest.pieces.iter().take(PIECES_MAX).map(entry).collect()
    }
}

fn entry(piece: &VolatileSlice<'_>) -> libc::iovec {
    libc::iovec {
        iov_base: piece.ptr_guard_mut().as_ptr().cast(),
        iov_len: piece.len(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::fd::AsFd;

    use vm_memory::{GuestAddress, GuestMemoryBackend};

    use super::Buffers;
    use crate::memory::{GuestMemory, PAGE};

    /// Pieces of 3, 4 and 5 bytes with gaps between them.
    fn check(test: impl FnOnce(Buffers<'_>, &GuestMemory)) {
        let memory = GuestMemory::new(PAGE, 0..0, false).unwrap();
        let mut buffers = Buffers::default();
        for (at, len) in [(0, 3), (10, 4), (20, 5)] {
            buffers.push(memory.mmap().get_slice(GuestAddress(at), len).unwrap());
        }
        test(buffers, &memory);
    }

    fn file(bytes: &[u8]) -> std::fs::File {
        let file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
        file
    }

    #[test]
    fn pieces_are_filled_in_order_and_nothing_between_them() {
        check(|buffers, memory| {
            assert_eq!((buffers.len(), buffers.is_empty()), (12, false));
            let file = file(b"..abcdefghijkl..");
            buffers.read_from(file.as_fd(), 2).unwrap();
            let mut bytes = [0; 25];
            memory.read(crate::memory::Gpa(0), &mut bytes).unwrap();
            assert_eq!(&bytes, b"abc\0\0\0\0\0\0\0defg\0\0\0\0\0\0hijkl");
            buffers.write_to(file.as_fd(), 0).unwrap();
            let mut bytes = [0; 16];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
            assert_eq!(&bytes, b"abcdefghijklkl..");
        });
    }

    #[test]
    fn a_file_that_ends_before_is_an_error() {
        check(|buffers, _| {
            let file = file(b"abcdefgh");
            let error = buffers.read_from(file.as_fd(), 0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
            let part = buffers.part(0, 8);
            part.read_from(file.as_fd(), 0).unwrap();
            let error = buffers.read_from(file.as_fd(), u64::MAX).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        });
    }

    #[test]
    fn a_part_is_what_there_is_of_it() {
        check(|buffers, _| {
            buffers.copy_in(b"abcdefghijkl");
            for (from, len, expected) in [
                (0, 12, "abcdefghijkl"),
                (2, 3, "cde"),
                (3, 4, "defg"),
                (6, 100, "ghijkl"),
                (12, 1, ""),
                (u64::MAX, u64::MAX, ""),
                (4, 0, ""),
            ] {
                let mut bytes = [0; 16];
                let len = buffers.part(from, len).copy_out(&mut bytes);
                assert_eq!(&bytes[..len], expected.as_bytes());
            }
        });
    }
}
