//! A host that runs in a directory of its own, told and asked as an operator does.
//!
//! Its file, socket and standard error are in the directory, and it ends with the
//! value, however the test does.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value};

use crate::command::{Printed, output, root, wharf};

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often to look.
const PERIOD: Duration = Duration::from_millis(20);

/// A host, its processes, and the directory that it lives in.
#[derive(Debug)]
pub struct Host {
    directory: PathBuf,
    child: Option<Child>,
}

/// A JSON object: a line of `wharf ps` or an event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object(pub Map<String, Value>);

impl Host {
    /// A host that does not run yet, with this file.
    ///
    /// # Panics
    ///
    /// When the file cannot be written.
    #[must_use]
    pub fn new(directory: &Path, toml: &str) -> Self {
        fs::write(directory.join("wharf.toml"), toml).expect("the directory is ours");
        Self {
            directory: directory.to_owned(),
            child: None,
        }
    }

    /// A host in the foreground, which serves.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[must_use]
    pub fn up(directory: &Path, toml: &str) -> Self {
        let mut host = Self::new(directory, toml);
        host.start();
        host
    }

    /// Starts it in the foreground and waits until it serves.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub fn start(&mut self) {
        self.start_as(self.up_command(&[]));
    }

    /// Starts it as [`Host::start`] does, after a shell has run this, such as
    /// `ulimit -n 64`.
    ///
    /// # Panics
    ///
    /// When it does not serve.
    pub fn start_after(&mut self, shell: &str) {
        self.start_as(self.up_after(shell));
    }

    /// `wharf up` as [`Host::start_after`] starts it.
    #[must_use]
    pub fn up_after(&self, shell: &str) -> Command {
        let up = self.up_command(&[]);
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("{shell} && exec \"$0\" \"$@\"")])
            .arg(up.get_program())
            .args(up.get_args())
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    fn start_as(&mut self, mut command: Command) {
        let said = fs::File::create(self.directory.join("said")).expect("the directory is ours");
        let child = command.stderr(said).spawn();
        self.child = Some(child.expect("wharf starts"));
        self.until("it serves", || {
            if let Some(status) = self.has_ended() {
                panic!("it ended with {status}: {}", self.said());
            }
            UnixStream::connect(self.socket()).ok()
        });
    }

    /// `wharf up` of its file at its socket.
    #[must_use]
    pub fn up_command(&self, args: &[&str]) -> Command {
        let mut command = wharf(["up", "--socket"]);
        command
            .arg(self.socket())
            .args(args)
            .arg(self.directory.join("wharf.toml"))
            .stdout(Stdio::null());
        command
    }

    /// Where it is controlled.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("wharf.sock")
    }

    /// A command that is told where this host is.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = wharf(args);
        command.arg("--socket").arg(self.socket());
        command
    }

    /// Runs a command that succeeds without a word on standard error, and returns
    /// what it printed.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[must_use]
    pub fn ask(&self, args: &[&str]) -> String {
        let printed = output(&mut self.command(args));
        assert_eq!(
            (printed.status, printed.stderr.as_str()),
            (0, ""),
            "{args:?}"
        );
        printed.stdout
    }

    /// Runs a command, whatever becomes of it.
    #[must_use]
    pub fn try_ask(&self, args: &[&str]) -> Printed {
        output(&mut self.command(args))
    }

    /// What `wharf ps --json` says of every replica.
    ///
    /// # Panics
    ///
    /// When it says nothing.
    #[must_use]
    pub fn tasks(&self) -> Vec<Object> {
        objects(&self.ask(&["ps", "--json"]))
    }

    /// What it says of one replica, such as `web.0`.
    ///
    /// # Panics
    ///
    /// When there is none.
    #[must_use]
    pub fn task(&self, replica: &str) -> Object {
        let tasks = self.tasks();
        let found = tasks.iter().find(|task| task.replica() == replica);
        found
            .unwrap_or_else(|| panic!("no {replica} in {tasks:?}"))
            .clone()
    }

    /// Waits until a replica is as wanted, and returns it.
    ///
    /// # Panics
    ///
    /// When it never is.
    pub fn until_task(&self, replica: &str, is_wanted: impl Fn(&Object) -> bool) -> Object {
        let mut last = None;
        let found = poll(|| {
            let task = self.task(replica);
            let found = is_wanted(&task).then(|| task.clone());
            last = Some(task);
            found
        });
        found.unwrap_or_else(|| panic!("{replica} remains {last:?}; events: {:?}", self.events()))
    }

    /// What has happened.
    ///
    /// # Panics
    ///
    /// When the host does not say.
    #[must_use]
    pub fn events(&self) -> Vec<Object> {
        objects(&self.ask(&["events", "--json"]))
    }

    /// Waits for the first event of a kind at a replica after the event numbered
    /// `after`.
    ///
    /// # Panics
    ///
    /// When it does not come.
    pub fn until_event(&self, replica: &str, kind: &str, after: u64) -> Object {
        self.until(&format!("{replica} {kind}"), || {
            let mut events = self.events().into_iter();
            events.find(|event| {
                event.number("seq") > after
                    && event.text("task") == replica
                    && event.text("kind") == kind
            })
        })
    }

    /// Waits until `look` finds something.
    ///
    /// # Panics
    ///
    /// When it never does.
    pub fn until<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        poll(look).unwrap_or_else(|| panic!("in vain for {what}; the host said: {}", self.said()))
    }

    /// Waits until every replica has been started.
    ///
    /// # Panics
    ///
    /// When one never is.
    pub fn until_started(&self) {
        self.until("all tasks to start", || {
            let tasks = self.tasks();
            let started = tasks.iter().all(|it| it.state() != "starting");
            started.then_some(())
        });
    }

    /// What it said on standard error.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(self.directory.join("said")).unwrap_or_default()
    }

    /// The process that serves, if one does: the lock beside the socket names it.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        let lock = fs::read_to_string(self.directory.join("wharf.sock.lock")).ok()?;
        let pid: i32 = lock.trim().parse().ok()?;
        // The number may be another's by now.
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        line.contains(&*self.directory.to_string_lossy())
            .then(|| Pid::from_raw(pid))
    }

    /// Signals the process that serves.
    ///
    /// # Panics
    ///
    /// When none does.
    pub fn signal(&self, signal: Signal) {
        let pid = self.pid().expect("it serves");
        kill(pid, signal).expect("it is there");
    }

    /// Waits until the host in the foreground has ended and returns its status.
    ///
    /// # Panics
    ///
    /// When it does not end.
    pub fn status(&mut self) -> i32 {
        let mut child = self.child.take().expect("it is in the foreground");
        let status = poll(|| status(&mut child));
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        status.unwrap_or_else(|| panic!("it does not end: {}", self.said()))
    }

    /// A request as curl would send it: the answer's status and body.
    ///
    /// # Panics
    ///
    /// When there is no answer.
    #[must_use]
    pub fn http(&self, method: &str, path: &str) -> (u16, String) {
        let (head, body) = self.http_with(method, path, "");
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
        (status.unwrap_or_else(|| panic!("no status: {head}")), body)
    }

    /// A request with these further header lines, each with its end: the answer's
    /// head and body.
    ///
    /// # Panics
    ///
    /// When there is no answer.
    #[must_use]
    pub fn http_with(&self, method: &str, path: &str, headers: &str) -> (String, String) {
        self.http_sending(method, path, headers, "")
    }

    fn http_sending(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> (String, String) {
        let mut stream = UnixStream::connect(self.socket()).expect("it serves");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("time is set");
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: wharf\r\nConnection: close\r\n{headers}\r\n{body}"
        )
        .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            panic!("no answer: {answer:?}");
        };
        (head.to_owned(), body.to_owned())
    }

    /// A request with a body: the answer's status and body.
    ///
    /// # Panics
    ///
    /// When there is no answer.
    #[must_use]
    pub fn post(&self, path: &str, body: &str) -> (u16, String) {
        let headers = format!("Content-Length: {}\r\n", body.len());
        let (head, body) = self.http_sending("POST", path, &headers, body);
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
        (status.unwrap_or_else(|| panic!("no status: {head}")), body)
    }

    fn has_ended(&self) -> Option<String> {
        let child = self.child.as_ref()?;
        // Not `try_wait`, which would need it to be ours alone.
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).ok()?;
        let (_, state) = stat.rsplit_once(") ")?;
        state.starts_with('Z').then(|| state.to_owned())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Object {
    /// A string; empty when it is null or missing.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.0.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number.
    ///
    /// # Panics
    ///
    /// When it is none.
    #[must_use]
    pub fn number(&self, key: &str) -> u64 {
        let number = self.0.get(key).and_then(Value::as_u64);
        number.unwrap_or_else(|| panic!("{key} is no number in {self:?}"))
    }

    /// A number that need not be whole.
    ///
    /// # Panics
    ///
    /// When it is none.
    #[must_use]
    pub fn float(&self, key: &str) -> f64 {
        let number = self.0.get(key).and_then(Value::as_f64);
        number.unwrap_or_else(|| panic!("{key} is no number in {self:?}"))
    }

    /// A number that may be null.
    ///
    /// # Panics
    ///
    /// When it is neither.
    #[must_use]
    pub fn optional(&self, key: &str) -> Option<u64> {
        (self.0.get(key) != Some(&Value::Null)).then(|| self.number(key))
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> &str {
        self.text("state")
    }

    /// Its name and index, such as `web.0`.
    ///
    /// # Panics
    ///
    /// When it has none.
    #[must_use]
    pub fn replica(&self) -> String {
        format!("{}.{}", self.text("name"), self.number("index"))
    }
}

/// The exit status of a child that has ended; 128 + the signal that ended it.
///
/// # Panics
///
/// When it is not ours.
pub fn status(child: &mut Child) -> Option<i32> {
    let status = child.try_wait().expect("it is our child")?;
    let signal = || 128_i32.saturating_add(status.signal().unwrap_or_default());
    Some(status.code().unwrap_or_else(signal))
}

/// Looks until something is found or patience ends.
pub fn poll<T>(look: impl FnMut() -> Option<T>) -> Option<T> {
    poll_for(PATIENCE, look)
}

/// The same with another patience.
pub fn poll_for<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if start.elapsed() > patience {
            return None;
        }
        std::thread::sleep(PERIOD);
    }
}

/// Reads objects, in an array or one behind the other.
///
/// # Panics
///
/// When they are none.
#[must_use]
pub fn objects(json: &str) -> Vec<Object> {
    let values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
    let values = values.flat_map(|value| match value.expect(json) {
        Value::Array(values) => values,
        value => vec![value],
    });
    let object = |value| match value {
        Value::Object(object) => Object(object),
        other => panic!("{other} is no object in {json}"),
    };
    values.map(object).collect()
}

#[cfg(test)]
mod tests {
    use super::objects;

    #[test]
    fn objects_are_read_from_arrays_and_lines() {
        for json in [
            "[\n  {\n    \"name\": \"a\\n\\u0041\",\n    \"n\": 7,\n    \"x\": null\n  }\n]\n",
            "{\"name\":\"a\\nA\",\"n\":7,\"x\":null}\n",
        ] {
            let read = objects(json);
            assert_eq!(read.len(), 1, "{json}");
            assert_eq!(read[0].text("name"), "a\nA");
            assert_eq!((read[0].number("n"), read[0].optional("x")), (7, None));
        }
        assert_eq!(objects("[]\n"), []);
    }
}
