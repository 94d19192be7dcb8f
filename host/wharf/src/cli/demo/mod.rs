//! `wharf demo`: what wharf is for, done under load, and judged by its clients.

mod clients;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;
use wharf_model::policy::SlotName;

use super::up::last_line;
use super::{output, table};
use crate::build::{BuildOptions, Progress, Source};
use crate::cell::protocol::{Selector, TaskState, UpgradeState, UpgradeStatus};
use crate::control::{Client, HandoverRequest, SnapshotRequest, SwapRequest, UpgradeRequest};
use crate::text::one_line;
use clients::{Clients, Total, get};

/// Exit status when something did not hold.
const FAILED: u8 = 1;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to look on before and between steps.
const BREATH: Duration = Duration::from_millis(700);

/// Clones that are made of the snapshot.
const CLONES: u64 = 8;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// wharf's own sources, from which guests and plugins are built
    #[arg(long, value_name = "DIR", default_value = ".")]
    sources: PathBuf,
}

/// Runs the command.
pub(super) fn run(args: &Args, progress: Progress) -> anyhow::Result<u8> {
    ensure!(
        args.sources.join("guest-kernel/apps").is_dir(),
        "{} has no wharf in it: clone its repository, and run this there or with --sources DIR",
        args.sources.display()
    );
    say("building guests and plugins (some minutes the first time)")?;
    let built = Built::new(&args.sources, progress)?;
    let mut tour = Tour::start(built)?;
    let went = tour.walk();
    let Tour {
        clients,
        host,
        rows,
        ..
    } = tour;
    let total = clients.end()?;
    let lost = went.and_then(|()| host.lost(&total));
    drop(host);
    finish(rows, &total, &lost)
}

/// Prints a line at once: the tour takes a while.
fn say(line: &str) -> anyhow::Result<()> {
    output::print(format!("{line}\n").as_bytes())
}

/// What the tour needs, as files.
struct Built {
    first: PathBuf,
    second: PathBuf,
    web: PathBuf,
    web_next: PathBuf,
    web_slow: PathBuf,
    fair_share: PathBuf,
    deadline: PathBuf,
    canary: PathBuf,
    formats: PathBuf,
    judge: PathBuf,
}

impl Built {
    fn new(sources: &Path, progress: Progress) -> anyhow::Result<Self> {
        let options = BuildOptions::new(progress);
        let app = |name: &str| -> anyhow::Result<PathBuf> {
            let source = sources.join(format!("guest-kernel/apps#{name}"));
            Ok(Source::find(&source)?.image_path(options)?.canonicalize()?)
        };
        let plugin = |name: &str| -> anyhow::Result<PathBuf> {
            let source = sources.join("plugins").join(name);
            Ok(Source::find(&source)?
                .plugin_path(options)?
                .canonicalize()?)
        };
        Ok(Self {
            first: app("session")?,
            second: app("session2")?,
            web: app("http")?,
            web_next: app("http2")?,
            web_slow: app("http3")?,
            fair_share: plugin("fair-share")?,
            deadline: plugin("deadline")?,
            canary: plugin("canary")?,
            formats: plugin("session-formats")?,
            judge: plugin("canary-judge")?,
        })
    }
}

/// A host in a process of its own, which ends with this.
struct Process {
    client: Client,
    child: Child,
}

/// The host that clients ask.
struct Host {
    process: Process,
    /// What each task is reached at.
    web: SocketAddr,
    store: SocketAddr,
}

