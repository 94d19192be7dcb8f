//! Who has a disk's file: one writer, or any number of readers.
//!
//! The lock is `flock`'s, on the open file: it is held against other processes and
//! other tasks of this one alike, goes when the file is closed, however the process
//! ends, and the kernel remembers who took it. A process that the open file is passed to
//! has it as well, so that it is never let go of on purpose.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{major, minor};

use super::DiskError;

/// Locks a file for reading or writing.
///
/// # Errors
///
/// [`DiskError::InUse`] when somebody has it already.
pub(super) fn take(file: File, path: &Path, writes: bool) -> Result<File, DiskError> {
    let taken = if writes {
        file.try_lock()
    } else {
        file.try_lock_shared()
    };
    match taken {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DiskError::InUse {
            file: path.to_owned(),
            by: holder(&file),
        }),
        Err(TryLockError::Error(source)) => Err(DiskError::Open {
            file: path.to_owned(),
            how: "lock it",
            source,
        }),
    }
}

/// Says who has a file in a way that does not go with this one, without locking it:
/// as far as the kernel tells, which is less than [`take`] finds out.
pub(super) fn look(file: &File, path: &Path, writes: bool) -> Result<(), DiskError> {
    let Ok(metadata) = file.metadata() else {
        return Ok(());
    };
    let device = metadata.dev();
    let place = format!(
        "{:02x}:{:02x}:{}",
        major(device),
        minor(device),
        metadata.ino()
    );
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    match locks.lines().find(|line| is_against(line, &place, writes)) {
        Some(line) => Err(DiskError::InUse {
            file: path.to_owned(),
            by: pid_of(line, metadata.ino()).map_or_else(|| "somebody else".to_owned(), name_of),
        }),
        None => Ok(()),
    }
}

/// Whether a line is of a lock on that file which who writes, or reads, cannot join.
fn is_against(line: &str, place: &str, writes: bool) -> bool {
    let words: Vec<_> = line.split_whitespace().collect();
    match words[..] {
        [_, "FLOCK", _, how, _, of, ..] => of == place && (writes || how == "WRITE"),
        _ => false,
    }
}

/// Who holds the lock, as far as the kernel tells (proc_locks(5)).
fn holder(file: &File) -> String {
    let inode = file.metadata().map_or(0, |metadata| metadata.ino());
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let pid = locks.lines().find_map(|line| pid_of(line, inode));
    pid.map_or_else(|| "somebody else".to_owned(), name_of)
}

/// A process, as an operator finds it.
fn name_of(pid: u32) -> String {
    if pid == std::process::id() {
        return "another task of this host".to_owned();
    }
    // A lock goes with its file to a process that takes over, and keeps its first owner's
    // number, of whom a parent may not have taken note yet.
    let program = fs::read_link(format!("/proc/{pid}/exe"));
    if program.is_err_and(|e| e.kind() == ErrorKind::NotFound) {
        return format!("whoever took it over from process {pid}");
    }
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match name.trim_end() {
        "" => format!("process {pid}"),
        name => format!("process {pid} ({name})"),
    }
}

/// The holder in a line such as `7: FLOCK ADVISORY WRITE 831 fe:00:5231 0 EOF`, when
/// that is about this inode.
fn pid_of(line: &str, inode: u64) -> Option<u32> {
    let mut words = line.split_whitespace().skip(1);
    if words.next()? != "FLOCK" {
        return None;
    }
    let mut words = words.skip(2);
    let pid = words.next()?;
    let (_device, number) = words.next()?.rsplit_once(':')?;
    if number.parse() == Ok(inode) {
        pid.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{is_against, pid_of};

    #[test]
    fn readers_go_with_readers_and_nothing_else_goes_together() {
        let line = |how| format!("7: FLOCK  ADVISORY  {how} 831 fe:00:5231 0 EOF");
        for (how, writes, against) in [
            ("READ", false, false),
            ("READ", true, true),
            ("WRITE", false, true),
            ("WRITE", true, true),
        ] {
            let (line, place) = (line(how), "fe:00:5231");
            assert_eq!(is_against(&line, place, writes), against, "{how} {writes}");
            assert!(!is_against(&line, "fe:01:5231", writes));
        }
    }

    #[test]
    fn the_holder_is_found_by_inode() {
        let line = "7: FLOCK  ADVISORY  WRITE 831 fe:00:5231 0 EOF";
        assert_eq!(pid_of(line, 5231), Some(831));
        assert_eq!(pid_of(line, 5232), None);
        // One who waits for a lock does not hold it.
        let waits = "7: -> FLOCK  ADVISORY  WRITE 832 fe:00:5231 0 EOF";
        assert_eq!(pid_of(waits, 5231), None);
        let other = "8: POSIX  ADVISORY  WRITE 831 fe:00:5231 0 EOF";
        assert_eq!(pid_of(other, 5231), None);
        assert_eq!(pid_of("", 0), None);
    }
}
