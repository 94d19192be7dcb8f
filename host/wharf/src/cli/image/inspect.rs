//! `wharf image inspect`.

use std::path::{Path, PathBuf};

use clap::ValueHint;
use serde::Serialize;
use wharf_machine::image::{Contract, Image, Placement};

use crate::build::{BuildOptions, Progress, Source};
use crate::cli::facts::Facts;
use crate::cli::{output, table};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wharf image inspect guest-kernel/apps#hello   a package, built first
  wharf image inspect unikernel.hvt             one of Solo5's
  wharf image inspect --json hello.elf")]
pub(super) struct Args {
    /// An ELF file, or a guest's source: DIR with a Cargo.toml, or DIR#BIN
    #[arg(value_hint = ValueHint::AnyPath)]
    image: PathBuf,

    /// Print an object
    #[arg(long)]
    json: bool,
}

/// What there is to say of an image.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Where it is.
    file: String,
    name: &'a str,
    /// Of an image that says so.
    version: Option<&'a str>,
    /// `wharf` or `solo5-hvt`.
    contract: &'static str,
    contract_version: String,
    /// `fixed` or `relocatable`.
    placement: &'static str,
    /// Address of the first instruction.
    entry: u64,
    entry_symbol: Option<String>,
    /// Least memory that it runs with, as far as it says.
    memory_min_bytes: u64,
    /// Of an image whose stack is the host's to make.
    stack_bytes: Option<u64>,
    segments: Vec<Segment>,
    devices: Vec<Device<'a>>,
    /// Functions and objects that have a name.
    symbols: usize,
}

#[derive(Debug, Serialize)]
struct Segment {
    address: u64,
    memory_bytes: u64,
    file_bytes: u64,
    /// `r`, `rw` or `rx`.
    access: String,
}

#[derive(Debug, Serialize)]
struct Device<'a> {
    kind: &'static str,
    name: &'a str,
}

/// Runs the command.
pub(super) fn run(args: &Args, progress: Progress) -> anyhow::Result<u8> {
    let options = BuildOptions::new(progress);
    let path = Source::find(&args.image)?.image_path(options)?;
    let image = Image::open(&path)?;
    let report = Report::new(&path, &image);
    output::result(args.json, &report, || report.text(Facts::new()))?;
    Ok(0)
}

impl<'a> Report<'a> {
    fn new(path: &Path, image: &'a Image) -> Self {
        let manifest = image.manifest();
        let symbols = image.symbols();
        let (contract, contract_version, version) = match manifest.contract {
            Contract::Wharf(abi) => ("wharf", abi.to_string(), Some(manifest.version.as_str())),
            Contract::Hvt => ("solo5-hvt", "2".to_owned(), None),
        };
        Self {
            file: path.display().to_string(),
            name: &manifest.name,
            version,
            contract,
            contract_version,
            placement: match image.placement() {
                Placement::Fixed => "fixed",
                Placement::Relocatable => "relocatable",
            },
            entry: image.entry(),
            entry_symbol: symbols.lookup(image.entry()).map(|(name, _)| name),
            memory_min_bytes: manifest.memory_min_bytes,
            stack_bytes: (manifest.stack_bytes > 0).then_some(manifest.stack_bytes),
            segments: image
                .segments()
                .iter()
                .map(|segment| Segment {
                    address: segment.addr,
                    memory_bytes: segment.mem_len,
                    file_bytes: segment.file_len,
                    access: segment.access.to_string(),
                })
                .collect(),
            devices: manifest
                .devices
                .iter()
                .map(|device| Device {
                    kind: device.kind.as_str(),
                    name: &device.name,
                })
                .collect(),
            symbols: symbols.len(),
        }
    }

    fn text(&self, mut facts: Facts) -> String {
        facts.row("name", self.name);
        if let Some(version) = self.version {
            facts.row("version", version);
        }
        let contract = format!("{} {}", self.contract, self.contract_version);
        facts.row("contract", &contract);
        facts.row("file", &self.file);
        let at = format!("{:#x}", self.entry);
        match &self.entry_symbol {
            Some(name) => facts.row("entry", &format!("{at}  {name}")),
            None => facts.row("entry", &at),
        }
        facts.row("placement", self.placement);
        if self.memory_min_bytes > 0 {
            let memory = table::size(self.memory_min_bytes);
            facts.row("memory", &format!("{memory} at least"));
        }
        if let Some(stack) = self.stack_bytes {
            facts.row("stack", &table::size(stack));
        }
        let segments = self.segments.iter().map(|it| {
            let (address, bytes, access) = (it.address, it.memory_bytes, &it.access);
            let from_file = it.file_bytes;
            format!("{address:#x}  {access:<2}  {bytes} bytes, {from_file} of them in the file")
        });
        facts.list("segments", segments);
        let devices = self
            .devices
            .iter()
            .map(|it| format!("{} {}", it.kind, it.name));
        facts.list("devices", devices);
        facts.row("symbols", &self.symbols.to_string());
        facts.into_text()
    }
}

#[cfg(test)]
mod tests {
    use super::{Device, Report, Segment};
    use crate::cli::facts::Facts;

    #[test]
    fn the_report_is_aligned_and_names_everything() {
        let report = Report {
            file: "a\nb.hvt".to_owned(),
            name: "b",
            version: None,
            contract: "solo5-hvt",
            contract_version: "2".to_owned(),
            placement: "fixed",
            entry: 0x10_0020,
            entry_symbol: Some("_start".to_owned()),
            memory_min_bytes: 3 << 20,
            stack_bytes: None,
            segments: vec![Segment {
                address: 0x10_0000,
                memory_bytes: 5000,
                file_bytes: 4000,
                access: "rx".to_owned(),
            }],
            devices: vec![
                Device {
                    kind: "block",
                    name: "storage",
                },
                Device {
                    kind: "net",
                    name: "service",
                },
            ],
            symbols: 7,
        };
        let expected = "\
name      b
contract  solo5-hvt 2
file      a\\nb.hvt
entry     0x100020  _start
placement fixed
memory    3MiB at least
segments  0x100000  rx  5000 bytes, 4000 of them in the file
devices   block storage
          net service
symbols   7
";
        assert_eq!(report.text(Facts::with(false)), expected);
        let native = Report {
            version: Some("1.0"),
            entry_symbol: None,
            stack_bytes: Some(256 << 10),
            memory_min_bytes: 0,
            devices: Vec::new(),
            ..report
        };
        let text = native.text(Facts::with(false));
        for line in [
            "version   1.0\n",
            "entry     0x100020\n",
            "stack     256KiB\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(
            text.contains("devices   nothing\n") && !text.contains("memory"),
            "{text}"
        );
    }
}
