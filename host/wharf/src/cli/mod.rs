//! The command line: what it accepts, and how a command's end becomes an exit
//! status.
//!
//! Each command is a file with its arguments and a `run` that returns an exit
//! status. Results go to standard output by `output::print`; an error becomes
//! one line on standard error here.

mod build;
mod demo;
mod doctor;
mod down;
mod events;
mod facts;
mod handover;
mod host;
mod image;
mod logs;
mod new;
mod output;
mod policy;
mod ps;
mod restart;
mod run;
mod snapshot;
mod stop;
mod table;
mod top;
mod up;
mod upgrade;
mod usage;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, ExitCode};
use std::{env, io};

use anyhow::{Context, bail};
use clap::{ArgAction, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use env_logger::{Target, WriteStyle};
use log::LevelFilter;

use crate::build::Progress;
use crate::run::signals::survive_large_files;
use crate::text::one_line;

/// Exit status of wharf's own refusals and errors.
const REFUSED: u8 = 125;

const AFTER_HELP: &str = "\
Exit status: a guest's own; 139 after a fault of the guest's; 125 when wharf
itself refuses or fails, with one line that says why; 2 for bad usage.

Logs go to standard error, results to standard output. RUST_LOG, when set, says
what is logged (see -v); NO_COLOR does away with colours.";

/// Runs single-purpose ELF unikernels on KVM
#[derive(Debug, Parser)]
#[command(name = "wharf", version, max_term_width = 100, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    verbosity: Verbosity,
}

// A command's arguments are made when it is the one: `wharf run` is to be quick.
// So what the list of commands shows stands here, and not with the arguments.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Run one unikernel in the foreground, its console on the terminal
    ///
    /// Needs no daemon and no root, only /dev/kvm. The exit status is the guest's.
    Run(run::Args),
    #[command(flatten)]
    Host(Host),
    /// Make a package to start from
    New(new::Args),
    /// Tell what this machine can do for guests, and what to do about the rest
    ///
    /// Looks at KVM, runs a small guest, and looks at memory, clock, limits and the
    /// tools that build guests. The exit status is 0 when guests can run here, 125
    /// otherwise; a warning means that something is slower or will not work.
    Doctor(doctor::Args),
    /// Print a shell's completions for wharf
    ///
    /// Where they go depends on the shell, for example:
    ///
    ///   wharf completions bash > ~/.local/share/bash-completion/completions/wharf
    ///   wharf completions fish > ~/.config/fish/completions/wharf.fish
    #[command(verbatim_doc_comment)]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// The commands that `wharf-host` does.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Host {
    /// Build a unikernel or a plugin, and print the path of the artefact
    ///
    /// A unikernel needs Rust 1.95 or later for the machine's own target, and nothing
    /// else. The image goes to wharf/PACKAGE/BIN.elf in the package's target directory,
    /// when it is one that `wharf run` accepts. A plugin goes to wharf/PACKAGE.wasm, when
    /// `wharf policy check` accepts it.
    Build(build::Args),
    /// Bring up the tasks of a TOML file and stay with them
    ///
    /// The first ctrl-C or SIGTERM stops them in reverse order, the second at once.
    Up(up::Args),
    /// Stop all tasks and end the host
    Down(down::Args),
    /// List tasks, their states and what they used
    Ps(ps::Args),
    /// Show what a task wrote to its console
    Logs(logs::Args),
    /// Stop a task, or one replica of it, for good
    Stop(stop::Args),
    /// Begin a new generation of a task, or of one replica
    Restart(restart::Args),
    /// Put a new version of a task in the place of what runs
    ///
    /// The new version starts beside the old one, takes its state and its connections
    /// over as the upgrader policy says, and is in place when it serves. If it does not,
    /// the old one goes on as if nothing had been, and the exit status is 125.
    Upgrade(upgrade::Upgrade),
    /// Put the version before the last upgrade in place again, with the state of now
    Rollback(upgrade::Rollback),
    /// Freeze a task into a file, and have it go on
    ///
    /// Others are made of the file by `wharf run --from FILE` and by `from = "FILE"` in a
    /// task; each has the image, the memory and the arguments of this one, and random
    /// numbers of its own.
    Snapshot(snapshot::Args),
    /// Have another wharf go on with everything, while guests and clients do
    ///
    /// The program that this command belongs to, or another `wharf-host`, starts beside the
    /// one that runs and takes everything over: guests where they stand, connections,
    /// disks, policies with their state, this socket. Then the old one ends. When
    /// something does not work, the old one goes on, and the exit status is 125.
    Handover(handover::Args),
    /// Show what happened: starts, ends, faults
    Events(events::Args),
    /// Watch what tasks use, the busiest first
    ///
    /// Without a terminal it prints one second's rates and ends.
    Top(top::Args),
    /// Take the tour: what wharf does, done under load
    ///
    /// Builds guests and plugins from wharf's own sources, runs services and real clients,
    /// swaps policies, upgrades, rolls back, freezes and clones, and shows what clients
    /// saw of each step. The exit status is 0 only when no request failed and nothing was
    /// lost.
    Demo(demo::Args),
    /// Look at images
    Image(image::Args),
    /// Look at policy plugins and swap them
    Policy(policy::Args),
}

