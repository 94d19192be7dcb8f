//! A version of `http` that is no good: each answer takes it a while.
#![no_std]
#![no_main]

use picoserve::{Router, routing::get};
use wharf::stream::{self, Error, TcpListener};
use wharf::timer::Timer;

#[wharf::main(stream = ["net"])]
async fn main() -> Result<(), Error> {
    let router = Router::new().route("/", get(greet));
    stream::picoserve::serve(TcpListener::bind(80)?, router).await
}

async fn greet() -> &'static str {
    Timer::after_millis(250).await;
    "Hello, at last!"
}
