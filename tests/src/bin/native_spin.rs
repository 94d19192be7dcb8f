//! The `spin` unikernel's loop as an ordinary process, to be compared with.

#[path = "../../../guest-kernel/apps/src/spin_loop.rs"]
mod spin_loop;

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let Some(steps) = std::env::args().nth(1).and_then(|steps| steps.parse().ok()) else {
        eprintln!("usage: native_spin STEPS");
        return ExitCode::from(2);
    };
    let start = Instant::now();
    let checksum = spin_loop::spin(steps);
    let elapsed = start.elapsed().as_nanos();
    println!("steps {steps} checksum {checksum:016x} elapsed_ns {elapsed}");
    ExitCode::SUCCESS
}
