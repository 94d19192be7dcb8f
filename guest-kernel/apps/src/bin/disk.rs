//! Counts its own runs on its disk `data`, and checks that the disk keeps bytes.
#![no_std]
#![no_main]

use wharf::block::{self, Error, SECTOR};
use wharf::println;

#[wharf::main(block = ["data"])]
async fn main() -> Result<(), Error> {
    let disk = block::open("data")?;
    println!("{} bytes", disk.len());

    let mut sector = [0; SECTOR as usize];
    disk.read(0, &mut sector).await?;
    let runs = u64::from(sector[0]) + 1;
    println!("run {runs}");
    if disk.is_read_only() {
        return Ok(());
    }

    sector.fill(runs as u8);
    disk.write(0, &sector).await?;
    disk.write(disk.len() - SECTOR, &sector).await?;
    disk.flush().await?;

    let mut last = [0; SECTOR as usize];
    disk.read(disk.len() - SECTOR, &mut last).await?;
    assert_eq!(last, sector);
    println!("flushed");
    Ok(())
}
