//! Snapshots that tasks are clones of, each opened once, and the clones that are kept
//! ready.
//!
//! A file that has changed is opened anew at the next start. What runs goes on with what
//! it was made of: a snapshot is never written in place.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use wharf_machine::snapshot::{Prepared, Snapshot, SnapshotError};
use wharf_machine::{Error, Hypervisor};

use super::{CellError, TaskSpec};
use crate::headroom;
use crate::text::one_line;

/// How long after a start its place is filled: what has just started is in more of a
/// hurry.
const REFILL_PAUSE: Duration = Duration::from_millis(20);

/// No clone could be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum CloneError {
    /// Of this file none can.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Not now.
    #[error(transparent)]
    Machine(#[from] Error),
}

/// The snapshots of a cell.
pub(super) struct Templates {
    hypervisor: Arc<Hypervisor>,
    /// How many clones of each file are kept ready.
    wanted: BTreeMap<PathBuf, usize>,
    open: Mutex<BTreeMap<PathBuf, Template>>,
    refill: Sender<PathBuf>,
}

struct Template {
    stamp: Option<Stamp>,
    snapshot: Arc<Snapshot>,
    warm: Vec<Prepared>,
}

/// What changes when another snapshot gets a file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(file: &Path) -> Option<Self> {
        let metadata = fs::metadata(file).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

impl Templates {
    /// Those of these tasks. A thread of its own makes the clones that are kept ready, from
    /// when it is told [to](Templates::keep_warm), and ends when nobody has this any more.
    ///
    /// # Errors
    ///
    /// When there is no thread to be had.
    pub(super) fn start(
        hypervisor: &Arc<Hypervisor>,
        tasks: &[TaskSpec],
    ) -> Result<Arc<Self>, CellError> {
        let mut wanted = BTreeMap::new();
        for task in tasks {
            if let Some(clones) = task.clones.filter(|it| it.warm > 0) {
                let warm: &mut usize = wanted.entry(task.image.clone()).or_default();
                let more = usize::try_from(clones.warm).unwrap_or(usize::MAX);
                *warm = warm.saturating_add(more);
            }
        }
        let (refill, refills) = unbounded();
        let templates = Arc::new(Self {
            hypervisor: Arc::clone(hypervisor),
            wanted,
            open: Mutex::default(),
            refill,
        });
        if !templates.wanted.is_empty() {
            let kept = Arc::downgrade(&templates);
            std::thread::Builder::new()
                .name("warm clones".to_owned())
                .spawn(move || keep_warm(&refills, &kept))
                .map_err(CellError::Thread)?;
        }
        Ok(templates)
    }

    /// Begins to keep clones ready.
    pub(super) fn keep_warm(&self) {
        for file in self.wanted.keys() {
            // Who keeps them ready ends with this.
            let _ = self.refill.send(file.clone());
        }
    }

    /// A clone of what is in the file now, and whether it was ready.
    ///
    /// # Errors
    ///
    /// [`CloneError`].
    pub(super) fn take(&self, file: &Path) -> Result<(Prepared, bool), CloneError> {
        let snapshot = self.current(file)?;
        let ready = match self.lock().get_mut(file) {
            Some(it) if Arc::ptr_eq(&it.snapshot, &snapshot) => it.warm.pop(),
            _ => None,
        };
        if self.wanted.contains_key(file) {
            // Who keeps them ready ends with this.
            let _ = self.refill.send(file.to_owned());
        }
        match ready {
            Some(ready) => Ok((ready, true)),
            None => Ok((Prepared::new(&self.hypervisor, &snapshot)?, false)),
        }
    }

    /// Makes as many as are wanted, one after the other: whoever takes one meanwhile does
    /// not wait.
    fn fill(&self, file: &Path) -> Result<(), CloneError> {
        let wanted = self.wanted.get(file).copied().unwrap_or(0);
        loop {
            let snapshot = self.current(file)?;
            match self.lock().get(file) {
                Some(it) if it.warm.len() < wanted => {}
                _ => return Ok(()),
            }
            if let Err(exhausted) = headroom::check() {
                log::warn!("fewer warm clones: {}", one_line(&exhausted));
                return Ok(());
            }
            let ready = Prepared::new(&self.hypervisor, &snapshot)?;
            let mut open = self.lock();
            // Of another file by now, perhaps.
            if let Some(template) = open.get_mut(file)
                && Arc::ptr_eq(&template.snapshot, &snapshot)
            {
                template.warm.push(ready);
            }
        }
    }

    /// What is in the file now. It is opened while nobody waits for this but who wants
    /// the same: a file is as large as a guest's memory, and a disk may be slow.
    fn current(&self, file: &Path) -> Result<Arc<Snapshot>, SnapshotError> {
        let stamp = Stamp::of(file);
        if let Some(template) = self.lock().get(file)
            && stamp.is_some()
            && template.stamp == stamp
        {
            return Ok(Arc::clone(&template.snapshot));
        }
        let snapshot = Arc::new(Snapshot::open(&self.hypervisor, file)?);
        let template = Template {
            stamp,
            snapshot: Arc::clone(&snapshot),
            warm: Vec::new(),
        };
        let before = self.lock().insert(file.to_owned(), template);
        // Its clones are closed when nobody waits for the lock.
        drop(before);
        Ok(snapshot)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Template>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes clones whenever some were taken. What keeps it from that is told, and tried
/// again after the next start.
fn keep_warm(refills: &Receiver<PathBuf>, templates: &Weak<Templates>) {
    for file in refills {
        std::thread::sleep(REFILL_PAUSE);
        let Some(templates) = templates.upgrade() else {
            return;
        };
        if let Err(error) = templates.fill(&file) {
            log::warn!("no warm clones: {}", one_line(&error));
        }
    }
}
