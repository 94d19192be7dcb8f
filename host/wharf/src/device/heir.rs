//! The disk of a guest that is to take another's place.
//!
//! Until it does, the other one may have to go on as if nothing had been. So what it
//! writes stays beside the file, and goes into it when it takes over.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde_json::Value;
use wharf_machine::Buffers;
use wharf_machine::device::Disk;
use wharf_machine::handover::Luggage;

use super::overlay::Overlay;

/// Bytes that are copied at a stretch.
const PIECE: usize = 64 << 10;

/// A disk whose bytes are a file's.
pub(super) trait OnFile: Disk + 'static {
    /// The file.
    fn file(&self) -> &File;
}

/// A disk that is written beside, until it is the guest's own.
#[derive(Debug)]
struct Heir<B> {
    overlay: Overlay<B>,
    is_own: bool,
}

/// A way to a disk beside the one that a guest has.
pub(super) fn beside<B: OnFile>(disk: B) -> io::Result<Box<dyn Disk>> {
    let overlay = Overlay::new(disk).map_err(io::Error::other)?;
    Ok(Box::new(Heir {
        overlay,
        is_own: false,
    }))
}

impl<B: OnFile> Heir<B> {
    const fn disk(&mut self) -> &mut dyn Disk {
        if self.is_own {
            self.overlay.below()
        } else {
            &mut self.overlay
        }
    }
}

impl<B: OnFile> Disk for Heir<B> {
    fn len(&self) -> u64 {
        self.overlay.len()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn can_discard(&self) -> bool {
        self.is_own
    }

    fn id(&self) -> &str {
        self.overlay.id()
    }

    fn read(&mut self, at: u64, into: &Buffers<'_>) -> io::Result<()> {
        self.disk().read(at, into)
    }

    fn write(&mut self, at: u64, from: &Buffers<'_>) -> io::Result<()> {
        self.disk().write(at, from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk().flush()
    }

    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        self.disk().discard(at, len)
    }

    /// One that is not its own yet does not go anywhere: whose it will be is not decided.
    fn carry(&self, luggage: &mut Luggage) -> io::Result<Value> {
        if self.is_own {
            self.overlay.under().carry(luggage)
        } else {
            Err(io::Error::other("it is still to take another's place"))
        }
    }

    /// Of one that is not its own yet, there is none: it may have to go.
    fn share(&self) -> Option<io::Result<Box<dyn Disk>>> {
        if self.is_own {
            self.overlay.under().share()
        } else {
            None
        }
    }

    fn own(&mut self) -> io::Result<()> {
        if self.is_own {
            return Ok(());
        }
        let (from, runs) = self.overlay.written();
        let to = self.overlay.under().file();
        let is_written = !runs.is_empty();
        let mut piece = vec![0; PIECE];
        for run in runs {
            let mut at = run.start;
            while at < run.end {
                let left = usize::try_from(run.end.saturating_sub(at)).unwrap_or(PIECE);
                let bytes = piece.get_mut(..left.min(PIECE)).unwrap_or_default();
                from.read_exact_at(bytes, at)?;
                to.write_all_at(bytes, at)?;
                at = at.saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
            }
        }
        // What the guest flushed lasts.
        if is_written {
            self.overlay.below().flush()?;
        }
        self.is_own = true;
        Ok(())
    }
}
