//! What goes with a description: files, and bytes of which there may be many.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::memory::u64_of;

/// Files and bytes that go with a description to another process. The description names
/// them by [`FileRef`] and [`BytesRef`].
#[derive(Debug, Default)]
pub struct Luggage {
    files: Vec<Packed>,
    bytes: Vec<u8>,
    /// Whether files were sent that did not arrive.
    lacks_files: bool,
}

/// A file, and whose it is.
#[derive(Debug)]
enum Packed {
    /// It is to be taken out.
    Own(OwnedFd),
    /// It stays where it is: of files of which there are many, no copies are made that
    /// would need as many descriptors again.
    Lent(Arc<dyn Lendable>),
    Taken,
}

/// What has a file that can be lent.
pub trait Lendable: AsFd + fmt::Debug + Send + Sync {}

impl<T: AsFd + fmt::Debug + Send + Sync> Lendable for T {}

/// A file in the luggage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileRef(u32);

/// Bytes in the luggage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BytesRef {
    at: u64,
    len: u64,
}

/// A description speaks of what is not in the luggage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLuggage {
    /// There is no such file, or it was taken already.
    #[error("file {} is not there any more, or never was", .0.0)]
    File(FileRef),
    /// Files were sent, and this process may not have them.
    #[error("it cannot open the files that are passed to it: raise `ulimit -n`")]
    NoRoom,
    /// There are fewer bytes.
    #[error("{} bytes at {} are not there", .0.len, .0.at)]
    Bytes(BytesRef),
}

impl Luggage {
    /// What was received.
    #[must_use]
    pub fn new(files: Vec<OwnedFd>, bytes: Vec<u8>) -> Self {
        Self {
            files: files.into_iter().map(Packed::Own).collect(),
            bytes,
            lacks_files: false,
        }
    }

    /// What was received but for its files, for which there was no room.
    #[must_use]
    pub const fn without_files(bytes: Vec<u8>) -> Self {
        Self {
            files: Vec::new(),
            bytes,
            lacks_files: true,
        }
    }

    /// Adds a file.
    pub fn put_file(&mut self, file: OwnedFd) -> FileRef {
        self.pack(Packed::Own(file))
    }

    /// Adds a file that stays with who has it. It can be sent, not taken out.
    pub fn lend_file<T: Lendable + 'static>(&mut self, file: &Arc<T>) -> FileRef {
        let file: Arc<T> = Arc::clone(file);
        self.pack(Packed::Lent(file))
    }

    fn pack(&mut self, file: Packed) -> FileRef {
        let number = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        self.files.push(file);
        FileRef(number)
    }

    /// Adds bytes.
    pub fn put_bytes(&mut self, bytes: &[u8]) -> BytesRef {
        self.put_pieces(&[bytes])
    }

    /// Adds bytes that are in pieces.
    pub fn put_pieces(&mut self, pieces: &[&[u8]]) -> BytesRef {
        let at = u64_of(self.bytes.len());
        for piece in pieces {
            self.bytes.extend_from_slice(piece);
        }
        BytesRef {
            at,
            len: u64_of(self.bytes.len()).saturating_sub(at),
        }
    }

    /// Takes a file out, which can be done once.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn take_file(&mut self, file: FileRef) -> Result<OwnedFd, BadLuggage> {
        let place = usize::try_from(file.0).unwrap_or(usize::MAX);
        let packed = self.files.get_mut(place);
        let packed = packed.filter(|it| matches!(it, Packed::Own(_)));
        match packed.map(|it| std::mem::replace(it, Packed::Taken)) {
            Some(Packed::Own(taken)) => Ok(taken),
            _ if self.lacks_files => Err(BadLuggage::NoRoom),
            _ => Err(BadLuggage::File(file)),
        }
    }

    /// Looks at bytes.
    ///
    /// # Errors
    ///
    /// When they are not all there.
    pub fn bytes(&self, bytes: BytesRef) -> Result<&[u8], BadLuggage> {
        let found = || {
            let from = usize::try_from(bytes.at).ok()?;
            let len = usize::try_from(bytes.len).ok()?;
            self.bytes.get(from..from.checked_add(len)?)
        };
        found().ok_or(BadLuggage::Bytes(bytes))
    }

    /// All files, of which none may have been taken out, and all bytes: what is to be sent.
    #[must_use]
    pub fn parts(&self) -> (Vec<BorrowedFd<'_>>, &[u8]) {
        let files = self.files.iter().filter_map(|it| match it {
            Packed::Own(file) => Some(file.as_fd()),
            Packed::Lent(file) => Some(file.as_fd()),
            Packed::Taken => None,
        });
        (files.collect(), &self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use super::{BadLuggage, BytesRef, FileRef, Luggage};

    #[test]
    fn what_is_put_in_is_taken_out_and_nothing_else_is() {
        let mut luggage = Luggage::default();
        let one = luggage.put_bytes(b"one");
        let none = luggage.put_bytes(b"");
        let two = luggage.put_bytes(b"two");
        let file = luggage.put_file(File::open("/dev/null").unwrap().into());
        let lent = Arc::new(File::open("/dev/zero").unwrap());
        let second = luggage.lend_file(&lent);
        assert!(luggage.take_file(second).is_err(), "it is not this one's");
        let (files, bytes) = luggage.parts();
        let files = files.iter().map(|it| it.try_clone_to_owned().unwrap());
        let arrived = Luggage::new(files.collect(), bytes.to_vec());
        drop(luggage);
        assert_eq!(Arc::strong_count(&lent), 1);
        let mut luggage = arrived;
        assert!(luggage.take_file(second).is_ok());
        assert_eq!(luggage.bytes(one), Ok(&b"one"[..]));
        assert_eq!(luggage.bytes(none), Ok(&b""[..]));
        assert_eq!(luggage.bytes(two), Ok(&b"two"[..]));
        assert!(luggage.take_file(file).is_ok());
        assert_eq!(luggage.take_file(file).unwrap_err(), BadLuggage::File(file));
        for (at, len) in [(4, 3), (0, 7), (u64::MAX, 1), (1, u64::MAX), (7, 0)] {
            let forged = BytesRef { at, len };
            assert_eq!(luggage.bytes(forged), Err(BadLuggage::Bytes(forged)));
        }
        assert!(luggage.take_file(FileRef(u32::MAX)).is_err());
    }
}
