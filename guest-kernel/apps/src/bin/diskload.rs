//! Works on its disk `data` in the way that its first argument names; tests and
//! benchmarks want it.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::rc::Rc;
use alloc::vec;
use core::cell::Cell;
use core::future::pending;

use wharf::block::{self, BlockDevice, Error, REQUEST_MAX, SECTOR};
use wharf::timer::Timer;
use wharf::{ExitCode, println, task, time};

#[wharf::main(block = ["data"])]
async fn main() -> Result<ExitCode, Error> {
    let disk = block::open("data")?;
    let mut args = wharf::args();
    let way = args.next().unwrap_or_default();
    let mut number = |default| {
        args.next()
            .map_or(default, |it| it.parse().unwrap_or(default))
    };
    match way {
        "verify" => verify(disk).await?,
        "write" => match disk.write(0, &[1; SECTOR as usize]).await {
            Ok(()) => println!("written"),
            Err(error) => println!("{error}"),
        },
        "count" => count(disk).await?,
        "poll" => poll(disk).await?,
        "hold" => {
            println!("held");
            Timer::after_secs(3600).await;
        }
        "sequential" => sequential(disk, number(4), number(1)).await,
        "random" => random(disk, number(32), number(10_000)).await,
        _ => {
            println!("usage: diskload verify|write|count|poll|hold");
            println!("       diskload sequential [DEPTH [PASSES]]");
            println!("       diskload random [DEPTH [READS]]");
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes pieces of many sizes over the whole disk, and reads them in others.
async fn verify(disk: BlockDevice) -> Result<(), Error> {
    let byte = |at: u64| (at / 7 % 251) as u8;
    let mut at = 0;
    while at < disk.len() {
        let len = (1 + at / SECTOR % 23) * SECTOR;
        let len = len.min(disk.len() - at) as usize;
        let piece: vec::Vec<u8> = (at..).map(byte).take(len).collect();
        disk.write(at, &piece).await?;
        at += len as u64;
    }
    disk.flush().await?;
    let mut buffer = vec![0; REQUEST_MAX + 3 * SECTOR as usize];
    at = 0;
    while at < disk.len() {
        let len = buffer.len().min((disk.len() - at) as usize);
        disk.read(at, &mut buffer[..len]).await?;
        assert!(
            (at..)
                .map(byte)
                .zip(&buffer[..len])
                .all(|(is, &was)| is == was)
        );
        at += len as u64;
    }
    match disk.discard(0, disk.len()).await {
        Ok(()) | Err(Error::Unsupported) => println!("verified"),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Counts up in the first sector for ever, and says each number once it is flushed.
async fn count(disk: BlockDevice) -> Result<(), Error> {
    let mut sector = [0; SECTOR as usize];
    disk.read(0, &mut sector).await?;
    let mut number = u64::from_le_bytes(*sector.first_chunk().unwrap_or(&[0; 8]));
    loop {
        number += 1;
        sector[..8].copy_from_slice(&number.to_le_bytes());
        disk.write(0, &sector).await?;
        disk.flush().await?;
        println!("{number}");
    }
}

/// Reads the last sector every few milliseconds for as long as that can be done.
async fn poll(disk: BlockDevice) -> Result<(), Error> {
    loop {
        let mut sector = [0; SECTOR as usize];
        disk.read(disk.len() - SECTOR, &mut sector).await?;
        println!("ok");
        Timer::after_millis(20).await;
    }
}

/// Reads the whole disk in pieces of 1 MiB, so many at a time, and says how long that
/// took.
async fn sequential(disk: BlockDevice, depth: u64, passes: u64) {
    let piece = REQUEST_MAX as u64;
    let pieces = disk.len() / piece;
    let next = Rc::new(Cell::new(0));
    let at = move || {
        let piece_number = next.replace(next.get() + 1);
        (piece_number < pieces * passes).then(|| piece_number % pieces * piece)
    };
    load(disk, depth, REQUEST_MAX, at, pieces * passes).await;
}

/// Reads 4 KiB at places all over the disk, so many at a time.
async fn random(disk: BlockDevice, depth: u64, reads: u64) {
    let pages = disk.len() / 4096;
    let state = Rc::new(Cell::new((0x9E37_79B9_7F4A_7C15_u64, 0)));
    let at = move || {
        let (mut number, count) = state.get();
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        state.set((number, count + 1));
        (count < reads).then_some(number % pages * 4096)
    };
    load(disk, depth, 4096, at, reads).await;
}

/// Has `depth` tasks read where `at` says until that says no more.
async fn load(
    disk: BlockDevice,
    depth: u64,
    len: usize,
    at: impl Fn() -> Option<u64> + Clone + 'static,
    requests: u64,
) {
    let running = Rc::new(Cell::new(depth));
    let start = Rc::new(Cell::new(None));
    for _ in 0..depth {
        let (at, running, start) = (at.clone(), running.clone(), start.clone());
        task::spawn(async move {
            // Touched before the clock runs: a page's first touch is an expensive fault.
            let mut buffer = vec![1; len];
            Timer::after_millis(20).await;
            let begun = start.get().unwrap_or_else(time::monotonic);
            start.set(Some(begun));
            while let Some(at) = at() {
                let (read, filled) = disk.read_into(at, buffer).await;
                assert_eq!(read, Ok(()));
                buffer = filled;
            }
            running.set(running.get() - 1);
            if running.get() == 0 {
                let elapsed_ns = (time::monotonic() - begun).as_nanos();
                println!("requests {requests} elapsed_ns {elapsed_ns}");
                wharf::exit(0);
            }
        });
    }
    pending::<()>().await;
}
