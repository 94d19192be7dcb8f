//! `wharf up`.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueHint;
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::unistd::Pid;
use wharf_machine::Hypervisor;
use wharf_machine::image::Image;
use wharf_machine::snapshot::Snapshot;

use super::{host, output};
use crate::build::{BuildOptions, Progress, Source};
use crate::cell::protocol::{Event, EventKind, TaskState, TaskStatus};
use crate::cell::{Cell, CellConfig, ControlFiles, PolicySpec, TaskSpec};
use crate::config::{Config, ConfigError, Policies, Task};
use crate::control::{self, Client, ServeConfig, Server, Serving};
use crate::device::attach;
use crate::net::Tap;
use crate::run::signals::block_stops;
use crate::text::{one_line, shown, visible};

/// How long a detached host may take to bring its tasks up.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How long it may take to find that the socket is another's.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The tasks, as TOML
    #[arg(default_value = "wharf.toml", value_hint = ValueHint::FilePath)]
    file: PathBuf,

    /// Only say what is wrong with the file; start and build nothing
    #[arg(long)]
    check: bool,

    /// Return when every task has started; `wharf down` ends them
    #[arg(short, long)]
    detach: bool,

    /// Refuse the whole file when the image of one task is missing or refused
    #[arg(long)]
    strict: bool,

    /// The control socket [default: the file's, else $XDG_RUNTIME_DIR/wharf.sock, else
    /// /run/wharf.sock]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    socket: Option<PathBuf>,

    /// What `--detach` starts: a host without a terminal
    #[arg(long, hide = true)]
    detached: bool,

    /// What a host starts that is handed over: the other end is standard input
    #[arg(long, hide = true)]
    take_over: bool,
}

/// Runs the command.
pub(super) fn run(args: &Args, progress: Progress) -> anyhow::Result<u8> {
    if args.take_over {
        return take_over();
    }
    let config = match Config::load(&args.file) {
        Ok(config) => config,
        Err(error) if args.check => return Ok(tell_problems(&error)),
        Err(error) => return Err(error.into()),
    };
    let own = config.host.socket.clone();
    let socket = args
        .socket
        .clone()
        .or(own)
        .unwrap_or_else(control::default_path);
    if args.check {
        check_built(&config)?;
        Server::check(&socket)?;
        let tasks = match config.tasks.len() {
            1 => "1 task".to_owned(),
            tasks => format!("{tasks} tasks"),
        };
        output::print(format!("{}: {tasks}, good\n", shown(&args.file)).as_bytes())?;
        return Ok(0);
    }
    if args.detach {
        detach(args, &socket)
    } else {
        serve(args, &config, &socket, progress)
    }
}

/// Every problem on a line of its own; the status of a refusal.
fn tell_problems(error: &ConfigError) -> u8 {
    let mut told = false;
    for problem in error.problems() {
        output::complain(&problem.to_string());
        told = true;
    }
    if !told {
        output::complain(&one_line(error));
    }
    super::REFUSED
}

/// Runs the tasks in this process until somebody ends them.
fn serve(args: &Args, config: &Config, socket: &Path, progress: Progress) -> anyhow::Result<u8> {
    if args.detached {
        nix::unistd::setsid().context("cannot leave the terminal")?;
    }
    // Until everything is built, a signal ends this process and the builder alike.
    let server = Server::bind(socket)?;
    let routed = config.policies.router.is_some();
    let tasks = specs(&config.tasks, args.strict, routed, progress)?;
    let policies = policies(&config.policies, progress)?;
    // Before any other thread starts, so that all of them leave signals to it.
    let signals = Signals::block()?.hear(socket, None)?;
    let workers = config.host.workers.unwrap_or_else(cores);
    let (cell, supervisor) = Cell::start(CellConfig {
        workers,
        tasks,
        policies,
    })?;
    signals.end(cell.clone());
    let serving = server.start(
        cell.clone(),
        ServeConfig {
            workers,
            config: Some(args.file.display().to_string()),
        },
    )?;
    let over = Arc::new(AtomicBool::new(false));
    let teller = if args.detached {
        forget_stderr()?;
        None
    } else {
        Some(tell_events(cell, 0, Arc::clone(&over))?)
    };
    wait(supervisor, teller, &over, serving);
    signals.settle();
    Ok(0)
}

