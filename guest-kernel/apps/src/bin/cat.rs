//! Prints what it reads: `echo hello | wharf run guest-kernel/apps#cat`.
#![no_std]
#![no_main]

use embedded_io_async::Read;
use wharf::console;

#[wharf::main(console = ["stdin"])]
async fn main() -> Result<(), wharf::device::OpenError> {
    let mut input = wharf::input::open("stdin")?;
    let mut buffer = [0; 4096];
    loop {
        let Ok(count) = input.read(&mut buffer).await;
        if count == 0 {
            return Ok(());
        }
        console::write(&buffer[..count]);
    }
}
