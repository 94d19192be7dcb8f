//! Disks, as an operator and a guest have them: the real binary, real files.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wharf_tests::command::{Printed, app, output, policy, wharf};
use wharf_tests::guest::kvm;
use wharf_tests::host::{Host, poll};

const MIB: u64 = 1 << 20;

/// `wharf run` of an app with these disks, which is called `it`.
fn run(app_name: &str, disks: &[String], args: &[&str]) -> Command {
    let mut command = wharf(["run", "--timeout", "60s", "--name", "it"]);
    for disk in disks {
        command.args(["--block", disk]);
    }
    command.arg(app(app_name)).arg("--").args(args);
    command
}

fn disk(path: &Path, options: &str) -> String {
    format!("data={}{options}", path.display())
}

/// A file of so many bytes, all of this value.
fn file(directory: &Path, name: &str, len: u64, value: u8) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, vec![value; usize::try_from(len).unwrap()]).unwrap();
    path
}

#[test]
fn what_one_run_flushed_the_next_one_reads() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new.img");
    for number in 1..=3 {
        let printed = output(&mut run("disk", &[disk(&path, ",size=1MiB")], &[]));
        let told = format!("1048576 bytes\nrun {number}\nflushed\n");
        assert_eq!(
            (printed.status, printed.stdout),
            (0, told),
            "{}",
            printed.stderr
        );
    }
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, MIB);
    assert!(
        bytes[..512]
            .iter()
            .chain(&bytes[bytes.len() - 512..])
            .all(|&it| it == 3)
    );
    assert!(bytes[512..bytes.len() - 512].iter().all(|&it| it == 0));
}

/// The guest writes a pattern over the whole disk in requests of many sizes, reads it
/// back, and so does the host.
#[test]
fn data_comes_back_as_it_was_written() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), "d.img", 8 * MIB, 0xFF);
    for (options, reaches_file) in [("", true), (",cow", false)] {
        let before = fs::read(&path).unwrap();
        let printed = output(&mut run("diskload", &[disk(&path, options)], &["verify"]));
        assert_eq!(
            (printed.status, printed.stdout.as_str()),
            (0, "verified\n"),
            "{}",
            printed.stderr
        );
        assert_eq!(
            fs::read(&path).unwrap() != before,
            reaches_file,
            "{options}"
        );
        fs::write(&path, vec![0xFF; 8 << 20]).unwrap();
    }
    let printed = output(&mut run(
        "diskload",
        &["data=memory:8MiB".to_owned()],
        &["verify"],
    ));
    assert_eq!(
        (printed.status, printed.stdout.as_str()),
        (0, "verified\n"),
        "{}",
        printed.stderr
    );
}

#[test]
fn a_read_only_disk_is_read_and_never_written() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), "d.img", MIB, 4);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let printed = output(&mut run("diskload", &[disk(&path, ",ro")], &["write"]));
    assert_eq!(
        printed.stdout, "the disk is read-only\n",
        "{}",
        printed.stderr
    );
    let printed = output(&mut run("disk", &[disk(&path, ",ro")], &[]));
    assert_eq!(
        printed.stdout, "1048576 bytes\nrun 5\n",
        "{}",
        printed.stderr
    );
    assert_eq!(fs::read(&path).unwrap(), [4; 1 << 20]);
}

#[test]
fn readers_share_a_file_and_a_writer_has_it_alone() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), "d.img", MIB, 0);
    let mut holder = hold(&path, "");
    for options in ["", ",ro", ",cow"] {
        let printed = output(&mut run("disk", &[disk(&path, options)], &[]));
        let pid = holder.id();
        let told = format!(
            "wharf: task it: device \"data\": {} is in use by process {pid} (wharf): end that \
             first, or name another file\n",
            path.display()
        );
        assert_eq!((printed.status, printed.stderr), (125, told), "{options}");
    }
    end(&mut holder);
    let mut holder = hold(&path, ",ro");
    for (options, status) in [(",ro", 0), (",cow", 0), ("", 125)] {
        let printed = output(&mut run("disk", &[disk(&path, options)], &[]));
        assert_eq!(printed.status, status, "{options}: {}", printed.stderr);
    }
    end(&mut holder);
}

