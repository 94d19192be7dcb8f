//! The configuration of a cell: the file that `wharf up` reads, `wharf.toml`.
//!
//! A file is read in three steps: `toml` makes a tree with positions of it,
//! `section` and `field` read one table and one value of that tree, and `task`,
//! `block`, `net`, `log`, `publish` and `policy` know which values there are. What tasks
//! may not have in common is in `claims`.
//!
//! A mistake does not end the reading: whoever corrects a file wants to hear of
//! everything at once. Each problem names file, line, column and the way out.

mod block;
mod claims;
mod field;
mod findings;
mod log;
mod net;
mod policy;
mod problem;
pub(crate) mod publish;
mod section;
mod task;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

pub use crate::net::{NetDevice, Publish};
pub use policy::{Policies, Policy};
pub use problem::{ConfigError, Problem};
pub use task::Task;

use claims::Claims;
use field::Field;
use findings::Findings;
use section::{Key, Section};

/// Most bytes of a file. A thousand times what a cell's tasks need, and little
/// enough that naming a disk image by mistake is answered at once.
const FILE_MAX: u64 = 1 << 20;

/// Most workers; more cores than that are in no machine this runs on.
const WORKERS_MAX: u32 = 256;

const HOST: Key = Key::new("host", "[host]");
const POLICY: Key = Key::new("policy", "[policy.scheduler]");
const TASK: Key = Key::new("task", "[[task]]");
const WORKERS: Key = Key::new("workers", "workers = 2");
const SOCKET: Key = Key::new("socket", "socket = \"wharf.sock\"");

/// What a file says, with every default filled in and every path relative to
/// the file's directory resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[host]`.
    pub host: Host,
    /// `[policy.*]`.
    pub policies: Policies,
    /// `[[task]]`, in the order of the file; at least one.
    pub tasks: Vec<Task>,
}

/// What concerns the cell as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Worker threads, 1 to 256; one per core when there is none.
    pub workers: Option<u32>,
    /// Where the cell listens for the other commands.
    pub socket: Option<PathBuf>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// When it cannot be read or says what makes no sense.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable {
            file: path.to_owned(),
            source,
        };
        let mut bytes = Vec::new();
        File::open(path)
            .map_err(unreadable)?
            .take(FILE_MAX.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Self::parse(text, path),
            // Bytes that are no text are first of all too many.
            Err(_) if exceeds_max(bytes.len()) => Err(too_large(path)),
            Err(error) => {
                let end = error.valid_up_to();
                let valid = bytes.get(..end).and_then(|it| std::str::from_utf8(it).ok());
                let mut found = Findings::new(valid.unwrap_or_default(), path);
                found.add(end, "this is not UTF-8: save the file in that encoding");
                Err(found.into_error())
            }
        }
    }

    /// Reads the text of the file `path`, which need not exist.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        if exceeds_max(text.len()) {
            return Err(too_large(path));
        }
        let mut found = Findings::new(text, path);
        let document = match DeTable::parse(text) {
            Ok(document) => document,
            Err(error) => {
                found.add_syntax(&error);
                return Err(found.into_error());
            }
        };
        let keys = &[HOST, POLICY, TASK];
        let root = Section::new(document.get_ref(), 0, "the file", keys, &mut found);
        let host = root.get(HOST).map(|host| Host::read(host, &mut found));
        let policies = root.get(POLICY).map(|it| Policies::read(it, &mut found));
        let tasks = read_tasks(root, &mut found);
        found.finish()?;
        Ok(Self {
            host: host.unwrap_or_default(),
            policies: policies.unwrap_or_default(),
            tasks,
        })
    }
}

impl Host {
    fn read(field: Field<'_>, found: &mut Findings<'_>) -> Self {
        let Some(section) = field.section("[host]", &[WORKERS, SOCKET], found) else {
            return Self::default();
        };
        let workers = section.get(WORKERS);
        let socket = section.get(SOCKET);
        Self {
            workers: workers.and_then(|it| it.number(1..=WORKERS_MAX, found)),
            socket: socket.and_then(|it| it.path(found)),
        }
    }
}

fn read_tasks(root: Section<'_>, found: &mut Findings<'_>) -> Vec<Task> {
    let Some(field) = root.get(TASK) else {
        found.add(0, "there is no task: add [[task]] with a name and an image");
        return Vec::new();
    };
    let Some(items) = field.items(found) else {
        return Vec::new();
    };
    if items.is_empty() {
        field.wrong("is empty: add [[task]] with a name and an image", found);
    }
    let mut claims = Claims::default();
    let tasks = items
        .into_iter()
        .filter_map(|item| Task::read(item, &mut claims, found))
        .collect();
    claims.finish(found);
    tasks
}

fn exceeds_max(len: usize) -> bool {
    u64::try_from(len).is_ok_and(|len| len > FILE_MAX)
}

fn too_large(path: &Path) -> ConfigError {
    let mut found = Findings::new("", path);
    found.add(
        0,
        "the file is larger than 1 MiB: name a configuration, or make several of this",
    );
    found.into_error()
}

#[cfg(test)]
mod tests;
