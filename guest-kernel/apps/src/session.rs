//! Values under keys in memory, for clients of HTTP on port 80, that outlive the version
//! which keeps them: each hands them over to the next.
//!
//! `PUT`, `GET` and `DELETE` of `/k/KEY`, `GET /k` for all keys, `GET /version`, and
//! `GET /token` for a random number.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;

use picoserve::Router;
use picoserve::response::StatusCode;
use picoserve::routing::{get, parse_path_segment};
use wharf::stream::{self, Error, TcpListener};
use wharf::{random, upgrade};

/// Bytes of all keys and values together, at most.
const ROOM: usize = 512 << 10;

/// What is kept: of each key its value, and how often it was written.
pub type Entries = BTreeMap<String, (String, u32)>;

/// How a version writes its state down.
pub trait Format {
    /// What it answers to `GET /version`.
    const VERSION: &'static str;

    /// Writes the state down.
    fn write(entries: &Entries, state: &mut Vec<u8>);

    /// Reads it; `None` when that is none.
    fn read(state: &[u8]) -> Option<Entries>;
}

/// Serves for ever.
pub async fn serve<F: Format>() -> Result<(), Error> {
    let inherited = upgrade::inherited().map(F::read);
    let Some(entries) = inherited.unwrap_or_else(|| Some(Entries::new())) else {
        panic!("the state is none of this version's");
    };
    let entries = Rc::new(RefCell::new(entries));
    let kept = Rc::clone(&entries);
    upgrade::on_upgrade(move |state| F::write(&kept.borrow(), state));

    let entries: &'static RefCell<Entries> = &*Box::leak(Box::new(entries));
    let key = ("/k", parse_path_segment::<String>());
    let one = get(move |key: String| async move {
        match entries.borrow().get(&key) {
            Some((value, _)) => (StatusCode::OK, value.clone()),
            None => (StatusCode::NOT_FOUND, String::from("no such key\n")),
        }
    })
    .put(move |key: String, value: String| async move { put(entries, key, value) })
    .delete(move |key: String| async move {
        match entries.borrow_mut().remove(&key) {
            Some(_) => (StatusCode::OK, ""),
            None => (StatusCode::NOT_FOUND, "no such key\n"),
        }
    });
    let all = get(move || async move {
        let keys = entries.borrow();
        keys.keys()
            .map(|key| format!("{key}\n"))
            .collect::<String>()
    });
    let version = get(|| async { F::VERSION });
    let token = get(|| async {
        let mut bytes = [0; 8];
        random::fill(&mut bytes);
        format!("{:016x}", u64::from_le_bytes(bytes))
    });
    let router = Router::new()
        .route(key, one)
        .route("/k", all)
        .route("/version", version)
        .route("/token", token);

    stream::picoserve::serve(TcpListener::bind(80)?, router).await
}

fn put(entries: &RefCell<Entries>, key: String, value: String) -> (StatusCode, &'static str) {
    let mut entries = entries.borrow_mut();
    let used: usize = entries
        .iter()
        .map(|(key, (value, _))| key.len() + value.len())
        .sum();
    if used + key.len() + value.len() > ROOM {
        return (StatusCode::INSUFFICIENT_STORAGE, "no room\n");
    }
    let entry = entries.entry(key).or_default();
    *entry = (value, entry.1.saturating_add(1));
    (StatusCode::OK, "")
}

/// Writes text with its length before it.
pub fn write_text(text: &str, state: &mut Vec<u8>) {
    // `ROOM` is less than a `u32` counts.
    state.extend((text.len() as u32).to_le_bytes());
    state.extend(text.as_bytes());
}

/// Reads that.
pub fn read_text(state: &mut &[u8]) -> Option<String> {
    let len = read_number(state)?;
    let (text, rest) = state.split_at_checked(len as usize)?;
    *state = rest;
    String::from_utf8(text.into()).ok()
}

/// Reads a number.
pub fn read_number(state: &mut &[u8]) -> Option<u32> {
    let (number, rest) = state.split_first_chunk()?;
    *state = rest;
    Some(u32::from_le_bytes(*number))
}
