//! Console output to files, by a thread that may block so that no worker does.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::fcntl::OFlag;

use super::{CellError, LogFile};

/// Memory that output of one task may take while it waits to be written. With more,
/// the task waits.
const BEHIND_MAX: usize = 256 * 1024;

/// How long a guest stands still at most for the sake of its log file's order.
const SETTLE_PATIENCE: Duration = Duration::from_millis(5);

/// How long a process that ends waits at most for a slow disk.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// A task's log file, as its worker sees it: a place in the thread's queue.
#[derive(Debug)]
pub(super) struct LogTarget {
    file: usize,
    behind: Arc<AtomicUsize>,
    pieces: Sender<Piece>,
}

/// The thread, before it starts: it has to know all files first.
#[derive(Debug, Default)]
pub(super) struct Logger {
    files: Vec<RotatedFile>,
}

#[derive(Debug)]
struct Piece {
    file: usize,
    bytes: Vec<u8>,
    behind: Arc<AtomicUsize>,
}

impl Logger {
    /// Adds a file and returns its number.
    pub(super) fn add(&mut self, log: &LogFile) -> usize {
        self.files.push(RotatedFile::new(log.clone()));
        self.files.len().saturating_sub(1)
    }

    /// Starts the thread, which ends when the last target has gone, and returns
    /// what makes targets of numbers. Costs nothing without files.
    pub(super) fn start(self) -> Result<impl Fn(usize) -> Arc<LogTarget>, CellError> {
        let (pieces, inbox) = unbounded();
        if !self.files.is_empty() {
            std::thread::Builder::new()
                .name("log files".to_owned())
                .spawn(move || write_all(self.files, &inbox))
                .map_err(CellError::Thread)?;
        }
        Ok(move |file| {
            Arc::new(LogTarget {
                file,
                behind: Arc::default(),
                pieces: pieces.clone(),
            })
        })
    }
}

