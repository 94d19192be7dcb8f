//! Block devices of a task.

use std::collections::BTreeMap;

use super::claims::Claims;
use super::field::Field;
use super::findings::{Findings, quote};
use super::section::Key;
use crate::device::{Block, BlockMode, DEVICE_NAME_MAX, Medium, is_device_name, is_disk_size};

const DEVICE: Key = Key::new("device", "device = \"data\"");
const FILE: Key = Key::new("file", "file = \"data.img\"");
const SIZE: Key = Key::new("size", "size = \"64MiB\"");
const MODE: Key = Key::new("mode", "mode = \"rw\"");

/// Reads every block device of one task.
pub(super) fn read_all(
    field: Field<'_>,
    claims: &mut Claims,
    found: &mut Findings<'_>,
) -> Option<Vec<Block>> {
    let mut devices = BTreeMap::new();
    let items = field.items(found)?.into_iter();
    Some(
        items
            .filter_map(|it| read(it, &mut devices, claims, found))
            .collect(),
    )
}

/// What `mode` says.
#[derive(Clone, Copy)]
enum Mode {
    File(BlockMode),
    Memory,
}

/// Reads one; `devices` are those before it and where they are.
fn read(
    field: Field<'_>,
    devices: &mut BTreeMap<String, usize>,
    claims: &mut Claims,
    found: &mut Findings<'_>,
) -> Option<Block> {
    let section = field.section("a block device", &[DEVICE, FILE, SIZE, MODE], found)?;
    let device = section.require(DEVICE, found);
    let device = device.and_then(|it| read_device(it, devices, "give each one file", found));
    let mode = section.get(MODE).and_then(|it| read_mode(it, found));
    let size = section.get(SIZE);
    let medium = match mode.unwrap_or(Mode::File(BlockMode::default())) {
        Mode::Memory => {
            if let Some(file) = section.get(FILE) {
                file.wrong("is of no use to a disk in memory: take it out", found);
            }
            let size = section.require(SIZE, found);
            let size = size.and_then(|it| read_size(it, found));
            size.map(|size| Medium::Memory { size })
        }
        Mode::File(mode) => {
            let size = size.and_then(|it| read_size(it, found));
            let field = section.require(FILE, found);
            let file = field.and_then(|it| it.path(found));
            if let (Some(field), Some(file)) = (field, &file) {
                let writes = mode == BlockMode::ReadWrite;
                claims.disk(field, file, writes, found);
            }
            file.map(|file| Medium::File { file, size, mode })
        }
    };
    Some(Block {
        device: device?,
        medium: medium?,
    })
}

/// Reads what a device is called; `devices` are those of its kind before it and where
/// they are, and `way_out` what to do about one that is among them.
pub(super) fn read_device(
    field: Field<'_>,
    devices: &mut BTreeMap<String, usize>,
    way_out: &str,
    found: &mut Findings<'_>,
) -> Option<String> {
    let device = field.text(found)?;
    let quoted = quote(device);
    if !is_device_name(device) {
        let what =
            format!("{quoted} is no name: use 1 to {DEVICE_NAME_MAX} letters, digits, . _ + and -");
        field.wrong(what, found);
    } else if let Some(&at) = devices.get(device) {
        let line = found.line(at);
        let what = format!("{quoted} is taken at line {line}: {way_out}");
        field.wrong(what, found);
    } else {
        devices.insert(device.to_owned(), field.at());
    }
    Some(device.to_owned())
}

fn read_size(field: Field<'_>, found: &mut Findings<'_>) -> Option<u64> {
    let size = field.size(found)?;
    if !is_disk_size(size) {
        field.wrong_text("is no multiple of 512B: write size = \"64MiB\"", found);
    }
    Some(size)
}

fn read_mode(field: Field<'_>, found: &mut Findings<'_>) -> Option<Mode> {
    let words = &[
        ("rw", Mode::File(BlockMode::ReadWrite)),
        ("ro", Mode::File(BlockMode::ReadOnly)),
        ("cow", Mode::File(BlockMode::CopyOnWrite)),
        ("memory", Mode::Memory),
    ];
    field.word(words, found)
}
