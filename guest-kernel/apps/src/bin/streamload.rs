//! Uses streams in the way that its first argument names; tests and benchmarks want it.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec;
use core::future::pending;

use embedded_io_async::{Read, Write};
use wharf::stream::{Error, TcpListener, TcpStream};
use wharf::timer::Timer;
use wharf::{ExitCode, println, task};

/// Where data is thrown away, and where it comes from, as once everywhere.
const DISCARD: u16 = 9;
const CHARGEN: u16 = 19;

#[wharf::main(stream = ["net"])]
async fn main() -> Result<ExitCode, Error> {
    match wharf::args().next().unwrap_or_default() {
        "discard" => serve(DISCARD, async |stream| discard(stream).await).await,
        "chargen" => serve(CHARGEN, async |stream| chargen(stream).await).await,
        "stall" => serve(DISCARD, async |_stream| pending().await).await,
        "slow" => serve(DISCARD, async |stream| slow(stream).await).await,
        "reset" => {
            serve(DISCARD, async |stream| {
                stream.abort();
                Ok(())
            })
            .await
        }
        "none" => {
            println!("not listening");
            pending().await
        }
        _ => {
            println!("usage: streamload discard|chargen|stall|slow|reset|none");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Has a task do something with each connection.
async fn serve(
    port: u16,
    with: impl AsyncFn(TcpStream) -> Result<(), Error> + Copy + 'static,
) -> Result<ExitCode, Error> {
    let listener = TcpListener::bind(port)?;
    println!("listening on port {port}");
    loop {
        let stream = listener.accept().await?;
        task::spawn(async move {
            // A client that breaks off is nobody's loss.
            let _ = with(stream).await;
        });
    }
}

/// Reads and throws away.
async fn discard(mut stream: TcpStream) -> Result<(), Error> {
    let mut buffer = vec![0; 64 << 10];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// Writes as fast as it can: the letters, over and over.
async fn chargen(mut stream: TcpStream) -> Result<(), Error> {
    let letters = (b'a'..=b'z').cycle();
    let buffer: vec::Vec<u8> = letters.take(26 << 10).collect();
    loop {
        stream.write_all(&buffer).await?;
    }
}

/// Reads a little now and then.
async fn slow(mut stream: TcpStream) -> Result<(), Error> {
    let mut buffer = [0; 1024];
    while stream.read(&mut buffer).await? > 0 {
        Timer::after_millis(10).await;
    }
    Ok(())
}
