//! What an operator can name.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::BuildError;

/// An artefact or the source of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file, used as it is.
    Artefact(PathBuf),
    /// What has to be built first.
    Package(PackageSource),
}

/// A binary of a Cargo package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageSource {
    /// The package's directory.
    pub directory: PathBuf,
    /// The binary, when the operator named one.
    pub bin: Option<String>,
}

impl Source {
    /// Tells what `named` is: a directory is a package, `DIR#BIN` one binary of
    /// it, and everything else a file. A file or directory with a `#` in its own
    /// name goes first.
    ///
    /// # Errors
    ///
    /// When there is a directory before the `#`, but no name behind it.
    pub fn find(named: &Path) -> Result<Self, BuildError> {
        match fs::metadata(named) {
            Ok(metadata) if metadata.is_dir() => {
                let directory = named.to_owned();
                return Ok(Self::Package(PackageSource {
                    directory,
                    bin: None,
                }));
            }
            Ok(_) => return Ok(Self::Artefact(named.to_owned())),
            Err(_) => {}
        }
        // Whoever opens a file that is not there says so better than we could.
        let artefact = || Ok(Self::Artefact(named.to_owned()));
        let Some((directory, bin)) = split(named) else {
            return artefact();
        };
        if !directory.is_dir() {
            return artefact();
        }
        match bin.to_str() {
            Some(bin) if !bin.is_empty() => Ok(Self::Package(PackageSource {
                directory: directory.to_owned(),
                bin: Some(bin.to_owned()),
            })),
            _ => Err(BuildError::NoBinaryNamed {
                named: named.to_owned(),
            }),
        }
    }
}

/// The parts before and behind the last `#`.
fn split(named: &Path) -> Option<(&Path, &OsStr)> {
    let bytes = named.as_os_str().as_bytes();
    let at = bytes.iter().rposition(|&byte| byte == b'#')?;
    let (directory, rest) = bytes.split_at_checked(at)?;
    let bin = rest.strip_prefix(b"#")?;
    Some((
        Path::new(OsStr::from_bytes(directory)),
        OsStr::from_bytes(bin),
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{PackageSource, Source};

    #[test]
    fn what_exists_decides_what_a_name_means() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir(path("apps")).unwrap();
        fs::create_dir(path("odd#dir")).unwrap();
        fs::write(path("http.elf"), "").unwrap();
        fs::write(path("apps#file"), "").unwrap();

        let package = |directory: &str, bin: Option<&str>| {
            let bin = bin.map(str::to_owned);
            Source::Package(PackageSource {
                directory: path(directory),
                bin,
            })
        };
        for (name, source) in [
            ("http.elf", Source::Artefact(path("http.elf"))),
            ("missing", Source::Artefact(path("missing"))),
            ("missing#bin", Source::Artefact(path("missing#bin"))),
            ("http.elf#bin", Source::Artefact(path("http.elf#bin"))),
            ("apps", package("apps", None)),
            ("apps#http", package("apps", Some("http"))),
            ("apps#file", Source::Artefact(path("apps#file"))),
            ("odd#dir", package("odd#dir", None)),
            ("odd#dir#http", package("odd#dir", Some("http"))),
        ] {
            assert_eq!(Source::find(&path(name)).unwrap(), source, "{name}");
        }
        let refusal = Source::find(&path("apps#")).unwrap_err().to_string();
        assert!(
            refusal.ends_with("apps# names no binary: write DIR#BIN"),
            "{refusal}"
        );
    }
}
