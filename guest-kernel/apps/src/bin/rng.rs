//! Prints random bytes of the host's in hexadecimal: `rng [BYTES]`.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec;

use wharf::{ExitCode, print, println};

#[wharf::main(entropy = ["rng"])]
async fn main() -> ExitCode {
    let Some(Ok(count)) = wharf::args().next().or(Some("16")).map(str::parse) else {
        println!("usage: rng [BYTES]");
        return ExitCode::FAILURE;
    };
    let mut bytes = vec![0_u8; count];
    let filled = match wharf::entropy::open("rng") {
        Ok(device) => device.fill(&mut bytes).await.is_ok(),
        Err(_) => false,
    };
    if !filled {
        println!("the host gave no random bytes");
        return ExitCode::FAILURE;
    }
    for byte in bytes {
        print!("{byte:02x}");
    }
    println!();
    ExitCode::SUCCESS
}
