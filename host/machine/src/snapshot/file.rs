//! A snapshot as a file.
//!
//! ```text
//!   0         header       lengths, checksums
//!   48        guest        JSON
//!             image        the ELF file
//!   n × 4 KiB memory       guest-physical 0 to its end; holes where it is zero
//! ```
//!
//! Numbers are little-endian. Both checksums are CRC-32 (IEEE 802.3): they find what
//! disks and copies do to a file, and against forgery nothing here relies on them.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crc32fast::Hasher;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use tempfile::NamedTempFile;
use vmm_sys_util::seek_hole::SeekHole;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::state::State;
use super::{PAGE_LEN, Saved, Unusable, WriteError, ZEROES};
use crate::image::{IMAGE_BYTES_MAX, Image};
use crate::layout::MEMORY_MAX;
use crate::memory::{PAGE, u64_of};

/// The format that this host writes, and the only one that it reads.
pub(super) const VERSION: u32 = 2;

const MAGIC: [u8; 8] = *b"WHARFSNP";

/// Most bytes of the guest's JSON: that of one with all connections that may be is a
/// third of it.
const STATE_MAX: u64 = 1 << 20;

/// How much memory is read at a time to be checked.
const CHUNK: u64 = 64 * PAGE;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: u32,
    state_len: u32,
    image_len: u64,
    memory_at: u64,
    memory_len: u64,
    /// Of the number and the contents of each page that is not all zeroes.
    memory_crc: u32,
    /// Of everything before the memory, with zeroes here.
    head_crc: u32,
}

const HEADER_LEN: u64 = 48;
const _: () = assert!(size_of::<Header>() == 48);

/// What a file held, checked but for what only the whole of it can tell.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) state: State,
    pub(super) image: Image,
    pub(super) memory_at: u64,
    pub(super) memory_len: u64,
    /// The pages of which it has something.
    pub(super) pages: Vec<Range<u64>>,
}

/// Writes a snapshot and gives it its name when it is whole.
pub(super) fn write_to(saved: &Saved, image: &Image, path: &Path) -> Result<(), WriteError> {
    let failed = |source| failed(saved, image, path, source);
    if saved.state.check(image, saved.memory_len).is_err() {
        return Err(WriteError::Image);
    }
    match path.symlink_metadata() {
        Ok(there) if !there.is_file() => {
            let path = path.to_owned();
            return Err(WriteError::NotRegular { path });
        }
        Ok(there) => {
            let mut magic = [0; MAGIC.len()];
            let mut is_snapshot = || File::open(path)?.read_exact_at(&mut magic, 0);
            // What cannot be read is not known to be one.
            let read = is_snapshot();
            if there.len() > 0 && (read.is_err() || magic != MAGIC) {
                let path = path.to_owned();
                return Err(WriteError::InUse { path });
            }
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = Nascent::new(directory).map_err(failed)?;
    write(saved, image, file.file()).map_err(failed)?;
    file.file().sync_all().map_err(failed)?;
    file.name(directory, path).map_err(failed)?;
    // The name, too, is to survive.
    let directory = File::open(directory).map_err(failed)?;
    directory.sync_all().map_err(failed)
}

/// A file that does not have its name yet. It is for its owner alone, since a guest's
/// memory holds its keys; dropped, it is gone.
enum Nascent {
    /// It has no name until it is whole, so that nothing is left of it when this process
    /// is killed before.
    Unnamed(File),
    /// The file system has no such files.
    Named(NamedTempFile),
}

impl Nascent {
    fn new(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::open(directory, flags, mode) {
            Ok(file) => Ok(Self::Unnamed(file.into())),
            // The second is what a kernel says that does not know the flag (open(2)).
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
                let named = temporary().tempfile_in(directory);
                named.map(Self::Named)
            }
            Err(e) => Err(e.into()),
        }
    }

    fn file(&mut self) -> &mut File {
        match self {
            Self::Unnamed(file) => file,
            Self::Named(file) => file.as_file_mut(),
        }
    }

    /// Gives it its name, in the place of what has that now.
    fn name(self, directory: &Path, path: &Path) -> io::Result<()> {
        match self {
            // A link does not replace what is there: a new name does.
            Self::Unnamed(file) => {
                let link = |name: &Path| {
                    let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
                    let how = AtFlags::SYMLINK_FOLLOW;
                    Ok(rustix::fs::linkat(CWD, nameless, CWD, name, how)?)
                };
                let named = temporary().make_in(directory, link)?;
                named.persist(path).map(drop).map_err(|e| e.error)
            }
            Self::Named(file) => file.persist(path).map(drop).map_err(|e| e.error),
        }
    }
}

fn temporary() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".snapshot-");
    builder
}