impl LogTarget {
    /// Passes bytes on to the thread; false when it is too far behind.
    pub(super) fn append(&self, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            return true;
        }
        if self.behind.load(Ordering::Relaxed) >= BEHIND_MAX {
            return false;
        }
        let piece = Piece {
            file: self.file,
            bytes: bytes.to_vec(),
            behind: Arc::clone(&self.behind),
        };
        self.behind.fetch_add(piece.cost(), Ordering::Relaxed);
        // A thread that is gone loses output and stops nobody.
        let _ = self.pieces.send(piece);
        true
    }

    /// Waits until everything is written that was appended so far, or for a moment: what
    /// another process appends to the same file then comes behind it.
    pub(super) fn settle(&self) {
        self.wait(Instant::now(), SETTLE_PATIENCE);
    }

    fn wait(&self, start: Instant, patience: Duration) {
        while self.behind.load(Ordering::Relaxed) > 0 && start.elapsed() < patience {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// Waits until everything is written, as this process is about to end.
pub(super) fn settle_all<'a>(targets: impl Iterator<Item = &'a LogTarget>) {
    let start = Instant::now();
    for target in targets {
        target.wait(start, LAST_PATIENCE);
    }
}

impl Piece {
    /// Memory that it takes in the queue: a guest that writes byte by byte pays for
    /// what is around each.
    const fn cost(&self) -> usize {
        size_of::<Self>().saturating_add(self.bytes.len())
    }
}

fn write_all(mut files: Vec<RotatedFile>, inbox: &Receiver<Piece>) {
    while let Ok(piece) = inbox.recv() {
        if let Some(file) = files.get_mut(piece.file) {
            file.append(&piece.bytes);
        }
        piece.behind.fetch_sub(piece.cost(), Ordering::Relaxed);
    }
}

/// A file that is renamed when it is full.
#[derive(Debug)]
struct RotatedFile {
    log: LogFile,
    open: Option<File>,
    /// Whether it was said that writing fails; a guest decides how often it does.
    said: bool,
}

impl RotatedFile {
    fn new(log: LogFile) -> Self {
        Self {
            log,
            open: None,
            said: false,
        }
    }

    /// Appends; what cannot be written is lost, and that is said once until
    /// writing works again.
    fn append(&mut self, bytes: &[u8]) {
        match self.try_append(bytes) {
            Ok(()) => self.said = false,
            Err(e) => {
                self.open = None;
                if !std::mem::replace(&mut self.said, true) {
                    log::warn!("{}: console output is lost: {e}", self.log.file.display());
                }
            }
        }
    }

    fn try_append(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Somebody else may have renamed it: a tool, or another process that goes on with
        // a part of the host and appends to it, too.
        let there = fs::metadata(&self.log.file);
        let is_it = |open: &File| {
            let (open, there) = (open.metadata().ok()?, there.as_ref().ok()?);
            Some((open.dev(), open.ino()) == (there.dev(), there.ino()))
        };
        if self.open.as_ref().and_then(is_it) != Some(true) {
            self.open = None;
        }
        if there.is_ok_and(|it| it.is_file() && it.len() >= self.log.size) {
            self.open = None;
            self.rotate()?;
        }
        if self.open.is_none() {
            // A pipe that nobody reads must not keep the other tasks' output.
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .custom_flags(OFlag::O_NONBLOCK.bits())
                .open(&self.log.file)?;
            self.open = Some(file);
        }
        match &mut self.open {
            Some(file) => file.write_all(bytes),
            None => Ok(()),
        }
    }

    /// `file` becomes `file.1`, which becomes `file.2` before, and so on.
    fn rotate(&self) -> io::Result<()> {
        for number in (1..self.log.keep).rev() {
            let (from, to) = (
                self.numbered(number),
                self.numbered(number.saturating_add(1)),
            );
            if from.exists() {
                fs::rename(from, to)?;
            }
        }
        if self.log.keep == 0 {
            fs::remove_file(&self.log.file)
        } else {
            fs::rename(&self.log.file, self.numbered(1))
        }
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.log.file.clone().into_os_string();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use crossbeam_channel::unbounded;

    use super::{BEHIND_MAX, LogFile, LogTarget, Piece, RotatedFile, write_all};

    /// How much a task can have queued, whatever its pieces are, when nothing is
    /// written.
    #[test]
    fn what_waits_to_be_written_is_bounded_whatever_its_pieces() {
        let (pieces, inbox) = unbounded();
        let target = LogTarget {
            file: 0,
            behind: Arc::default(),
            pieces,
        };
        for _ in 0..BEHIND_MAX {
            assert!(target.append(b""), "nothing always fits");
        }
        assert_eq!(inbox.len(), 0, "and takes no room");
        let mut taken = 0;
        while target.append(b"x") {
            taken += 1;
        }
        assert_eq!(inbox.len(), taken);
        assert!(taken <= BEHIND_MAX / size_of::<Piece>(), "{taken}");

        let directory = tempfile::tempdir().unwrap();
        let log = LogFile {
            file: directory.path().join("web.log"),
            size: 1 << 20,
            keep: 0,
        };
        let behind = Arc::clone(&target.behind);
        drop(target);
        write_all(vec![RotatedFile::new(log)], &inbox);
        assert_eq!(behind.load(Ordering::Relaxed), 0, "all of it is given back");
    }

    #[test]
    fn full_files_are_kept_up_to_their_number() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("web.log");
        let log = LogFile {
            file: file.clone(),
            size: 4,
            keep: 2,
        };
        let mut rotated = RotatedFile::new(log);
        for piece in ["aaaa", "bbbb", "cccc", "d"] {
            rotated.append(piece.as_bytes());
        }
        let read = |suffix: &str| {
            fs::read_to_string(format!("{}{suffix}", file.display())).unwrap_or_default()
        };
        assert_eq!(
            [read(""), read(".1"), read(".2"), read(".3")],
            ["d", "cccc", "bbbb", ""]
        );
    }

    /// Two processes write to one log while guests go from one to the other, in turns.
    #[test]
    fn who_writes_too_may_rotate() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("web.log");
        let log = LogFile {
            file: file.clone(),
            size: 4,
            keep: 9,
        };
        let mut both = [RotatedFile::new(log.clone()), RotatedFile::new(log)];
        let mut written = String::new();
        for turn in 0..9 {
            let piece = format!("{turn}{turn}");
            both[turn % 2].append(piece.as_bytes());
            written.push_str(&piece);
        }
        let mut read = String::new();
        for number in (1..=9).rev() {
            let old = fs::read_to_string(format!("{}.{number}", file.display()));
            read.push_str(&old.unwrap_or_default());
        }
        read.push_str(&fs::read_to_string(&file).unwrap());
        assert_eq!(read, written);
    }

    #[test]
    fn a_file_that_was_there_is_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("web.log");
        fs::write(&file, "old ").unwrap();
        let log = LogFile {
            file: file.clone(),
            size: 100,
            keep: 0,
        };
        RotatedFile::new(log).append(b"new");
        assert_eq!(fs::read_to_string(file).unwrap(), "old new");
    }

    #[test]
    fn a_pipe_that_nobody_reads_keeps_nobody_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pipe");
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let log = LogFile {
            file: file.clone(),
            size: 1 << 20,
            keep: 0,
        };
        let mut unread = RotatedFile::new(log.clone());
        unread.append(b"x");
        assert!(unread.said);
        // Nor one whose reader is stuck.
        let _reader = fs::File::options()
            .read(true)
            .write(true)
            .open(&file)
            .unwrap();
        let mut stuck = RotatedFile::new(log);
        while !stuck.said {
            stuck.append(&[b'x'; 4096]);
        }
    }

    #[test]
    fn a_disk_that_is_full_loses_output_and_nothing_else() {
        let log = LogFile {
            file: "/dev/full".into(),
            size: 100,
            keep: 0,
        };
        let mut rotated = RotatedFile::new(log);
        rotated.append(b"x");
        rotated.append(b"y");
        assert!(rotated.said);
    }
}