/// The guest counts up on its disk, flushes, and says so, until the host is killed. No
/// number that it said is missing then.
#[test]
fn what_was_flushed_survives_the_hosts_violent_death() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), "d.img", MIB, 0);
    for _ in 0..3 {
        let mut child = run("diskload", &[disk(&path, "")], &["count"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut last = 0;
        for line in lines.by_ref().take(40) {
            last = line.unwrap().parse::<u64>().unwrap();
        }
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            last = line.parse().unwrap_or(last);
        }
        let mut sector = [0; 8];
        File::open(&path)
            .unwrap()
            .read_exact_at(&mut sector, 0)
            .unwrap();
        let kept = u64::from_le_bytes(sector);
        assert!(kept >= last && last > 0, "said {last}, kept {kept}");
    }
}

/// A file system of 64 KiB under a disk of 8 MiB.
#[test]
fn a_full_file_system_is_an_error_to_the_guest_and_nothing_to_the_host() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let Some(small) = Tmpfs::mount(directory.path(), "size=64k") else {
        return;
    };
    let path = small.0.join("d.img");
    let disks = [disk(&path, ",size=8MiB")];
    let printed = output(&mut run("diskload", &disks, &["verify"]));
    assert_eq!(
        (printed.status, printed.stdout.as_str()),
        (1, "Error: Io\n"),
        "{}",
        printed.stderr
    );
    assert_eq!(printed.stderr, "", "the host has nothing to say");
    // What fits still works.
    fs::remove_file(&path).unwrap();
    let printed = output(&mut run("disk", &disks, &[]));
    assert_eq!(printed.status, 0, "{}", printed.stderr);
}

/// Another task of the host goes on while one's file is cut short below it.
#[test]
fn a_file_that_loses_its_end_is_an_error_to_its_guest_only() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let image = file(path, "d.img", MIB, 0);
    let toml = format!(
        "[[task]]\nname = \"disk\"\nimage = \"{}\"\nargs = [\"poll\"]\n\
         [[task.block]]\ndevice = \"data\"\nfile = \"d.img\"\n\
         [[task]]\nname = \"other\"\nimage = \"{}\"\nargs = [\"20\", \"1000000\"]\n",
        app("diskload").display(),
        app("sleep").display()
    );
    let host = Host::up(path, &toml);
    host.until("it reads", || {
        host.ask(&["logs", "disk"]).contains("ok").then_some(())
    });
    OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(512)
        .unwrap();
    let ended = host.until_task("disk.0", |task| task.optional("exit_status").is_some());
    assert_eq!(ended.optional("exit_status"), Some(1));
    assert!(host.ask(&["logs", "disk"]).contains("Error: Io"));
    // It wakes now and then, and may be seen at it.
    let other = host.until_task("other.0", |task| task.state() == "waiting");
    assert_eq!(other.number("generation"), 1);
}

#[test]
fn a_host_runs_tasks_on_disks_and_gives_them_back_at_a_restart() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let toml = format!(
        "[host]\nworkers = 2\n[[task]]\nname = \"count\"\nimage = \"{}\"\nargs = [\"count\"]\n\
         [[task.block]]\ndevice = \"data\"\nfile = \"d.img\"\nsize = \"1MiB\"\n",
        app("diskload").display()
    );
    let host = Host::up(path, &toml);
    let mut said = 0;
    for generation in 1..=4 {
        // Its log holds what those before it said, too.
        host.until_task("count.0", |task| task.number("console_bytes") > said);
        let _ = host.ask(&["restart", "count"]);
        let task = host.until_task("count.0", |task| {
            task.number("generation") > generation && task.state() != "starting"
        });
        assert_eq!(task.number("generation"), generation + 1, "{task:?}");
        said = task.number("console_bytes");
    }
    let started = host.events();
    let failed = started
        .iter()
        .find(|event| event.text("kind") == "start-failed");
    assert!(failed.is_none(), "{failed:?}");
}

