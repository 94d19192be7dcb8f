//! Keeps values in memory, for clients of HTTP: the first version.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;

use wharf::stream::Error;

#[path = "../session.rs"]
mod session;

use session::{Entries, Format, read_text, write_text};

/// Key and value of each entry.
struct First;

impl Format for First {
    const VERSION: &'static str = "1";

    fn write(entries: &Entries, state: &mut Vec<u8>) {
        for (key, (value, _)) in entries {
            write_text(key, state);
            write_text(value, state);
        }
    }

    fn read(mut state: &[u8]) -> Option<Entries> {
        let mut entries = Entries::new();
        while !state.is_empty() {
            let (key, value) = (read_text(&mut state)?, read_text(&mut state)?);
            entries.insert(key, (value, 0));
        }
        Some(entries)
    }
}

#[wharf::main(stream = ["net"], state = 1)]
async fn main() -> Result<(), Error> {
    session::serve::<First>().await
}
