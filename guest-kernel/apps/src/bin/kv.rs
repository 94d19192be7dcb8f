//! Keeps values under keys on its disk `data`, for clients of HTTP on port 80.
//!
//! `PUT`, `GET` and `DELETE` of `/k/KEY`, and `GET /k` for all keys. A change that was
//! answered lasts. Keys have at most 128 bytes and values 32 KiB, of which 16 MiB of
//! the disk are used.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use picoserve::Router;
use picoserve::extract::FromRequest;
use picoserve::io::Read;
use picoserve::request::{RequestBody, RequestParts};
use picoserve::response::{Content, IntoResponse, StatusCode};
use picoserve::routing::{get, parse_path_segment};
use wharf::stream::{self, TcpListener};
use wharf::{ExitCode, block, println};

#[path = "../flash.rs"]
mod flash;
#[path = "../store.rs"]
mod store;

use store::{Failure, Store};

#[wharf::main(block = ["data"], stream = ["net"], stack = "1MiB")]
async fn main() -> ExitCode {
    match serve().await {
        Ok(never) => never,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<ExitCode, Box<dyn core::error::Error>> {
    let disk = block::open("data")?;
    let store = (Store::open(disk).await).map_err(|_| "the disk `data` cannot be used")?;
    let store: &'static Store = Box::leak(Box::new(store));
    let key = ("/k", parse_path_segment::<String>());
    let one = get(move |key| async move { reply(store.get(key).await) })
        .put(move |key, Value(value): Value| async move { reply(store.put(key, value).await) })
        .delete(move |key| async move { reply(store.delete(key).await) });
    let all = get(move || async move { reply(store.list().await) });
    let router = Router::new().route(key, one).route("/k", all);

    let listener = TcpListener::bind(80)?;
    println!("ready");
    stream::picoserve::serve(listener, router).await?;
    Ok(ExitCode::SUCCESS)
}

fn reply(answer: Result<Vec<u8>, Failure>) -> impl IntoResponse {
    match answer {
        Ok(value) => (StatusCode::OK, Bytes(value)),
        Err(failure) => {
            let (status, text) = match failure {
                Failure::NotFound => (StatusCode::NOT_FOUND, "no such key\n"),
                Failure::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, "too long\n"),
                Failure::Full => (StatusCode::INSUFFICIENT_STORAGE, "the disk is full\n"),
                Failure::Disk => (StatusCode::INTERNAL_SERVER_ERROR, "the disk failed\n"),
            };
            (status, Bytes(text.into()))
        }
    }
}

/// Bytes of whatever kind the client has in mind.
struct Bytes(Vec<u8>);

impl Content for Bytes {
    fn content_type(&self) -> &'static str {
        "application/octet-stream"
    }

    fn content_length(&self) -> usize {
        self.0.len()
    }

    async fn write_content<W: picoserve::io::Write>(self, mut writer: W) -> Result<(), W::Error> {
        writer.write_all(&self.0).await
    }
}

/// A body that is no longer than a value may be.
struct Value(Vec<u8>);

impl<'r, State> FromRequest<'r, State> for Value {
    type Rejection = (StatusCode, &'static str);

    async fn from_request<R: Read>(
        state: &'r State,
        parts: RequestParts<'r>,
        body: RequestBody<'r, R>,
    ) -> Result<Self, Self::Rejection> {
        if body.content_length() > ekv::config::MAX_VALUE_SIZE {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, "too long\n"));
        }
        let value = Vec::from_request(state, parts, body).await;
        value
            .map(Self)
            .map_err(|_| (StatusCode::BAD_REQUEST, "no body\n"))
    }
}