/// Every way in which a device cannot be had: one line with task, device and way out.
#[test]
fn a_disk_that_is_misspelt_is_refused_and_none_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d.img");
    let given = |options: &str| disk(&path, options);
    for (disks, status, told) in [
        (
            vec![given(",readonly,size=1MiB")],
            2,
            "\"readonly\" is no option",
        ),
        (vec![given(",bogus")], 2, "\"bogus\" is no option"),
        (vec!["data=memory".to_owned()], 2, "memory needs a size"),
        (
            vec![given(",size=1MiB"), "data=memory:1MiB".to_owned()],
            125,
            "--block says twice what data is",
        ),
    ] {
        let printed = output(&mut run("disk", &disks, &[]));
        assert_eq!(printed.status, status, "{disks:?}");
        assert!(printed.stderr.contains(told), "{}", printed.stderr);
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn each_refusal_names_task_device_and_way_out() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    file(path, "good.img", MIB, 0);
    file(path, "odd.img", 1000, 0);
    file(path, "empty.img", 0, 0);
    fs::create_dir(path.join("directory")).unwrap();
    nix::unistd::mkfifo(&path.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let at = |name: &str| path.join(name).display().to_string();
    let cases = [
        (
            vec![],
            "image disk declares the block device \"data\", and nothing is configured for it: add [[task.block]] with device = \"data\", or --block data=FILE".to_owned(),
        ),
        (
            vec![format!("data={}", at("good.img")), "spare=memory:1MiB".to_owned()],
            "block device \"spare\" is configured, and image disk does not declare it (it declares data): take it out, or correct its name".to_owned(),
        ),
        (
            vec![format!("data={}", at("none.img"))],
            format!("device \"data\": {} does not exist: make it, or say how large with size = \"64MiB\"", at("none.img")),
        ),
        (
            vec![format!("data={},cow,size=1MiB", at("none.img"))],
            format!("device \"data\": {} does not exist, and a disk that is only read has to: make it", at("none.img")),
        ),
        (
            vec![format!("data={},size=1MiB", at("no/where.img"))],
            format!("device \"data\": cannot make {} of 1048576 bytes: make room, or name another: No such file or directory (os error 2)", at("no/where.img")),
        ),
        (
            vec![format!("data={},size=2MiB", at("good.img"))],
            format!("device \"data\": {} has 1048576 bytes, and not the 2097152 that size says: correct size, or name another file", at("good.img")),
        ),
        (
            vec![format!("data={}", at("odd.img"))],
            format!("device \"data\": {} has 1000 bytes, which is no whole number of sectors of 512: make it one with `truncate`", at("odd.img")),
        ),
        (
            vec![format!("data={}", at("empty.img"))],
            format!("device \"data\": {} is empty: make it larger with `truncate`, or take it away and say size = \"64MiB\"", at("empty.img")),
        ),
        (
            vec![format!("data={}", at("directory"))],
            format!("device \"data\": cannot open {} to read and write: see to its permissions, or name another: Is a directory (os error 21)", at("directory")),
        ),
        (
            vec![format!("data={},ro", at("directory"))],
            format!("device \"data\": {} is no file or block device: name one", at("directory")),
        ),
        (
            vec![format!("data={}", at("pipe"))],
            format!("device \"data\": {} is no file or block device: name one", at("pipe")),
        ),
    ];
    for (disks, told) in cases {
        let printed = output(&mut run("disk", &disks, &[]));
        let told = format!("wharf: task it: {told}\n");
        assert_eq!((printed.status, printed.stderr), (125, told), "{disks:?}");
    }
    assert!(!path.join("none.img").exists());
}

#[test]
fn a_host_does_not_come_up_when_a_disk_cannot_be_had() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let refused = |blocks: &str, more: &str| -> Printed {
        let image = app("disk");
        let toml = format!(
            "[[task]]\nname = \"kv\"\nimage = \"{}\"\n{more}\n{blocks}",
            image.display()
        );
        let host = Host::new(path, &toml);
        output(&mut host.up_command(&[]))
    };
    let block =
        |device: &str, rest: &str| format!("[[task.block]]\ndevice = \"{device}\"\n{rest}\n");
    let data = block("data", "file = \"d.img\"\nsize = \"1MiB\"");
    for (blocks, more, told) in [
        (
            String::new(),
            "",
            "declares the block device \"data\", and nothing is configured for it",
        ),
        (
            data.clone() + &block("log", "mode = \"memory\"\nsize = \"1MiB\""),
            "",
            "block device \"log\" is configured, and image disk does not declare it",
        ),
        (
            block("data", "file = \"none.img\""),
            "",
            "none.img does not exist: make it, or say how large",
        ),
        (
            data,
            "replicas = 2",
            "device \"data\": 2 replicas cannot write one file: write mode = \"ro\" or \"cow\", or replicas = 1",
        ),
    ] {
        let printed = refused(&blocks, more);
        assert_eq!(printed.status, 125, "{told}: {}", printed.stderr);
        assert!(
            printed.stderr.starts_with("wharf: task kv: "),
            "{}",
            printed.stderr
        );
        assert!(printed.stderr.contains(told), "{}", printed.stderr);
        assert_eq!(printed.stderr.lines().count(), 1, "{}", printed.stderr);
        assert!(!path.join("d.img").exists(), "{told}: nothing is made");
    }
}