/// Goes on with the host that has started this process.
fn take_over() -> anyhow::Result<u8> {
    // Of this process, too, nobody but the signals' thread hears signals.
    let signals = Signals::block()?;
    let link = std::io::stdin().as_fd().try_clone_to_owned();
    let link = link.context("standard input is no link to a host")?;
    let over = Arc::new(AtomicBool::new(false));
    let serve = |cell: Cell, config: &CellConfig, control: ControlFiles| {
        let socket = control.path.clone();
        let serve = ServeConfig {
            workers: config.workers,
            config: control.config.clone(),
        };
        let server = Server::take_over(control).map_err(|e| one_line(&e))?;
        // Whatever can fail does so before the other process is told that this one serves.
        let signals = signals.hear(&socket, Some(cell.clone()));
        let signals = signals.map_err(|e| e.to_string())?;
        let (last, over) = (cell.events().last(), Arc::clone(&over));
        let teller = tell_events(cell.clone(), last, over).map_err(|e| e.to_string())?;
        let serving = server.start(cell, serve).map_err(|e| one_line(&e))?;
        Ok((serving, signals, teller))
    };
    let (supervisor, (serving, signals, teller)) = Cell::take_over(link, serve)?;
    serving.own();
    wait(supervisor, Some(teller), &over, serving);
    signals.settle();
    Ok(0)
}

/// Waits until a cell is over, and ends what goes with it.
fn wait(
    supervisor: JoinHandle<()>,
    teller: Option<JoinHandle<()>>,
    over: &AtomicBool,
    serving: Serving,
) {
    if supervisor.join().is_err() {
        output::complain("the supervisor panicked; its tasks have ended");
    }
    over.store(true, Ordering::Relaxed);
    // It has nothing to do but to end.
    let _ = teller.map(JoinHandle::join);
    serving.end();
}

/// Lets go of the file in which the parent looks for why the host did not start.
/// It has no name, so nobody could read it later, and it would grow with every
/// event for as long as the host runs.
fn forget_stderr() -> anyhow::Result<()> {
    let null = std::fs::File::create("/dev/null").context("cannot open /dev/null")?;
    nix::unistd::dup2_stderr(null).context("cannot leave standard error")
}

/// Builds what is not built yet.
fn specs(
    tasks: &[Task],
    strict: bool,
    routed: bool,
    progress: Progress,
) -> anyhow::Result<Vec<TaskSpec>> {
    let options = BuildOptions::new(progress);
    let mut specs = Vec::new();
    for task in tasks {
        if task.spec.clones.is_some() {
            match opened(&task.spec.image) {
                Ok(snapshot) => try_devices(&task.spec, snapshot.image(), routed)?,
                Err(error) if strict => {
                    return Err(error).with_context(|| format!("task {}", task.spec.name));
                }
                // It is the task's own trouble, which an event tells.
                Err(_) => {}
            }
            specs.push(task.spec.clone());
            continue;
        }
        let built = Source::find(&task.spec.image).and_then(|source| source.image_path(options));
        let image = match built {
            Ok(image) => image,
            Err(error) if strict => {
                return Err(error).with_context(|| format!("task {}", task.spec.name));
            }
            Err(error) => {
                output::complain(&format!("task {}: {}", task.spec.name, one_line(&error)));
                task.spec.image.clone()
            }
        };
        let spec = task.spec(image);
        match Image::open(&spec.image) {
            Ok(image) => try_devices(&spec, &image, routed)?,
            Err(error) if strict => {
                return Err(error).with_context(|| format!("task {}", spec.name));
            }
            // It is the task's own trouble, which an event tells.
            Err(_) => {}
        }
        specs.push(spec);
    }
    Ok(specs)
}

/// A snapshot that this machine can go on with.
fn opened(file: &Path) -> anyhow::Result<Snapshot> {
    Ok(Snapshot::open(&Hypervisor::open()?, file)?)
}

