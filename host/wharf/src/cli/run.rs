//! `wharf run`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::ValueHint;
use wharf_machine::image::Image;
use wharf_machine::layout::MEMORY_DEFAULT;
use wharf_machine::snapshot::Snapshot;
use wharf_machine::{Args as GuestArgs, BootConfig, Hypervisor};
use wharf_model::Outcome;

use super::output;
use crate::build::{BuildOptions, Progress, Source};
use crate::cell::protocol::is_task_name;
use crate::config::publish;
use crate::device::{Block, BlockMode, DEVICE_NAME_MAX, Medium, is_device_name, is_disk_size};
use crate::net::{NetDevice, Publish, SWITCH, is_tap_name};
use crate::run::{self, Origin, RunConfig};
use crate::units;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wharf run hello.elf                      an image that is built
  wharf run . -- world                     the package here, built when stale
  wharf run guest-kernel/apps#spin         one binary of a package
  wharf run --memory 64MiB --timeout 5s hello.elf
  wharf run --publish 8080:80 guest-kernel/apps#http
  wharf run --block data=disk.img,size=64MiB guest-kernel/apps#disk
  wharf run --from web.snap --publish 8080:80
  wharf run --net lan=tap0 guest-kernel/apps#ping -- 10.0.0.2/24 10.0.0.1 3

Exit status: the guest's own; 139 after a fault, with a report on standard error;
124 after the time limit; 128 + the number of the signal that ended it; 125 when
wharf itself refuses or fails.")]
pub(super) struct Args {
    /// An ELF file, or a guest's source: DIR with a Cargo.toml, or DIR#BIN
    #[arg(value_hint = ValueHint::AnyPath, required_unless_present = "from")]
    image: Option<PathBuf>,

    /// Go on from a snapshot, which has its image, memory and arguments in it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath,
          conflicts_with_all = ["image", "memory", "args"])]
    from: Option<PathBuf>,

    /// Memory of the guest, image included [default: 32MiB]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    memory: Option<u64>,

    /// Attach a block device: NAME=FILE[,ro|,cow][,size=SIZE], or NAME=memory:SIZE
    #[arg(long, value_name = "NAME=FILE", value_parser = parse_block)]
    block: Vec<Block>,

    /// Attach a net device: NAME=IFACE, a tap interface, or NAME=switch
    #[arg(long, value_name = "NAME=IFACE", value_parser = parse_net)]
    net: Vec<NetDevice>,

    /// Publish a port of the guest's: [ADDR:]PORT:GUESTPORT
    #[arg(long, value_name = "PORT:GUESTPORT", value_parser = parse_publish)]
    publish: Vec<Publish>,

    /// End the guest when it has run so long, such as 5s or 250ms
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    timeout: Option<Duration>,

    /// What messages call the task
    #[arg(long, value_parser = parse_name)]
    name: Option<String>,

    /// Say at the end how often and why the guest was left
    #[arg(long)]
    stats: bool,

    /// Arguments of the guest
    #[arg(last = true)]
    pub(super) args: Vec<OsString>,
}

/// Runs the command.
pub(super) fn run(args: Args, progress: Progress) -> anyhow::Result<u8> {
    let guest_args: Vec<String> = args
        .args
        .into_iter()
        .map(text)
        .collect::<anyhow::Result<_>>()?;
    let origin = match (args.from, args.image) {
        (Some(file), _) => {
            let snapshot = Snapshot::open(&Hypervisor::open()?, &file)?;
            Origin::Snapshot(Arc::new(snapshot))
        }
        (None, image) => {
            let options = BuildOptions::new(progress);
            let source = Source::find(&image.unwrap_or_default())?;
            Origin::Image(Arc::new(Image::open(&source.image_path(options)?)?))
        }
    };
    let blocks = args.block.iter().map(|it| it.device.as_str());
    let nets = args.net.iter().map(|it| it.device.as_str());
    for (option, said_twice) in [("--block", twice(blocks)), ("--net", twice(nets))] {
        if let Some(device) = said_twice {
            bail!("{option} says twice what {device} is: say it once");
        }
    }
    let config = RunConfig {
        boot: BootConfig {
            memory: args.memory.unwrap_or(MEMORY_DEFAULT),
            args: GuestArgs::new(guest_args)?,
            generation: 1,
            ..BootConfig::default()
        },
        name: args.name.clone(),
        blocks: args.block,
        nets: args.net,
        publish: args.publish,
        limit: args.timeout,
    };
    let finished = run::run(&origin, &config)?;
    let name = args
        .name
        .unwrap_or_else(|| origin.image().manifest().name.clone());
    let complain = |what: &dyn std::fmt::Display| output::complain(&format!("{name}: {what}"));
    if let Some(report) = finished.report {
        complain(&report);
    }
    if let Outcome::Stopped(stop) = finished.outcome {
        complain(&stop);
    }
    if let Some(lost) = &finished.lost {
        complain(lost);
    }
    if args.stats {
        complain(&finished.stats);
    }
    Ok(finished.outcome.exit_status())
}

