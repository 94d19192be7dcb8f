//! Disks that tests look into, and disks that fail.

use std::io;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use wharf_machine::Buffers;
use wharf_machine::device::Disk;
use wharf_machine::handover::Luggage;

/// A disk in memory whose clones are the same disk.
#[derive(Clone, Debug)]
pub struct TestDisk {
    bytes: Arc<Mutex<Vec<u8>>>,
    read_only: bool,
    fails: Option<i32>,
    /// Requests so far.
    served: Arc<Mutex<u32>>,
}

impl TestDisk {
    /// A disk of so many bytes, each with this value.
    #[must_use]
    pub fn new(len: usize, value: u8) -> Self {
        Self {
            bytes: Arc::new(Mutex::new(vec![value; len])),
            read_only: false,
            fails: None,
            served: Arc::default(),
        }
    }

    /// The same, read-only.
    #[must_use]
    pub const fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// The same, where everything fails with this error of the kernel's.
    #[must_use]
    pub const fn failing(mut self, errno: i32) -> Self {
        self.fails = Some(errno);
        self
    }

    /// What is on it.
    ///
    /// # Panics
    ///
    /// When a test that used it has panicked.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().expect("no test panicked").clone()
    }

    /// How many requests reached it.
    ///
    /// # Panics
    ///
    /// As [`TestDisk::bytes`].
    #[must_use]
    pub fn served(&self) -> u32 {
        *self.served.lock().expect("no test panicked")
    }

    fn serve(&self) -> io::Result<()> {
        *self.served.lock().expect("no test panicked") += 1;
        match self.fails {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}

impl Disk for TestDisk {
    fn len(&self) -> u64 {
        self.bytes.lock().expect("no test panicked").len() as u64
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn can_discard(&self) -> bool {
        true
    }

    fn id(&self) -> &str {
        "test"
    }

    fn read(&mut self, at: u64, into: &Buffers<'_>) -> io::Result<()> {
        self.serve()?;
        let at = usize::try_from(at).expect("checked before");
        let bytes = self.bytes.lock().expect("no test panicked");
        let len = usize::try_from(into.len()).expect("checked before");
        assert_eq!(into.copy_in(&bytes[at..at + len]), len);
        Ok(())
    }

    fn write(&mut self, at: u64, from: &Buffers<'_>) -> io::Result<()> {
        self.serve()?;
        let at = usize::try_from(at).expect("checked before");
        let len = usize::try_from(from.len()).expect("checked before");
        let mut bytes = self.bytes.lock().expect("no test panicked");
        assert_eq!(from.copy_out(&mut bytes[at..at + len]), len);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.serve()
    }

    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        self.serve()?;
        let (at, len) = (at as usize, len as usize);
        self.bytes.lock().expect("no test panicked")[at..at + len].fill(0);
        Ok(())
    }

    fn carry(&self, _: &mut Luggage) -> io::Result<Value> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
