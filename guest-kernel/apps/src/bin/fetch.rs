//! Connects to `ADDRESS:PORT`, sends a line and prints what comes back.
//!
//! Its status says how that went: 0 well, 2 bad usage, 3 there is no device, 4 cut off,
//! 10 and up a refusal, by its number in the contract.
#![no_std]
#![no_main]

use core::net::SocketAddr;

use embedded_io_async::{Read, Write};
use wharf::stream::{Error, Shutdown, TcpStream};
use wharf::{console, println};

#[wharf::main(stream = ["net"])]
async fn main() -> u8 {
    let mut args = wharf::args();
    let address = args.next().map(str::parse);
    let (Some(Ok(address)), Some(line)) = (address, args.next()) else {
        println!("usage: fetch ADDRESS:PORT LINE");
        return 2;
    };
    match fetch(address, line).await {
        Ok(()) => 0,
        Err(error) => {
            println!("{error}");
            match error {
                Error::Open(_) => 3,
                Error::Refused(refusal) => 10 + refusal.raw() as u8,
                _ => 4,
            }
        }
    }
}

async fn fetch(address: SocketAddr, line: &str) -> Result<(), Error> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(line.as_bytes()).await?;
    stream.write_all(b"\n").await?;
    stream.shutdown(Shutdown::Write);
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => console::write(&buffer[..count]),
        };
    }
}
