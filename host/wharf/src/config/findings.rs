//! Collects what is wrong while a file is read.

use std::path::Path;

use super::{ConfigError, Problem};

/// Most problems that are told. Who has more has one mistake many times, and a
/// file made to be wrong everywhere shall not take long to refuse.
const PROBLEMS_MAX: usize = 100;

/// Most characters of a value that a message repeats.
const QUOTE_MAX: usize = 60;

/// What was found in one file so far.
pub(super) struct Findings<'a> {
    file: &'a Path,
    text: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
    wrong: Vec<(usize, String)>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(text: &'a str, file: &'a Path) -> Self {
        let ends = text.match_indices('\n');
        let begins = ends.map(|(at, _)| at.saturating_add(1));
        Self {
            file,
            text,
            lines: std::iter::once(0).chain(begins).collect(),
            wrong: Vec::new(),
        }
    }

    /// What relative paths are relative to.
    pub(super) fn directory(&self) -> &'a Path {
        self.file.parent().unwrap_or(Path::new(""))
    }

    /// Something is wrong at a byte of the text.
    pub(super) fn add(&mut self, at: usize, message: impl Into<String>) {
        self.wrong.push((at, message.into()));
    }

    /// The text is no TOML.
    pub(super) fn add_syntax(&mut self, error: &toml::de::Error) {
        let span = error.span().unwrap_or(0..0);
        let at = span.start;
        let there = self.text.get(span).unwrap_or_default();
        // The parser does not say what to write; for what goes wrong most, we do.
        let message = match error.message() {
            "duplicate key" => format!("{} is there twice: keep one", quote(there)),
            message if message.contains("recurs") => {
                "this is nested too deep: put tables into fewer others".to_owned()
            }
            message if !message.starts_with("string values must be quoted") => message.to_owned(),
            _ if there.is_empty() => "there is no value: write one, text in quotes".to_owned(),
            _ => format!(
                "{} is no value: put text in quotes, as in {}",
                shorten(there),
                quote(there)
            ),
        };
        self.add(at, message);
    }

    /// The line, from 1, of a byte of the text.
    pub(super) fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|&begin| begin <= at)
    }

    /// Whether nothing is wrong.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        if self.wrong.is_empty() {
            Ok(())
        } else {
            Err(self.into_error())
        }
    }

    /// What is wrong. Asked without need, it says so.
    pub(super) fn into_error(mut self) -> ConfigError {
        if self.wrong.is_empty() {
            self.add(0, "nothing is wrong here");
        }
        let wrong = std::mem::take(&mut self.wrong);
        let mut problems = self.problems(wrong).into_iter();
        let first = problems
            .next()
            .unwrap_or_else(|| self.problem(0, String::new()));
        ConfigError::Invalid {
            first,
            more: problems.collect(),
        }
    }

    fn problems(&self, mut found: Vec<(usize, String)>) -> Vec<Problem> {
        found.sort_by_key(|&(at, _)| at);
        found.truncate(PROBLEMS_MAX);
        let found = found.into_iter();
        found
            .map(|(at, message)| self.problem(at, message))
            .collect()
    }

    fn problem(&self, at: usize, message: String) -> Problem {
        let line = self.line(at);
        let begin = self.lines.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let before = self.text.get(begin..at).unwrap_or_default();
        // A byte order mark is no character to anyone who looks for the column.
        let column = before.chars().filter(|&it| it != '\u{feff}').count();
        Problem {
            file: self.file.to_owned(),
            line,
            column: column.saturating_add(1),
            message,
        }
    }
}

/// Text as a message repeats it: in quotes, in one line and not too long.
pub(super) fn quote(text: &str) -> String {
    format!("{:?}", shorten(text))
}

/// As much of a text as a message repeats.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(QUOTE_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