/// Whether what is configured of tasks goes with their images, as far as these are files:
/// the others are not built yet.
fn check_built(config: &Config) -> anyhow::Result<()> {
    let routed = config.policies.router.is_some();
    for Task { spec } in &config.tasks {
        if spec.clones.is_some() {
            // Whether this machine can go on with it shows when it does.
            if let Ok(snapshot) = opened(&spec.image) {
                let image = snapshot.image().manifest();
                attach::check(image, spec.configured(), &spec.name, !routed)?;
            }
        } else if let Ok(Source::Artefact(file)) = Source::find(&spec.image)
            && let Ok(image) = Image::open(&file)
        {
            attach::check(image.manifest(), spec.configured(), &spec.name, !routed)?;
        }
    }
    Ok(())
}

/// Whether every device of a task is there and could be opened: what an operator hears
/// of now, in one line, need not be looked for in events later. Nothing is made yet:
/// the next task may be refused.
fn try_devices(spec: &TaskSpec, image: &Image, routed: bool) -> anyhow::Result<()> {
    // A router of the operator's own may have other ideas of who gets what.
    attach::check(image.manifest(), spec.configured(), &spec.name, !routed)?;
    for block in &spec.blocks {
        let found = block.check();
        found.with_context(|| format!("task {}: device {:?}", spec.name, block.device))?;
        if !routed && spec.replicas > 1 && block.is_written() {
            let (task, device, replicas) = (&spec.name, &block.device, spec.replicas);
            bail!(
                "task {task}: device {device:?}: {replicas} replicas cannot write one file: write \
                 mode = \"ro\" or \"cow\", or replicas = 1"
            );
        }
    }
    for net in &spec.nets {
        let found = net.tap.as_deref().map_or(Ok(()), Tap::check);
        found.with_context(|| format!("task {}: device {:?}", spec.name, net.device))?;
    }
    Ok(())
}

/// The plugins that the file names, built where they have to be.
fn policies(policies: &Policies, progress: Progress) -> anyhow::Result<Vec<PolicySpec>> {
    let mut specs = Vec::new();
    let options = BuildOptions::new(progress);
    for (slot, policy) in policies.all() {
        let built = Source::find(&policy.plugin).and_then(|it| it.plugin_path(options));
        let plugin = built.with_context(|| format!("[policy.{slot}]"))?;
        specs.push(policy.spec(slot, plugin));
    }
    Ok(specs)
}

fn cores() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cores).unwrap_or(1)
}

/// What hears the signals that ask for an end. Plugins are compiled and tried before
/// there is a cell, which may take half a minute: a signal then ends the process.
struct Signals {
    cell: Arc<Mutex<Option<Cell>>>,
    thread: JoinHandle<()>,
    is_enough: Arc<AtomicBool>,
}

/// What ends the thread that hears signals, when that is wanted here.
const ENOUGH: Signal = Signal::SIGUSR2;

/// Signals that wait to be heard.
struct Blocked(SigSet);

impl Signals {
    /// Blocks them, for this thread and those that it starts.
    fn block() -> anyhow::Result<Blocked> {
        block_stops().map(Blocked).context("cannot block signals")
    }

    /// From now on the first signal ends this cell in order, the second at once.
    fn end(&self, cell: Cell) {
        *self.cell.lock().unwrap_or_else(PoisonError::into_inner) = Some(cell);
    }

    /// Hears no more, when what was heard is done: a signal that came while the host was
    /// handed over is told to the process that has it.
    fn settle(self) {
        self.is_enough.store(true, Ordering::Release);
        if kill(Pid::this(), ENOUGH).is_ok() {
            // It has done what it could.
            let _ = self.thread.join();
        }
    }
}

impl Blocked {
    /// Hears them from now on. While there is no cell, `socket` goes with the process.
    fn hear(self, socket: &Path, cell: Option<Cell>) -> anyhow::Result<Signals> {
        let Self(stops) = self;
        let cell = Arc::new(Mutex::new(cell));
        let (heard, socket) = (Arc::clone(&cell), socket.to_owned());
        let is_enough: Arc<AtomicBool> = Arc::default();
        let enough = Arc::clone(&is_enough);
        let mut all = stops;
        all.add(ENOUGH);
        all.thread_block().context("cannot block signals")?;
        let thread = std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                while let Ok(signal) = all.wait() {
                    if signal == ENOUGH {
                        match enough.load(Ordering::Acquire) {
                            true => return,
                            // Somebody else's, which means nothing.
                            false => continue,
                        }
                    }
                    let cell = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    match cell.as_ref() {
                        Some(cell) => end(cell, &socket),
                        None => end_by(signal, stops, &socket),
                    }
                }
            })
            .context("cannot start a thread")?;
        Ok(Signals {
            cell,
            thread,
            is_enough,
        })
    }
}

