//! Tells each client on port 7 where it comes from, in a line.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;

use embedded_io_async::{Read, Write};
use wharf::stream::{Error, Shutdown, TcpListener, TcpStream};
use wharf::task;

#[wharf::main(stream = ["net"])]
async fn main() -> Result<(), Error> {
    let listener = TcpListener::bind(7)?;
    loop {
        let stream = listener.accept().await?;
        task::spawn(async {
            // A client that breaks off is nobody's loss.
            let _ = tell(stream).await;
        });
    }
}

async fn tell(mut stream: TcpStream) -> Result<(), Error> {
    let line = format!("{}\n", stream.peer());
    stream.write_all(line.as_bytes()).await?;
    stream.shutdown(Shutdown::Write);
    // What it says is none of our business, but to hang up on it would look like a fault.
    let mut rest = [0; 64];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}