/// How much to say on standard error.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Verbosity {
    /// Say more: -v what is done, -vv details, -vvv everything
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Say less: -q no warnings, -qq nothing but why wharf fails
    #[arg(short, long, global = true, action = ArgAction::Count)]
    quiet: u8,
}

impl Verbosity {
    fn level(self) -> LevelFilter {
        match (self.verbose, self.quiet) {
            (0, 0) => LevelFilter::Warn,
            (0, 1) => LevelFilter::Error,
            (0, _) => LevelFilter::Off,
            (1, _) => LevelFilter::Info,
            (2, _) => LevelFilter::Debug,
            (_, _) => LevelFilter::Trace,
        }
    }

    /// How much to show of a build that is not asked for by itself.
    fn progress(self) -> Progress {
        match (self.verbose, self.quiet) {
            (0, 0) => Progress::Late,
            (0, _) => Progress::Never,
            (_, _) => Progress::Live,
        }
    }
}

/// A command that the program `wharf` does not do itself.
#[derive(Debug)]
pub struct HostCommand {
    command: Host,
    progress: Progress,
}

/// Runs the command that the process was started with. What concerns one guest is
/// done here, and the rest by `others`.
#[must_use]
pub fn main(others: fn(HostCommand) -> anyhow::Result<u8>) -> ExitCode {
    let Cli { command, verbosity } = Cli::parse();
    start_log(verbosity.level());
    if let Err(error) = survive_large_files() {
        log::warn!("a file that grows past `ulimit -f` will end this process: {error}");
    }
    let progress = verbosity.progress();
    let result = match command {
        Command::Run(args) => run::run(args, progress),
        Command::New(args) => new::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions { shell } => completions(shell),
        Command::Host(command) => others(HostCommand { command, progress }),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            output::complain(&one_line(error.as_ref()));
            ExitCode::from(REFUSED)
        }
    }
}

/// Does what the program `wharf-host` is for.
///
/// # Errors
///
/// When it cannot be done, or is refused.
pub fn host(HostCommand { command, progress }: HostCommand) -> anyhow::Result<u8> {
    match command {
        Host::Build(args) => build::run(&args, progress),
        Host::Up(args) => up::run(&args, progress),
        Host::Down(args) => down::run(&args),
        Host::Ps(args) => ps::run(&args),
        Host::Logs(args) => logs::run(&args),
        Host::Stop(args) => stop::run(&args),
        Host::Restart(args) => restart::run(&args),
        Host::Upgrade(args) => upgrade::run(&args, progress),
        Host::Rollback(args) => upgrade::roll_back(&args),
        Host::Snapshot(args) => snapshot::run(&args),
        Host::Handover(args) => handover::run(&args),
        Host::Demo(args) => demo::run(&args, progress),
        Host::Events(args) => events::run(&args),
        Host::Top(args) => top::run(&args),
        Host::Image(args) => image::run(&args, progress),
        Host::Policy(args) => policy::run(&args, progress),
    }
}

/// Has `wharf-host`, which lies beside this program, do what this process was
/// started for. Who runs one guest does not pay for a compiler of policies and a
/// server, not even for having them in memory.
///
/// # Errors
///
/// When it is not there; else this never returns.
pub fn hand_over(_: HostCommand) -> anyhow::Result<u8> {
    let program = env::current_exe().context("cannot find this program")?;
    let host = program.with_file_name("wharf-host");
    if !host.exists() {
        build_host(&host)?;
    }
    let mut command = process::Command::new(&host);
    let error = command.arg0("wharf").args(env::args_os().skip(1)).exec();
    match error.kind() {
        io::ErrorKind::NotFound => bail!(
            "this needs {}, which is not there: `cargo build --release -p wharf` makes both programs",
            host.display()
        ),
        _ => Err(error).with_context(|| format!("cannot start {}", host.display())),
    }
}