/// Says what went wrong, and what to do when there was no room.
pub(super) fn failed(saved: &Saved, image: &Image, path: &Path, source: io::Error) -> WriteError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            WriteError::NoRoom {
                path,
                bytes: saved.resident().saturating_add(u64_of(image.bytes().len())),
                source,
            }
        }
        _ => WriteError::Io { path, source },
    }
}

/// Writes a whole snapshot into an empty file.
pub(super) fn write(saved: &Saved, image: &Image, file: &mut File) -> io::Result<()> {
    let state = serde_json::to_vec(&saved.state)?;
    let state_len = u32::try_from(state.len()).map_err(|_| ErrorKind::FileTooLarge)?;
    let image_len = u64_of(image.bytes().len());
    let memory_at = memory_at(state_len, image_len).ok_or(ErrorKind::FileTooLarge)?;
    let mut header = Header {
        magic: MAGIC,
        version: VERSION,
        state_len,
        image_len,
        memory_at,
        memory_len: saved.memory_len,
        memory_crc: write_memory(saved, file, memory_at)?,
        head_crc: 0,
    };
    let mut head = [header.as_bytes(), &state, image.bytes()].concat();
    head.resize(usize::try_from(memory_at).unwrap_or(head.len()), 0);
    header.head_crc = crc32fast::hash(&head);
    file.write_all(&head)?;
    file.write_all_at(header.as_bytes(), 0)?;
    file.set_len(memory_at.saturating_add(saved.memory_len))
}

/// Writes the pages that hold something, neighbours together, and returns their
/// checksum.
fn write_memory(saved: &Saved, file: &File, memory_at: u64) -> io::Result<u32> {
    let mut crc = Hasher::new();
    let mut run = Vec::new();
    let mut run_at = 0_u64;
    for (number, page) in saved.full_pages() {
        let at = number.saturating_mul(PAGE);
        let is_next = at == run_at.saturating_add(u64_of(run.len()));
        if !is_next || u64_of(run.len()) >= CHUNK {
            file.write_all_at(&run, memory_at.saturating_add(run_at))?;
            run.clear();
            run_at = at;
        }
        run.extend_from_slice(page);
        add_page(&mut crc, number, page);
    }
    file.write_all_at(&run, memory_at.saturating_add(run_at))?;
    Ok(crc.finalize())
}

/// Reads a file and checks all of it that can be checked alone.
///
/// # Errors
///
/// [`Unusable`].
pub(super) fn open(path: &Path) -> Result<Opened, Unusable> {
    // Without O_NONBLOCK, opening a pipe waits for its writer.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(Unusable::Io)?;
    let metadata = file.metadata().map_err(Unusable::Io)?;
    if !metadata.is_file() {
        return Err(Unusable::NotRegular);
    }
    let len = metadata.len();
    let (header, head) = read_head(&file, len)?;
    let rest = head.get(size_of::<Header>()..).unwrap_or_default();
    let state_len = usize::try_from(header.state_len).unwrap_or(usize::MAX);
    let image_len = usize::try_from(header.image_len).unwrap_or(usize::MAX);
    let parts = rest
        .split_at_checked(state_len)
        .and_then(|(state, rest)| Some((state, rest.get(..image_len)?)));
    let (state, image) = parts.ok_or(Unusable::Corrupt { part: "header" })?;
    // What serde says would quote the file.
    let state = serde_json::from_slice(state)
        .map_err(|_| Unusable::Malformed("its description has another form"))?;
    let image = Image::parse(image.to_vec()).map_err(Unusable::Image)?;
    let (crc, pages) =
        read_memory(&mut file, header.memory_at, header.memory_len).map_err(Unusable::Io)?;
    if crc != header.memory_crc {
        return Err(Unusable::Corrupt { part: "memory" });
    }
    Ok(Opened {
        file,
        state,
        image,
        memory_at: header.memory_at,
        memory_len: header.memory_len,
        pages,
    })
}

