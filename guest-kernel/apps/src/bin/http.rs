//! Serves a greeting on port 80: `--greeting TEXT`.
#![no_std]
#![no_main]

use picoserve::{Router, routing::get};
use wharf::stream::{self, Error, TcpListener};

#[wharf::main(stream = ["net"])]
async fn main() -> Result<(), Error> {
    let greeting = wharf::args().skip_while(|&it| it != "--greeting").nth(1);
    let greeting = greeting.unwrap_or("Hello from wharf!");
    let router = Router::new().route("/", get(move || async move { greeting }));
    stream::picoserve::serve(TcpListener::bind(80)?, router).await
}