impl Host {
    /// Brings up the tasks of a text, in a directory, and waits until they serve.
    fn up(directory: &Path, name: &str, text: &str) -> anyhow::Result<Process> {
        let file = directory.join(format!("{name}.toml"));
        let socket = directory.join(format!("{name}.sock"));
        std::fs::write(&file, text).context("cannot write a configuration")?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let said = tempfile::tempfile().context("cannot make a temporary file")?;
        let child = Command::new(program)
            .args(["-q", "up", "--socket"])
            .arg(&socket)
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said.try_clone()?)
            .spawn()
            .context("cannot start a host")?;
        let client = Client::new(&socket)?;
        let mut process = Process { client, child };
        let start = Instant::now();
        loop {
            if let Some(status) = process.child.try_wait()? {
                bail!("the host ended ({status}): {}", last_line(said)?);
            }
            let serves = |state| matches!(state, TaskState::Waiting | TaskState::Running);
            match process.client.tasks(None) {
                Ok(tasks) if tasks.iter().all(|it| serves(it.state)) => return Ok(process),
                _ if start.elapsed() > PATIENCE => bail!("the host does not come up"),
                _ => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Whether what clients wrote is there.
    fn lost(&self, total: &Total) -> anyhow::Result<()> {
        for (key, value) in &total.written {
            let kept = get(self.store, &format!("/k/{key}"))?;
            ensure!(kept == *value, "{key} is {kept:?}, and {value} was written");
        }
        Ok(())
    }
}

impl Drop for Process {
    /// In order, if it still can.
    fn drop(&mut self) {
        let told = self.client.down().is_ok();
        let start = Instant::now();
        while told && start.elapsed() < PATIENCE {
            // The one that was started may have handed over to another.
            if matches!(self.child.try_wait(), Ok(Some(_))) && self.client.host().is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        // It is not there any more, or will not go.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A step, and what clients saw of it.
struct Row {
    step: &'static str,
    what: String,
    requests: u64,
    worst: Duration,
}

struct Tour {
    built: Built,
    host: Host,
    clients: Clients,
    rows: Vec<Row>,
    directory: TempDir,
}

/// Two ports that are free now.
fn free_ports() -> anyhow::Result<(SocketAddr, SocketAddr)> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let (one, other) = (listen()?, listen()?);
    Ok((one.local_addr()?, other.local_addr()?))
}

impl Tour {
    fn start(built: Built) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        let (web, store) = free_ports()?;
        // One worker: there is then something for a scheduler to decide.
        let text = format!(
            "[host]\nworkers = 1\n\
             [policy.upgrader]\nplugin = {formats:?}\n\
             [[task]]\nname = \"web\"\nimage = {image:?}\nreplicas = 2\npublish = [\"{web}:80\"]\n\
             [[task]]\nname = \"store\"\nimage = {first:?}\npublish = [\"{store}:80\"]\n",
            formats = built.formats,
            image = built.web,
            first = built.first,
        );
        let process = Host::up(directory.path(), "wharf", &text)?;
        say(&format!(
            "up: web, 2 replicas, at http://{web}/ and store at http://{store}/k"
        ))?;
        Ok(Self {
            built,
            host: Host {
                process,
                web,
                store,
            },
            clients: Clients::start(web, store)?,
            rows: Vec::new(),
            directory,
        })
    }

    /// Does a step, says what came of it, and writes down what clients saw.
    fn step(
        &mut self,
        step: &'static str,
        act: impl FnOnce(&Self) -> anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        self.clients.look();
        let done = act(self);
        // What it did to clients may show only now.
        thread::sleep(BREATH);
        let seen = self.clients.look();
        let what = match &done {
            Ok(what) => what.clone(),
            Err(error) => one_line(error.as_ref()),
        };
        let (requests, worst) = (seen.requests, millis(seen.worst));
        say(&format!(
            "{step}: {what} ({requests} requests, the slowest {worst})"
        ))?;
        self.rows.push(Row {
            step,
            what,
            requests,
            worst: seen.worst,
        });
        done.map(|_| ())
    }

    fn walk(&mut self) -> anyhow::Result<()> {
        self.step("serve", |it| {
            let greeting = get(it.host.web, "/")?;
            Ok(format!("web says {greeting:?}"))
        })?;
        self.step("swap the scheduler", |it| {
            it.swap(SlotName::Scheduler, &it.built.fair_share, &[])
        })?;
        self.step("swap the router", |it| {
            it.swap(SlotName::Router, &it.built.canary, &[])
        })?;
        self.step("shadow a candidate", Self::shadow)?;
        self.step("upgrade store, state and connections kept", |it| {
            it.expect_version("1")?;
            let done = it.upgrade("store", &it.built.second, UpgradeState::Kept)?;
            it.expect_version("2")?;
            let (connections, pause) = (done.connections, table::time(done.pause_ns));
            let bytes = done.state_bytes;
            Ok(format!(
                "v1 to v2, {connections} connections and {bytes} B of state moved in {pause}"
            ))
        })?;
        self.step("swap the upgrader", |it| {
            let settings = [
                ("steps", "[25, 50]"),
                ("period", "1s"),
                ("connections", "10"),
                ("p99-factor", "10"),
            ];
            it.swap(SlotName::Upgrader, &it.built.judge, &settings)
        })?;
        self.step("upgrade web as a canary", |it| {
            let done = it.upgrade("web", &it.built.web_next, UpgradeState::Kept)?;
            Ok(format!(
                "25, 50, then 100 % of {} replicas to v2",
                done.done
            ))
        })?;
        self.step("roll back a faulty version", |it| {
            let done = it.upgrade("web", &it.built.web_slow, UpgradeState::RolledBack)?;
            Ok(done.reason.unwrap_or_default())
        })?;
        self.step("freeze store", |it| {
            let file = it.snapshot_file();
            let done = it
                .host
                .process
                .client
                .snapshot(&"store".parse()?, &SnapshotRequest { file })?;
            let (memory, pause) = (done.memory_bytes >> 10, table::time(done.pause_ns));
            Ok(format!("{memory} KiB, stood still for {pause}"))
        })?;
        self.step("clone it", Self::clones)?;
        self.step("hand the host over", Self::hand_over)
    }

    /// Puts a plugin into its slot.
    fn swap(
        &self,
        slot: SlotName,
        plugin: &Path,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<String> {
        let settings: BTreeMap<String, String> = settings
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let done = self.host.process.client.swap(
            slot,
            &SwapRequest {
                plugin: plugin.to_owned(),
                settings: Some(settings),
                ..SwapRequest::default()
            },
        )?;
        let pause = table::time(done.pause_ns.unwrap_or(0));
        Ok(format!(
            "{} to {}, callers waited {pause}",
            done.old, done.new
        ))
    }

    /// Has a scheduler answer live questions beside the one in force.
    fn shadow(&self) -> anyhow::Result<String> {
        let done = self.host.process.client.swap(
            SlotName::Scheduler,
            &SwapRequest {
                plugin: self.built.deadline.clone(),
                shadow: 200,
                dry_run: true,
                ..SwapRequest::default()
            },
        )?;
        let shadow = done.shadow.context("nothing was asked")?;
        ensure!(shadow.asked > 0, "nothing was asked");
        let (asked, agreed) = (shadow.asked, shadow.agreed);
        Ok(format!(
            "{} agrees in {agreed} of {asked} questions",
            done.new
        ))
    }

    fn expect_version(&self, version: &str) -> anyhow::Result<()> {
        let is = get(self.host.store, "/version")?;
        ensure!(is == version, "store is version {is}, not {version}");
        Ok(())
    }

    /// Puts an image in the place of what runs, and waits for the end that is expected.
    fn upgrade(
        &self,
        task: &str,
        image: &Path,
        expected: UpgradeState,
    ) -> anyhow::Result<UpgradeStatus> {
        let (client, task): (_, Selector) = (&self.host.process.client, task.parse()?);
        let image = image.to_owned();
        let mut status = client.upgrade(&task, &UpgradeRequest { image })?;
        let start = Instant::now();
        while status.state == UpgradeState::Running && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(5));
            status = client.upgrade_status(status.id)?;
        }
        if status.state != expected {
            let reason = status.reason.as_deref().unwrap_or("it did not end");
            bail!("{task} is {:?}: {reason}", status.state);
        }
        Ok(status)
    }

    fn snapshot_file(&self) -> PathBuf {
        self.directory.path().join("store.snap")
    }

    /// Another process of this program in the place of the host that clients ask.
    fn hand_over(&self) -> anyhow::Result<String> {
        let client = &self.host.process.client;
        let generations = |it: &Client| -> anyhow::Result<Vec<u64>> {
            let tasks = it.tasks(None)?;
            Ok(tasks.into_iter().map(|it| it.generation).collect())
        };
        let before = (client.host()?.pid, generations(client)?);
        let program = std::env::current_exe().context("cannot find this program")?;
        let done = client.hand_over(&HandoverRequest { program })?;
        let (pid, now) = (client.host()?.pid, generations(client)?);
        ensure!(
            pid == done.pid && pid != before.0,
            "process {pid} is the host"
        );
        ensure!(now == before.1, "a guest was started anew");
        let (guests, connections) = (done.guests, done.connections);
        let pause = table::time(done.pause_max_ns);
        Ok(format!(
            "{guests} guests and {connections} connections from process {} to {pid}, each stood \
             still for at most {pause}",
            before.0
        ))
    }

    /// Clones of the store, in a host of their own, each with what the store had.
    fn clones(&self) -> anyhow::Result<String> {
        let (at, _) = free_ports()?;
        let file = self.snapshot_file();
        let text = format!(
            "[[task]]\nname = \"clone\"\nfrom = {file:?}\nreplicas = {CLONES}\nwarm = 2\n\
             publish = [\"{at}:80\"]\n"
        );
        let _process = Host::up(self.directory.path(), "clones", &text)?;
        for keys in clients::ask_each(at, CLONES, "/k")? {
            ensure!(keys.contains("client-0"), "a clone has {keys:?}");
        }
        Ok(format!("{CLONES} clones have what the store had"))
    }
}

/// Prints the table, and says whether all of it held.
fn finish(rows: Vec<Row>, total: &Total, went: &anyhow::Result<()>) -> anyhow::Result<u8> {
    let mut steps = table::new(&["STEP", ">REQUESTS", ">SLOWEST", "WHAT HAPPENED"]);
    for row in rows {
        let worst = millis(row.worst);
        steps.add_row([
            row.step.to_owned(),
            row.requests.to_string(),
            worst,
            row.what,
        ]);
    }
    say("")?;
    output::print(table::text(&steps).as_bytes())?;
    for failure in &total.failures {
        output::complain(failure);
    }
    let (requests, failed) = (total.requests, total.failures.len());
    let held = match went {
        Ok(()) => "nothing was lost".to_owned(),
        Err(error) => one_line(error.as_ref()),
    };
    say(&format!("\n{requests} requests, {failed} failed; {held}"))?;
    Ok(if failed == 0 && went.is_ok() {
        0
    } else {
        FAILED
    })
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use anyhow::bail;

    use super::{FAILED, Total, finish};

    #[test]
    fn it_ends_well_only_when_all_of_it_held() {
        let mut total = Total {
            requests: 7,
            failures: Vec::new(),
            written: BTreeMap::new(),
        };
        let lost = (|| bail!("client-0 is \"1\", and 2 was written"))();
        assert_eq!(finish(Vec::new(), &total, &Ok(())).unwrap(), 0);
        assert_eq!(finish(Vec::new(), &total, &lost).unwrap(), FAILED);
        total.failures.push("a client of web: no answer".to_owned());
        assert_eq!(finish(Vec::new(), &total, &Ok(())).unwrap(), FAILED);
    }
}
