//! What goes with a description: files, and bytes of which there may be many.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// Files and bytes that go with a description to another process. The description names
/// them by [`FileRef`] and [`BytesRef`].
#[derive(Debug, Default)]
pub struct Luggage {
    files: Vec<Option<OwnedFd>>,
    bytes: Vec<u8>,
}

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
    /// There are fewer bytes.
    #[error("{} bytes at {} are not there", .0.len, .0.at)]
    Bytes(BytesRef),
}

impl Luggage {
    /// What was received.
    #[must_use]
    pub fn new(files: Vec<OwnedFd>, bytes: Vec<u8>) -> Self {
        Self {
            files: files.into_iter().map(Some).collect(),
            bytes,
        }
    }

    /// Adds a file.
    pub fn put_file(&mut self, file: OwnedFd) -> FileRef {
        let number = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        self.files.push(Some(file));
        FileRef(number)
    }

    /// Adds bytes.
    pub fn put_bytes(&mut self, bytes: &[u8]) -> BytesRef {
        let length = |len: usize| u64::try_from(len).unwrap_or(u64::MAX);
        let at = length(self.bytes.len());
        self.bytes.extend(bytes);
        BytesRef {
            at,
            len: length(bytes.len()),
        }
    }

    /// Takes a file out, which can be done once.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn take_file(&mut self, file: FileRef) -> Result<OwnedFd, BadLuggage> {
        let place = usize::try_from(file.0).unwrap_or(usize::MAX);
        let taken = self.files.get_mut(place).and_then(Option::take);
        taken.ok_or(BadLuggage::File(file))
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

    /// The files that were not taken out, and all bytes.
    #[must_use]
    pub fn into_parts(self) -> (Vec<OwnedFd>, Vec<u8>) {
        (self.files.into_iter().flatten().collect(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::{BadLuggage, BytesRef, FileRef, Luggage};

    #[test]
    fn what_is_put_in_is_taken_out_and_nothing_else_is() {
        let mut luggage = Luggage::default();
        let one = luggage.put_bytes(b"one");
        let none = luggage.put_bytes(b"");
        let two = luggage.put_bytes(b"two");
        let file = luggage.put_file(File::open("/dev/null").unwrap().into());
        let (files, bytes) = luggage.into_parts();
        let mut luggage = Luggage::new(files, bytes);
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