/// Ends a cell, wherever it is by now.
fn end(cell: &Cell, socket: &Path) {
    cell.down();
    // Who sent the signal did not know that another process goes on.
    if cell.is_handed_over()
        && let Ok(client) = Client::new(socket)
        && let Err(error) = client.down()
    {
        output::complain(&one_line(&error));
    }
}

/// Ends the process as this signal ends one that does not expect it: whoever started it
/// sees that.
fn end_by(signal: Signal, stops: SigSet, socket: &Path) {
    // Nobody has been served there, and the lock beside it is still held.
    let _ = std::fs::remove_file(socket);
    let _ = stops.thread_unblock();
    let _ = raise(signal);
}

/// Says on standard error what happens after an event, until the cell is over.
fn tell_events(cell: Cell, mut last: u64, over: Arc<AtomicBool>) -> anyhow::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("events".to_owned())
        .spawn(move || {
            loop {
                // A supervisor that panicked says no last word.
                let is_over = over.load(Ordering::Relaxed) || cell.events().is_closed();
                let events = cell.events().after(last, 256);
                for event in &events {
                    last = event.seq;
                    output::complain(&line(event));
                }
                let last_word = |event: &Event| event.kind == EventKind::Down;
                if is_over || events.last().is_some_and(last_word) {
                    return;
                }
                cell.events().wait_after(last, Duration::from_secs(1));
            }
        })
        .context("cannot start a thread")
}

fn line(event: &Event) -> String {
    let task = event.task.as_deref().unwrap_or("cell");
    let kind = event.kind.word();
    let detail = visible(&event.detail);
    match detail.as_str() {
        "" => format!("{task}: {kind}"),
        detail => format!("{task}: {kind}: {detail}"),
    }
}

/// Starts this program anew without a terminal and waits until its tasks run.
fn detach(args: &Args, socket: &Path) -> anyhow::Result<u8> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let said = tempfile::tempfile().context("cannot make a temporary file")?;
    let mut command = Command::new(program);
    command
        .args(["up", "--detached", "--socket"])
        .arg(socket)
        .args(args.strict.then_some("--strict"))
        .arg(&args.file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said.try_clone()?);
    let mut child = command.spawn().context("cannot start the host")?;
    let client = Client::new(socket)?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("the host ended ({status}): {}", last_line(said)?);
        }
        let serving = client.host().map(|host| host.pid);
        if serving.as_ref().is_ok_and(|pid| *pid != child.id()) && start.elapsed() > PATIENCE {
            // Two hosts of one file is what nobody wanted.
            child.kill().and_then(|()| child.wait())?;
            bail!(
                "another wharf serves {}: end it with `wharf down`, or choose another socket \
                 with --socket",
                socket.display()
            );
        }
        if serving.is_ok_and(|pid| pid == child.id())
            && let Ok(tasks) = client.tasks(None)
            && (tasks.iter().all(has_begun) || start.elapsed() > START_PATIENCE)
        {
            for task in tasks.iter().filter(|task| !lives(task)) {
                let reason = task.reason.as_deref().unwrap_or("it does not start");
                output::complain(&format!("{}: {reason}", host::replica(task)));
            }
            let (replicas, pid) = (tasks.len(), child.id());
            let up = format!("{replicas} replicas, pid {pid}, socket {}\n", shown(socket));
            output::print(up.as_bytes())?;
            return Ok(0);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the first start is over, however it went.
fn has_begun(task: &TaskStatus) -> bool {
    task.state != TaskState::Starting || task.reason.is_some()
}

fn lives(task: &TaskStatus) -> bool {
    !matches!(task.state, TaskState::Starting | TaskState::Faulted)
}

/// The last thing that a host said before it ended.
pub(super) fn last_line(mut said: std::fs::File) -> anyhow::Result<String> {
    use std::io::{Read, Seek};
    let mut text = String::new();
    said.rewind()?;
    said.read_to_string(&mut text)?;
    let line = text.lines().last().unwrap_or("it said nothing");
    Ok(line.trim_start_matches("wharf: ").to_owned())
}
