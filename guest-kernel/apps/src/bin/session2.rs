//! Keeps values in memory, for clients of HTTP: the second version, which also counts
//! how often each was written. `--fault` has it fault as it starts, `--mute` has it
//! never serve.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;
use core::future::pending;

use wharf::stream::Error;

#[path = "../session.rs"]
mod session;

use session::{Entries, Format, read_number, read_text, write_text};

/// Key, value and count of each entry.
struct Second;

impl Format for Second {
    const VERSION: &'static str = "2";

    fn write(entries: &Entries, state: &mut Vec<u8>) {
        for (key, (value, count)) in entries {
            write_text(key, state);
            write_text(value, state);
            state.extend(count.to_le_bytes());
        }
    }

    fn read(mut state: &[u8]) -> Option<Entries> {
        let mut entries = Entries::new();
        while !state.is_empty() {
            let (key, value) = (read_text(&mut state)?, read_text(&mut state)?);
            entries.insert(key, (value, read_number(&mut state)?));
        }
        Some(entries)
    }
}

#[wharf::main(stream = ["net"], state = 2)]
async fn main() -> Result<(), Error> {
    match wharf::args().next() {
        Some("--fault") => panic!("it was told to"),
        Some("--mute") => pending().await,
        _ => session::serve::<Second>().await,
    }
}
