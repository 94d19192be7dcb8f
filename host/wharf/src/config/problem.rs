//! What is wrong with a file.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::text::{printable, shown};

/// One thing that is wrong in a file, where, and what to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong and what to write instead, in one line.
    pub message: String,
}

/// A file that is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Its text is not to be had.
    #[error("cannot read {}", file.display())]
    Unreadable {
        /// The file, as it was named.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its text is wrong, in one or several places.
    #[error("{first}{}", AndMore(more.len()))]
    Invalid {
        /// What comes first in the file.
        first: Problem,
        /// The rest, in the order of the file.
        more: Vec<Problem>,
    },
}

impl ConfigError {
    /// Every problem, in the order of the file; none when it could not be read.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let (first, more) = match self {
            Self::Unreadable { .. } => (None, [].as_slice()),
            Self::Invalid { first, more } => (Some(first), more.as_slice()),
        };
        first.into_iter().chain(more)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            column,
            message,
        } = self;
        // Neither the file's name nor what stands in it commands a terminal.
        let file = shown(file);
        let message = printable(message);
        write!(f, "{file}:{line}:{column}: {message}")
    }
}

/// Where to find the problems that do not fit into one line.
struct AndMore(usize);

impl fmt::Display for AndMore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " (and {count} more: see wharf up --check)"),
        }
    }
}
