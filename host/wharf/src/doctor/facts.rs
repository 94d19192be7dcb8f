//! What there is to know about a machine, unjudged.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use nix::errno::Errno;
use wharf_machine::Error;
use wharf_machine::probe::{Probe, probe};

use super::trial;
use crate::build::toolchain;
use crate::text::one_line;

/// A machine, as far as guests are concerned.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What `/dev/kvm` says of itself, or why it does not open.
    pub kvm: Result<Probe, Errno>,
    /// How long a guest took from nothing to its end, or why it did not run.
    pub trial: Result<Duration, String>,
    /// The kernel's modules for KVM.
    pub modules: KvmModules,
    /// `/proc/cpuinfo`.
    pub cpuinfo: String,
    /// `/sys/kernel/mm/transparent_hugepage/enabled`.
    pub huge_pages: Option<String>,
    /// `/proc/self/limits`.
    pub limits: String,
    /// What builds guests.
    pub toolchain: Toolchain,
    /// What builds plugins, and what could be installed for it.
    pub plugins: toolchain::Facts,
}

/// Which of the kernel's modules for KVM are loaded or built in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmModules {
    /// `kvm`, which the others need.
    pub kvm: bool,
    /// `kvm_intel`.
    pub intel: bool,
    /// `kvm_amd`.
    pub amd: bool,
    /// `kvm_pvm`.
    pub pvm: bool,
}

/// What the programs that build guests answer to `--version`; `None` where one
/// does not run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Toolchain {
    /// `$CARGO`, else `cargo`.
    pub cargo: Option<String>,
    /// `$RUSTC`, else `rustc`.
    pub rustc: Option<String>,
    /// `cc`, by which rustc links.
    pub linker: Option<String>,
}

impl Facts {
    /// Looks at this machine, and runs a small guest on it.
    #[must_use]
    pub fn gather() -> Self {
        let module = |name| Path::new("/sys/module").join(name).is_dir();
        let read = |path| fs::read_to_string(path).ok();
        // rustup's wrappers take their time: they run beside the rest.
        let toolchain = thread::spawn(Toolchain::gather);
        let plugins = thread::spawn(|| toolchain::Facts::gather(Path::new(".")));
        Self {
            kvm: probe().map_err(|error| match error {
                Error::Open(error) => Errno::from_raw(error.errno()),
                _ => Errno::UnknownErrno,
            }),
            trial: trial::run().map_err(|error| one_line(&error)),
            modules: KvmModules {
                kvm: module("kvm"),
                intel: module("kvm_intel"),
                amd: module("kvm_amd"),
                pvm: module("kvm_pvm"),
            },
            cpuinfo: read("/proc/cpuinfo").unwrap_or_default(),
            huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled"),
            limits: read("/proc/self/limits").unwrap_or_default(),
            toolchain: toolchain.join().unwrap_or_default(),
            plugins: plugins.join().unwrap_or_default(),
        }
    }

    /// Tells whether the first CPU has a flag.
    #[must_use]
    pub fn cpu_has(&self, flag: &str) -> bool {
        self.cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("flags"))
            .is_some_and(|flags| flags.split_whitespace().any(|other| other == flag))
    }
}

impl Toolchain {
    fn gather() -> Self {
        Self {
            cargo: version("CARGO", "cargo"),
            rustc: version("RUSTC", "rustc"),
            linker: version("", "cc"),
        }
    }
}

/// The first line of what a program answers to `--version`.
fn version(variable: &str, program: &str) -> Option<String> {
    let program = env::var_os(variable).unwrap_or_else(|| program.into());
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().filter(|_| output.status.success())?;
    Some(line.trim().to_owned())
}

/// Machines to judge.
#[cfg(test)]
pub(super) mod fixtures {
    use std::time::Duration;

    use wharf_machine::probe::{Capability, Probe};

    use super::{Facts, KvmModules, Toolchain, toolchain};

    /// A machine with nothing amiss: VMX on bare metal.
    pub(in crate::doctor) fn machine() -> Facts {
        let capability = |name, required| Capability {
            name,
            purpose: "something",
            required,
            present: true,
        };
        Facts {
            kvm: Ok(Probe {
                api_version: 12,
                capabilities: vec![
                    capability("KVM_CAP_USER_MEMORY", true),
                    capability("KVM_CAP_XSAVE", false),
                ],
                max_vcpus: 1024,
            }),
            trial: Ok(Duration::from_micros(1234)),
            modules: KvmModules { kvm: true, intel: true, ..KvmModules::default() },
            cpuinfo: "processor\t: 0\nflags\t\t: fpu vmx constant_tsc nonstop_tsc\n\
                      processor\t: 1\nflags\t\t: fpu\n"
                .to_owned(),
            huge_pages: Some("always [madvise] never\n".to_owned()),
            limits: "Limit                     Soft Limit           Hard Limit           Units     \n\
                     Max open files            20000                1048576              files     \n\
                     Max locked memory         8388608              unlimited            bytes     \n"
                .to_owned(),
            toolchain: Toolchain {
                cargo: Some("cargo 1.95.0 (f2d3ce0bd 2026-03-21)".to_owned()),
                rustc: Some("rustc 1.96.0-nightly (59807616e 2026-04-14)".to_owned()),
                linker: Some("cc (Debian 12.2.0-14) 12.2.0".to_owned()),
            },
            plugins: toolchain::Facts {
                has_target: true,
                ..toolchain::Facts::default()
            },
        }
    }

    #[test]
    fn flags_are_whole_words_of_the_first_cpu() {
        let facts = machine();
        assert!(facts.cpu_has("vmx") && facts.cpu_has("nonstop_tsc"));
        assert!(!facts.cpu_has("tsc") && !facts.cpu_has("svm"));
    }
}
