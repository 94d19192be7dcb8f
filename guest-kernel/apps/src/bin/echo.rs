//! Sends back what it receives on port 7, to any number of clients.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec;

use embedded_io_async::{Read, Write};
use wharf::stream::{Error, TcpListener, TcpStream};
use wharf::{println, task};

#[wharf::main(stream = ["net"])]
async fn main() -> Result<(), Error> {
    let listener = TcpListener::bind(7)?;
    println!("listening on port {}", listener.port());
    loop {
        let stream = listener.accept().await?;
        task::spawn(async {
            // A client that breaks off is nobody's loss.
            let _ = echo(stream).await;
        });
    }
}

/// Returns when the client has sent all, and drops the stream: then it gets the end.
async fn echo(mut stream: TcpStream) -> Result<(), Error> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count]).await?,
        }
    }
}
