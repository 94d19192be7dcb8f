//! Where a task's console goes besides the ring.

use super::claims::Claims;
use super::field::Field;
use super::findings::Findings;
use super::section::Key;
use crate::cell::LogFile;

const FILE: Key = Key::new("file", "file = \"web.log\"");
const SIZE: Key = Key::new("size", "size = \"16MiB\"");
const KEEP: Key = Key::new("keep", "keep = 3");
const KEEP_MAX: u32 = 100;
const LOG_SIZE_DEFAULT: u64 = 16 << 20;
const LOG_KEEP_DEFAULT: u32 = 3;

/// Reads `[task.log]`.
pub(super) fn read(
    field: Field<'_>,
    claims: &mut Claims,
    found: &mut Findings<'_>,
) -> Option<LogFile> {
    let section = field.section("a log", &[FILE, SIZE, KEEP], found)?;
    let written = section.require(FILE, found);
    let file = written.and_then(|it| it.path(found));
    let size = section.get(SIZE).and_then(|it| {
        let size = it.size(found)?;
        if size == 0 {
            it.wrong_unlike("is nothing", found);
        }
        Some(size)
    });
    let keep = section
        .get(KEEP)
        .and_then(|it| it.number(0..=KEEP_MAX, found));
    let log = LogFile {
        file: file?,
        size: size.unwrap_or(LOG_SIZE_DEFAULT),
        keep: keep.unwrap_or(LOG_KEEP_DEFAULT),
    };
    claims.log(written?, &log, found);
    Some(log)
}
