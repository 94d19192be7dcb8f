//! Keeps the processor busy for a fixed number of steps (the argument) and says
//! how long that took.
#![no_std]
#![no_main]

use wharf::{ExitCode, println, time};

#[path = "../spin_loop.rs"]
mod spin_loop;

/// About a second's worth.
const STEPS_DEFAULT: u64 = 500_000_000;

#[wharf::main]
fn main() -> ExitCode {
    let steps = wharf::args().next().map_or(Ok(STEPS_DEFAULT), str::parse);
    let Ok(steps) = steps else {
        println!("usage: spin [STEPS]");
        return ExitCode::FAILURE;
    };
    let start = time::monotonic();
    let checksum = spin_loop::spin(steps);
    let elapsed_ns = (time::monotonic() - start).as_nanos() as u64;
    println!("steps {steps} checksum {checksum:016x} elapsed_ns {elapsed_ns}");
    ExitCode::SUCCESS
}
