//! Block devices of a task.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::field::Field;
use super::findings::{Findings, quote};
use super::section::Key;
use crate::cell::protocol::is_task_name;

const DEVICE: Key = Key::new("device", "device = \"data\"");
const FILE: Key = Key::new("file", "file = \"data.img\"");
const SIZE: Key = Key::new("size", "size = \"64MiB\"");
const MODE: Key = Key::new("mode", "mode = \"rw\"");

/// What a disk is counted in (virtio 1.2, section 5.2.4).
const SECTOR: u64 = 512;

/// A file that is a disk to a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The name that the image declares.
    pub device: String,
    /// The file.
    pub file: PathBuf,
    /// Bytes of the file when it is missing and has to be made, a multiple of
    /// 512; without, it has to exist.
    pub size: Option<u64>,
    /// What the task may do with it.
    pub mode: BlockMode,
}

/// What a task may do with a block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockMode {
    /// Read and write.
    #[default]
    ReadWrite,
    /// Read.
    ReadOnly,
    /// Read and write, but nothing of it reaches the file.
    CopyOnWrite,
}

impl Block {
    /// Reads every block device of one task.
    pub(super) fn read_all(field: Field<'_>, found: &mut Findings<'_>) -> Option<Vec<Self>> {
        let mut devices = BTreeMap::new();
        let items = field.items(found)?.into_iter();
        Some(
            items
                .filter_map(|it| Self::read(it, &mut devices, found))
                .collect(),
        )
    }

    /// Reads one; `devices` are those before it and where they are.
    fn read(
        field: Field<'_>,
        devices: &mut BTreeMap<String, usize>,
        found: &mut Findings<'_>,
    ) -> Option<Self> {
        let section = field.section("a block device", &[DEVICE, FILE, SIZE, MODE], found)?;
        found.add_unsupported(
            field.at(),
            "block devices come with a later version of wharf: take this table out",
        );
        let device = section.require(DEVICE, found);
        let device = device.and_then(|it| read_device(it, devices, found));
        let file = section.require(FILE, found);
        let file = file.and_then(|it| it.path(found));
        let size = section.get(SIZE).and_then(|it| read_size(it, found));
        let mode = section.get(MODE).and_then(|it| read_mode(it, found));
        Some(Self {
            device: device?,
            file: file?,
            size,
            mode: mode.unwrap_or_default(),
        })
    }
}

fn read_device(
    field: Field<'_>,
    devices: &mut BTreeMap<String, usize>,
    found: &mut Findings<'_>,
) -> Option<String> {
    let device = field.text(found)?;
    let quoted = quote(device);
    if !is_task_name(device) {
        let what = format!("{quoted} is no name: use 1 to 63 letters, digits, - and _");
        field.wrong(what, found);
    } else if let Some(&at) = devices.get(device) {
        let line = found.line(at);
        let what = format!("{quoted} is taken at line {line}: give each one file");
        field.wrong(what, found);
    } else {
        devices.insert(device.to_owned(), field.at());
    }
    Some(device.to_owned())
}

fn read_size(field: Field<'_>, found: &mut Findings<'_>) -> Option<u64> {
    let size = field.size(found)?;
    if size == 0 || !size.is_multiple_of(SECTOR) {
        field.wrong_text("is no multiple of 512B: write size = \"64MiB\"", found);
    }
    Some(size)
}

fn read_mode(field: Field<'_>, found: &mut Findings<'_>) -> Option<BlockMode> {
    let words = &[
        ("rw", BlockMode::ReadWrite),
        ("ro", BlockMode::ReadOnly),
        ("cow", BlockMode::CopyOnWrite),
    ];
    field.word(words, found)
}