/// Reads what is before the memory. No more is allocated than the file has bytes.
fn read_head(file: &File, len: u64) -> Result<(Header, Vec<u8>), Unusable> {
    let mut bytes = [0; size_of::<Header>()];
    let there = usize::try_from(len.min(HEADER_LEN)).unwrap_or(0);
    let room = bytes.get_mut(..there).unwrap_or_default();
    file.read_exact_at(room, 0).map_err(Unusable::Io)?;
    if !room.iter().zip(&MAGIC).all(|(a, b)| a == b) {
        return Err(Unusable::NotSnapshot);
    }
    if len < HEADER_LEN {
        let expected = HEADER_LEN;
        return Err(Unusable::Length { len, expected });
    }
    let mut header = Header::read_from_bytes(&bytes).map_err(|_| Unusable::NotSnapshot)?;
    if header.version != VERSION {
        let found = header.version;
        return Err(Unusable::Version { found });
    }
    let corrupt = Unusable::Corrupt { part: "header" };
    let is_bounded = u64::from(header.state_len) <= STATE_MAX
        && header.image_len <= IMAGE_BYTES_MAX
        && header.memory_len <= MEMORY_MAX.saturating_mul(2)
        && header.memory_len.is_multiple_of(PAGE);
    let places = memory_at(header.state_len, header.image_len);
    if !is_bounded || places != Some(header.memory_at) {
        return Err(corrupt);
    }
    let expected = header.memory_at.saturating_add(header.memory_len);
    if len != expected {
        return Err(Unusable::Length { len, expected });
    }
    let Ok(head_len) = usize::try_from(header.memory_at) else {
        return Err(corrupt);
    };
    let mut head = vec![0; head_len];
    file.read_exact_at(&mut head, 0).map_err(Unusable::Io)?;
    let said = std::mem::take(&mut header.head_crc);
    let mut crc = Hasher::new();
    crc.update(header.as_bytes());
    crc.update(head.get(size_of::<Header>()..).unwrap_or_default());
    if crc.finalize() != said {
        return Err(corrupt);
    }
    Ok((header, head))
}

/// The checksum of a file's memory, and the pages that are no holes.
fn read_memory(file: &mut File, memory_at: u64, len: u64) -> io::Result<(u32, Vec<Range<u64>>)> {
    let end = memory_at.saturating_add(len);
    let mut crc = Hasher::new();
    let mut chunk = vec![0; usize::try_from(CHUNK).unwrap_or(PAGE_LEN)];
    let mut pages = Vec::new();
    let page = |at: u64| at.saturating_sub(memory_at).checked_div(PAGE).unwrap_or(0);
    let mut at = memory_at;
    while at < end {
        // Whole pages, wherever the file system's blocks begin.
        let Some(data) = file.seek_data(at)?.filter(|data| *data < end) else {
            break;
        };
        let skipped = data.saturating_sub(at);
        at = at.saturating_add(skipped.saturating_sub(skipped.checked_rem(PAGE).unwrap_or(0)));
        let hole = file.seek_hole(data)?.unwrap_or(end).min(end);
        pages.push(page(at)..page(hole.saturating_add(PAGE).saturating_sub(1)));
        while at < hole {
            let here = usize::try_from(end.saturating_sub(at).min(CHUNK)).unwrap_or(0);
            let room = chunk.get_mut(..here).unwrap_or_default();
            file.read_exact_at(room, at)?;
            let mut number = page(at);
            for page in room.chunks(PAGE_LEN) {
                if page != ZEROES {
                    add_page(&mut crc, number, page);
                }
                number = number.saturating_add(1);
            }
            at = at.saturating_add(u64_of(here));
        }
    }
    Ok((crc.finalize(), pages))
}

fn add_page(crc: &mut Hasher, number: u64, page: &[u8]) {
    crc.update(&number.to_le_bytes());
    crc.update(page);
}

/// Where the memory begins behind so much.
fn memory_at(state_len: u32, image_len: u64) -> Option<u64> {
    HEADER_LEN
        .checked_add(state_len.into())?
        .checked_add(image_len)?
        .checked_next_multiple_of(PAGE)
}
