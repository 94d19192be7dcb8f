//! Serves a greeting on port 80: `--greeting TEXT`.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::{boxed::Box, vec};

use picoserve::time::Duration;
use picoserve::{Config, Router, Server, Timeouts, routing::get};
use wharf::stream::{Error, TcpListener, picoserve::Timer};
use wharf::task;

const TIMEOUTS: Timeouts = Timeouts {
    start_read_request: Duration::from_secs(30),
    persistent_start_read_request: Duration::from_secs(60),
    read_request: Duration::from_secs(30),
    write: Duration::from_secs(30),
};
static CONFIG: Config = Config::new(TIMEOUTS).keep_connection_alive();

#[wharf::main(stream = ["net"])]
async fn main() -> Result<(), Error> {
    let greeting = wharf::args().skip_while(|&it| it != "--greeting").nth(1);
    let greeting = greeting.unwrap_or("Hello from wharf!");
    let router = Router::new().route("/", get(move || async move { greeting }));
    let router = &*Box::leak(Box::new(router));
    let listener = TcpListener::bind(80)?;
    loop {
        let stream = listener.accept().await?;
        task::spawn(async move {
            let mut buffer = vec![0; 2048];
            let server = Server::custom(router, Timer, &CONFIG, &mut buffer);
            // A client that breaks off is nobody's loss.
            let _ = server.serve(stream).await;
        });
    }
}
