//! Names that a package, its binary and its image can all have.

use std::fmt;
use std::path::Path;

/// Most characters: what an image's manifest has room for.
const CHARS_MAX: usize = 64;

/// Names that cargo or rustc keeps for itself, or that the runtime has.
const TAKEN: [&str; 17] = [
    "abi",
    "alloc",
    "build",
    "core",
    "deps",
    "examples",
    "incremental",
    "macros",
    "proc_macro",
    "std",
    "test",
    "wharf",
    "wharf-abi",
    "wharf-rt",
    "wharf-rt-macros",
    "wit-bindgen",
    "wit_bindgen",
];

/// Rust's keywords, those reserved for later included.
const KEYWORDS: [&str; 51] = [
    "Self", "abstract", "as", "async", "await", "become", "box", "break", "const", "continue",
    "crate", "do", "dyn", "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if",
    "impl", "in", "let", "loop", "macro", "match", "mod", "move", "mut", "override", "priv", "pub",
    "ref", "return", "self", "static", "struct", "super", "trait", "true", "try", "type", "typeof",
    "unsafe", "unsized", "use", "virtual", "where", "yield",
];

/// A checked package name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageName(String);

/// Why a text is no package name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No last component, such as in `/` or `..`.
    #[error("the path does not end in a name")]
    Missing,
    /// A character that is none of a name's.
    #[error("a name has letters, digits, - and _ only, and starts with a letter")]
    BadCharacter,
    /// Too many characters.
    #[error("a name has at most {CHARS_MAX} characters")]
    TooLong,
    /// Somebody else's.
    #[error("the name {0} is taken by Rust or by what wharf needs: choose another one")]
    Taken(String),
}

impl PackageName {
    /// Takes the last component of a path.
    ///
    /// # Errors
    ///
    /// When it is no name.
    pub fn of(path: &Path) -> Result<Self, NameError> {
        let name = path.file_name().ok_or(NameError::Missing)?;
        let name = name.to_str().ok_or(NameError::BadCharacter)?;
        let is_name_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(is_name_char) {
            return Err(NameError::BadCharacter);
        }
        if name.len() > CHARS_MAX {
            return Err(NameError::TooLong);
        }
        if TAKEN.contains(&name) || KEYWORDS.contains(&name) {
            return Err(NameError::Taken(name.to_owned()));
        }
        Ok(Self(name.to_owned()))
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PackageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{NameError, PackageName};

    #[test]
    fn the_last_component_is_the_name() {
        for (path, name) in [("demo", "demo"), ("/x/my-web_2", "my-web_2"), ("a/b/", "b")] {
            assert_eq!(PackageName::of(Path::new(path)).unwrap().as_str(), name);
        }
    }

    #[test]
    fn what_cargo_would_refuse_is_refused() {
        let taken = |name: &str| NameError::Taken(name.to_owned());
        let long = "a".repeat(65);
        for (path, error) in [
            ("/", NameError::Missing),
            ("x/..", NameError::Missing),
            ("2fast", NameError::BadCharacter),
            ("-v", NameError::BadCharacter),
            ("a b", NameError::BadCharacter),
            ("näme", NameError::BadCharacter),
            ("a.b", NameError::BadCharacter),
            (&long, NameError::TooLong),
            ("x/fn", taken("fn")),
            ("test", taken("test")),
            ("wharf", taken("wharf")),
        ] {
            assert_eq!(PackageName::of(Path::new(path)), Err(error), "{path}");
        }
    }
}