/// The plugin gives each replica a disk of its own, of which the image declares none
/// by name.
#[test]
fn a_router_gives_a_device_another_file() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let toml = format!(
        "[policy.router]\nplugin = \"{}\"\n\
         config = {{ \"device-data@kv.0\" = \"a\", \"device-data@kv.1\" = \"b\" }}\n\
         [[task]]\nname = \"kv\"\nimage = \"{}\"\nreplicas = 2\n\
         [[task.block]]\ndevice = \"a\"\nfile = \"a.img\"\nsize = \"1MiB\"\n\
         [[task.block]]\ndevice = \"b\"\nfile = \"b.img\"\nsize = \"2MiB\"\n",
        policy("static-routes").display(),
        app("disk").display()
    );
    let host = Host::up(path, &toml);
    // It compiles the plugin first, and answers nobody until then.
    host.until("it answers", || {
        (host.try_ask(&["ps"]).status == 0).then_some(())
    });
    for (replica, len) in [("kv.0", MIB), ("kv.1", 2 * MIB)] {
        let task = host.until_task(replica, |task| task.optional("exit_status").is_some());
        assert_eq!(task.optional("exit_status"), Some(0), "{task:?}");
        let said = format!("{len} bytes\nrun 1\nflushed\n");
        assert_eq!(host.ask(&["logs", replica]), said);
    }
    for name in ["a.img", "b.img"] {
        assert_eq!(fs::read(path.join(name)).unwrap()[0], 1, "{name}");
    }
}

/// A process that has the file for as long as it runs.
fn hold(path: &Path, options: &str) -> Child {
    let mut child = run("diskload", &[disk(path, options)], &["hold"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 5];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut said)
        .unwrap();
    assert_eq!(&said, b"held\n");
    child
}

fn end(child: &mut Child) {
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(poll(|| child.try_wait().unwrap()).is_some());
}

/// A file system in memory, for as long as this lives.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None`, aloud, for who may not mount.
    fn mount(directory: &Path, options: &str) -> Option<Self> {
        let at = directory.join("small");
        fs::create_dir(&at).unwrap();
        match mount(
            Some("none"),
            &at,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options),
        ) {
            Ok(()) => Some(Self(at)),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "SKIPPED: cannot mount a tmpfs: {error}");
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount(&self.0);
    }
}
