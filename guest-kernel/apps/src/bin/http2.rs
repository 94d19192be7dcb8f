//! Serves another greeting on port 80 than `http`: its next version.
#![no_std]
#![no_main]

use picoserve::{Router, routing::get};
use wharf::stream::{self, Error, TcpListener};

#[wharf::main(stream = ["net"])]
async fn main() -> Result<(), Error> {
    let router = Router::new().route("/", get(|| async { "Hello from wharf, again!" }));
    stream::picoserve::serve(TcpListener::bind(80)?, router).await
}