/// Has Cargo build `wharf-host`, when it is Cargo that runs this program: `cargo run` builds
/// no other than what it runs.
fn build_host(host: &Path) -> anyhow::Result<()> {
    let from_cargo = |variable| env::var_os(variable).filter(|it| !it.is_empty());
    let is_run = from_cargo("CARGO_PKG_NAME").is_some_and(|it| it == env!("CARGO_PKG_NAME"));
    let (Some(package), Some(directory)) = (
        from_cargo("CARGO_MANIFEST_DIR").filter(|_| is_run),
        host.parent(),
    ) else {
        return Ok(());
    };
    let cargo = from_cargo("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = process::Command::new(cargo);
    command.args(["build", "--bin", "wharf-host", "--manifest-path"]);
    // As in the workspace's directory: for this package alone Cargo would choose other
    // features of what it depends on, and compile all that once more.
    command.arg(Path::new(&package).join("../../Cargo.toml"));
    if let Some(target) = directory.parent() {
        command.arg("--target-dir").arg(target);
    }
    match directory.file_name() {
        Some(profile) if profile == "debug" => {}
        Some(profile) => {
            command.arg("--profile").arg(profile);
        }
        None => {}
    }
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("wharf-host cannot be built: cargo says why");
    }
    Ok(())
}

/// RUST_LOG is more exact than any flag, so it wins.
fn start_log(level: LevelFilter) {
    let mut logger = env_logger::Builder::new();
    match env::var("RUST_LOG") {
        Ok(filters) if !filters.is_empty() => logger.parse_filters(&filters),
        _ => logger.filter_level(level),
    };
    // Not env_logger's own way to standard error, which waits for a reader for ever.
    logger.target(Target::Pipe(Box::new(output::Stderr)));
    logger.write_style(if output::stderr_colour() {
        WriteStyle::Always
    } else {
        WriteStyle::Never
    });
    logger.init();
}

fn completions(shell: Shell) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "wharf", &mut script);
    output::print(&script)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;
    use clap::{CommandFactory, Parser};

    use super::{Cli, Command};

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_line_of_the_contract_is_accepted() {
        for line in [
            "wharf run http.elf",
            "wharf run apps#http --memory 32MiB --timeout 5s --name web -- a --b",
            "wharf -v run http.elf -v",
            "wharf build apps#http --no-pie -q",
            "wharf new guest x/demo",
            "wharf new plugin x/fair --slot scheduler",
            "wharf doctor --json",
            "wharf up",
            "wharf up x.toml --detach --strict --socket s",
            "wharf up --check",
            "wharf ps --json --socket s",
            "wharf logs web.0 -f --tail 5",
            "wharf stop web --no-wait",
            "wharf restart web.1",
            "wharf upgrade web --image apps#http --no-wait --json",
            "wharf rollback web.0",
            "wharf snapshot web.0 web.snap --json",
            "wharf handover --json",
            "wharf handover target/release/wharf-host --socket s",
            "wharf demo --sources /src/wharf",
            "wharf run --from web.snap --publish 8080:80",
            "wharf down --no-wait",
            "wharf events -f --json",
            "wharf top --json",
            "wharf image inspect apps#http --json",
            "wharf policy ls --json --socket s",
            "wharf policy swap scheduler plugins/fair-share --set boost=2 --shadow 100 --dry-run",
            "wharf policy swap router built-in",
            "wharf policy rollback router --json",
            "wharf policy trace scheduler t.jsonl --count 5 --for 10s --size 1MiB",
            "wharf policy replay fair-share.wasm t.jsonl --differences 3 --json",
            "wharf policy check fair-share.wasm --json",
            "wharf completions zsh",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }

    #[test]
    fn a_guests_arguments_are_its_own() {
        let cli = Cli::try_parse_from(["wharf", "run", "a.elf", "--", "-v", "--", ""]).unwrap();
        let Command::Run(args) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(args.args, ["-v", "--", ""]);
        assert_eq!(cli.verbosity.verbose, 0);
    }

    #[test]
    fn bad_usage_is_refused() {
        for (line, kind) in [
            ("wharf", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("wharf run", ErrorKind::MissingRequiredArgument),
            ("wharf run a.elf b", ErrorKind::UnknownArgument),
            ("wharf run a.elf --memory 32", ErrorKind::ValueValidation),
            ("wharf run a.elf --name a/b", ErrorKind::ValueValidation),
            ("wharf -v -q doctor", ErrorKind::ArgumentConflict),
            ("wharf new kernel x", ErrorKind::InvalidSubcommand),
            ("wharf new plugin x", ErrorKind::MissingRequiredArgument),
            ("wharf new plugin x --slot disk", ErrorKind::InvalidValue),
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.kind(), kind, "{line}");
        }
    }
}
