//! Embeds the sources of the guest runtime, which `wharf new guest` writes out:
//! an installed binary must work where no checkout of them is.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The crates that a guest links, as directories of `guest-kernel/`.
const CRATES: [&str; 3] = ["abi", "macros", "rt"];

fn main() -> io::Result<()> {
    let variable = |name| env::var_os(name).ok_or(io::ErrorKind::NotFound);
    let guest_kernel = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("../../guest-kernel");
    let guest_kernel = guest_kernel.canonicalize()?;
    let mut files = Vec::new();
    for name in CRATES {
        let package = guest_kernel.join(name);
        files.push(package.join("Cargo.toml"));
        // A directory, so that a new file in it is noticed too.
        println!("cargo::rerun-if-changed={}", package.join("src").display());
        find(&package.join("src"), &mut files)?;
    }
    files.sort();

    let mut list = String::from("&[\n");
    for file in &files {
        println!("cargo::rerun-if-changed={}", file.display());
        let name = file.strip_prefix(&guest_kernel).map_err(io::Error::other)?;
        let _ = writeln!(list, "    ({name:?}, include_str!({file:?})),");
    }
    list.push_str("]\n");
    fs::write(Path::new(&variable("OUT_DIR")?).join("runtime.rs"), list)
}

/// Adds every Rust file under `directory`.
fn find(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