/// The first name that is there twice.
fn twice<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut before = BTreeSet::new();
    names.find(|name| !before.insert(*name))
}

/// A guest's arguments are text by contract.
fn text(arg: OsString) -> anyhow::Result<String> {
    match arg.into_string() {
        Ok(arg) => Ok(arg),
        Err(arg) => bail!("argument {arg:?} is not UTF-8, which guests' arguments have to be"),
    }
}

/// Reads `NAME=FILE[,ro|,cow][,size=SIZE]` or `NAME=memory:SIZE`.
fn parse_block(text: &str) -> Result<Block, String> {
    let form = "write NAME=FILE, NAME=FILE,ro, NAME=FILE,cow, or NAME=memory:64MiB";
    let (device, rest) = text.split_once('=').ok_or(form)?;
    let device = parse_device(device)?;
    let size_of = |text: &str| match units::parse_size(text) {
        Ok(size) if is_disk_size(size) => Ok(size),
        Ok(_) => Err(format!("{text:?} is no multiple of 512B")),
        Err(error) => Err(error.to_string()),
    };
    if let Some(size) = rest.strip_prefix("memory:") {
        let medium = Medium::Memory {
            size: size_of(size)?,
        };
        return Ok(Block { device, medium });
    }
    let (mut file, mut size, mut mode) = (rest, None, BlockMode::default());
    while let Some((before, option)) = file.rsplit_once(',') {
        match option.split_once('=') {
            None if option == "ro" => mode = BlockMode::ReadOnly,
            None if option == "cow" => mode = BlockMode::CopyOnWrite,
            None if option == "rw" => mode = BlockMode::ReadWrite,
            Some(("size", text)) => size = Some(size_of(text)?),
            _ => break,
        }
        file = before;
    }
    if file.is_empty() {
        return Err(format!("there is no file: {form}"));
    }
    if let Some((_, option)) = file.rsplit_once(',') {
        return Err(format!(
            "{option:?} is no option (a file whose name has a comma needs a wharf.toml): {form}, \
             each with ,size=64MiB to make it"
        ));
    }
    if file == "memory" {
        return Err(
            "memory needs a size, as in memory:64MiB; a file of that name is ./memory".to_owned(),
        );
    }
    let file = PathBuf::from(file);
    let medium = Medium::File { file, size, mode };
    Ok(Block { device, medium })
}

/// Reads `NAME=IFACE` or `NAME=switch`.
fn parse_net(text: &str) -> Result<NetDevice, String> {
    let form = "write NAME=IFACE, or NAME=switch";
    let (device, wire) = text.split_once('=').ok_or(form)?;
    let tap = match wire {
        SWITCH => None,
        tap if is_tap_name(tap) => Some(tap.to_owned()),
        _ => {
            return Err(format!(
                "{wire:?} is no interface's name, which is 1 to 15 letters, digits and signs but \
                 /, : and %: {form}"
            ));
        }
    };
    let device = parse_device(device)?;
    Ok(NetDevice { device, tap })
}

fn parse_device(name: &str) -> Result<String, String> {
    if is_device_name(name) {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "{name:?} is no name: use 1 to {DEVICE_NAME_MAX} letters, digits, . _ + and -"
        ))
    }
}

fn parse_publish(text: &str) -> Result<Publish, String> {
    publish::parse(text)
        .map_err(|what| format!("{what}: write [ADDR:]PORT:GUESTPORT, such as 8080:80"))
}

fn parse_name(name: &str) -> Result<String, &'static str> {
    if is_task_name(name) {
        Ok(name.to_owned())
    } else {
        Err("use 1 to 63 letters, digits, - and _")
    }
}

#[cfg(test)]
mod tests {
    use wharf_machine::layout::MEMORY_DEFAULT;

    #[test]
    fn the_help_tells_the_default_memory() {
        assert_eq!(crate::units::parse_size("32MiB"), Ok(MEMORY_DEFAULT));
    }
}
