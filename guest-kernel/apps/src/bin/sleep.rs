//! Sleeps in several tasks at once and says how late each woke.
//!
//! Arguments: milliseconds (100), rounds (3), tasks (4). Task *n* of them sleeps
//! *n* times as long as the first.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::rc::Rc;
use core::cell::Cell;

use wharf::timer::{Duration, Instant, Timer};
use wharf::{ExitCode, println, task};

#[wharf::main]
async fn main() -> ExitCode {
    let mut numbers = wharf::args().map(str::parse::<u32>);
    let mut number = |default| numbers.next().unwrap_or(Ok(default));
    let (Ok(ms), Ok(rounds), Ok(tasks)) = (number(100), number(3), number(4)) else {
        println!("usage: sleep [MILLISECONDS [ROUNDS [TASKS]]]");
        return ExitCode::FAILURE;
    };

    let running = Rc::new(Cell::new(tasks));
    let nap = |name: u32| {
        let running = running.clone();
        let pause = Duration::from_millis(u64::from(ms) * u64::from(name));
        async move {
            for round in 1..=rounds {
                sleep(name, round, pause).await;
            }
            running.set(running.get() - 1);
        }
    };
    for name in 1..tasks {
        task::spawn(nap(name));
    }
    // The last sleeps longest, so it need not be looked for from outside.
    nap(tasks).await;
    while running.get() > 0 {
        Timer::after_millis(1).await;
    }
    println!("all awake");
    ExitCode::SUCCESS
}

async fn sleep(task: u32, round: u32, pause: Duration) {
    let due = Instant::now() + pause;
    Timer::at(due).await;
    let late_us = (Instant::now() - due).as_micros();
    println!(
        "task {task} round {round} slept_us {} late_us {late_us}",
        pause.as_micros()
    );
}
