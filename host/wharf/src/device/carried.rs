//! Back ends that go on in another process: what each says of itself, and made of that
//! again.

use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wharf_machine::device::{
    Backend, CarriedBackend, Console, Disk, Frames, Network, Streams, Wire,
};
use wharf_machine::handover::{BadLuggage, BytesRef, Carried, FileRef, Luggage};

use super::file::FileDisk;
use super::memory::MemoryDisk;
use super::overlay::Overlay;

/// A disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum CarriedDisk {
    /// In a file.
    File(CarriedFile),
    /// In memory.
    Memory {
        file: FileRef,
        name: String,
        len: u64,
    },
    /// In a file, with what was written beside it.
    Overlay {
        below: Value,
        above: FileRef,
        written: BytesRef,
    },
}

/// A disk in a file, which is locked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CarriedFile {
    pub(super) file: FileRef,
    pub(super) name: String,
    pub(super) len: u64,
    pub(super) writable: bool,
    pub(super) lost: bool,
}

/// A back end cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CarriedError {
    /// It says what this version does not understand.
    #[error("what stands behind a device is not understood")]
    NotUnderstood(#[source] serde_json::Error),
    /// Something of it has not come along.
    #[error(transparent)]
    Luggage(#[from] BadLuggage),
    /// It is of a kind that cannot be there: only files are written beside.
    #[error("a disk that is written beside something that is no file")]
    Nested,
    /// The kernel has nothing left for it.
    #[error(transparent)]
    Net(#[from] crate::net::NetError),
}

/// Makes what is not of this process alone.
pub(crate) struct Makers<'a> {
    /// A network, of what it says.
    pub(crate) network: &'a Maker<'a, dyn Network>,
    /// What the device of this place is plugged into, of what it says.
    pub(crate) wire: &'a WireMaker<'a>,
}

type Maker<'a, T> = dyn Fn(&Value, &mut Luggage) -> Result<Box<T>, CarriedError> + 'a;
type WireMaker<'a> = dyn Fn(u8, &Value, &mut Luggage) -> Result<Box<dyn Wire>, CarriedError> + 'a;

/// What a back end says of itself, as JSON.
pub(super) fn described(it: &CarriedDisk) -> io::Result<Value> {
    serde_json::to_value(it).map_err(io::Error::other)
}

/// Makes every back end of a guest again.
pub(crate) fn back_ends(
    carried: &Carried,
    luggage: &mut Luggage,
    makers: &Makers<'_>,
) -> Result<Vec<Backend>, CarriedError> {
    let mut backends = Vec::new();
    for (place, backend) in (0_u8..).zip(carried.backends()) {
        backends.push(match backend {
            CarriedBackend::Block(it) => Backend::Block(disk(it, luggage)?),
            CarriedBackend::Stream(it) => {
                let network = (makers.network)(it, luggage)?;
                Backend::Stream(Box::new(Streams::new(network)))
            }
            CarriedBackend::Entropy => Backend::Entropy,
            // What is typed stays with the process where it is typed.
            CarriedBackend::Console => Backend::Console(Box::new(Console::new(None))),
            CarriedBackend::Net(it) => {
                let wire = (makers.wire)(place, it, luggage)?;
                Backend::Net(Box::new(Frames::new(wire)))
            }
        });
    }
    Ok(backends)
}

/// What a back end said, as what it was.
pub(crate) fn understood<T: for<'a> Deserialize<'a>>(it: &Value) -> Result<T, CarriedError> {
    T::deserialize(it).map_err(CarriedError::NotUnderstood)
}

fn disk(it: &Value, luggage: &mut Luggage) -> Result<Box<dyn Disk>, CarriedError> {
    Ok(match understood(it)? {
        CarriedDisk::File(it) => Box::new(file(it, luggage)?),
        CarriedDisk::Memory { file, name, len } => {
            let file = luggage.take_file(file)?.into();
            Box::new(MemoryDisk::go_on(file, name, len))
        }
        CarriedDisk::Overlay {
            below,
            above,
            written,
        } => {
            let CarriedDisk::File(below) = understood(&below)? else {
                return Err(CarriedError::Nested);
            };
            let below = file(below, luggage)?;
            let above = File::from(luggage.take_file(above)?);
            Box::new(Overlay::go_on(below, above, luggage.bytes(written)?))
        }
    })
}

fn file(it: CarriedFile, luggage: &mut Luggage) -> Result<FileDisk, BadLuggage> {
    let file = luggage.take_file(it.file)?.into();
    Ok(FileDisk::go_on(file, it.name, it.len, it.writable, it.lost))
}

/// What arrives of this in another process.
#[cfg(test)]
pub(crate) fn passed(luggage: &Luggage) -> Luggage {
    let (files, bytes) = luggage.parts();
    let files = files.iter().map(|it| it.try_clone_to_owned().unwrap());
    Luggage::new(files.collect(), bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use wharf_machine::handover::Luggage;

    use super::{CarriedError, disk, passed};
    use crate::device::{Block, BlockMode, DiskError, Medium};

    #[test]
    fn a_disk_keeps_its_lock_for_as_long_as_either_process_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("disk.img");
        std::fs::write(&file, [7; 4096]).unwrap();
        for mode in [BlockMode::ReadWrite, BlockMode::CopyOnWrite] {
            let block = Block {
                device: "data".to_owned(),
                medium: Medium::File {
                    file: file.clone(),
                    size: None,
                    mode,
                },
            };
            let writer = Block {
                device: "data".to_owned(),
                medium: Medium::File {
                    file: file.clone(),
                    size: None,
                    mode: BlockMode::ReadWrite,
                },
            };
            let old = block.open().unwrap();
            let mut luggage = Luggage::default();
            let described = old.carry(&mut luggage).unwrap();
            let described = serde_json::from_str(&described.to_string()).unwrap();
            let new = disk(&described, &mut passed(&luggage)).unwrap();
            drop((old, luggage));
            let refused = writer.open().unwrap_err();
            assert!(matches!(refused, DiskError::InUse { .. }), "{refused}");
            assert_eq!((new.len(), new.id()), (4096, "data"));
            assert!(!new.is_read_only());
            drop(new);
            writer.open().unwrap();
        }
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let mut luggage = Luggage::default();
        for text in [
            "null",
            "{}",
            r#"{"file":{}}"#,
            r#"{"memory":{"file":0,"name":"a","len":512}}"#,
            r#"{"disc":{"file":0,"name":"a","len":512}}"#,
        ] {
            let described = serde_json::from_str(text).unwrap();
            assert!(disk(&described, &mut luggage).is_err(), "{text}");
        }
        let file = || std::fs::File::open("/dev/null").unwrap().into();
        for _ in 0..3 {
            luggage.put_file(file());
        }
        luggage.put_bytes(b"");
        let memory = r#"{"memory":{"file":0,"name":"a","len":512}}"#;
        let overlay = |below: &str, above: u8| {
            format!(
                r#"{{"overlay":{{"below":{below},"above":{above},"written":{{"at":0,"len":0}}}}}}"#
            )
        };
        let nested = serde_json::from_str(&overlay(&overlay(memory, 1), 2)).unwrap();
        let refused = disk(&nested, &mut luggage).unwrap_err();
        assert!(matches!(refused, CarriedError::Nested), "{refused}");
    }
}
