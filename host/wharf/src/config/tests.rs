//! Files and what is said of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use wharf_model::cell::Restart;

use wharf_policy::OnFault;

use super::{Config, ConfigError, Host, NetDevice, Policy, Publish, Task};
use crate::cell::{Clones, LogFile, TaskSpec};
use crate::device::{Block, BlockMode, Medium};

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("wharf.toml"))
}

/// Every problem of `text`, without the file's name.
fn problems(text: &str) -> Vec<String> {
    let error = parse(text).expect_err(text);
    let problems = error.problems().map(ToString::to_string);
    problems
        .map(|problem| problem.strip_prefix("wharf.toml:").unwrap().to_owned())
        .collect()
}

/// A task that is complete but for what `lines` add.
fn task(lines: &str) -> String {
    format!("[[task]]\nname = \"web\"\nimage = \"http.elf\"\n{lines}\n")
}

const FULL: &str = r#"
[host]
workers = 2
socket = "wharf.sock"

[policy.scheduler]
plugin = "plugins/fair-share"
deadline = "1ms"
on-fault = "built-in"
config = { boost = 2 }

[policy.router]
plugin = "/plugins/sticky.wasm"
on-fault = "deny"

[[task]]
name = "web"
image = "guest-kernel/apps#http"
args = ["--greeting", "hello"]
memory = "64MiB"
replicas = 2
weight = 200
restart = "always"
stop-timeout = "250ms"
publish = ["127.0.0.1:8080:80", "[::1]:8080:80", "81:80"]
labels = { tier = "front" }

[[task.block]]
device = "data"
file = "data.img"
size = "64MiB"
mode = "cow"

[task.log]
file = "web.log"
size = "1MiB"
keep = 7

[[task]]
name = "wire"
image = "/images/wire.elf"

[[task.net]]
device = "lan"
tap = "tap0"

[[task.net]]
device = "dmz"

[[task]]
name = "plain"
image = "/images/plain.elf"
"#;

#[test]
fn every_key_of_the_contract_is_read() {
    let config = Config::parse(FULL, Path::new("/srv/cell/wharf.toml")).unwrap();
    assert_eq!(
        config.host,
        Host {
            workers: Some(2),
            socket: Some("/srv/cell/wharf.sock".into()),
        }
    );
    let scheduler = Policy {
        plugin: "/srv/cell/plugins/fair-share".into(),
        deadline: Some(Duration::from_millis(1)),
        on_fault: OnFault::BuiltIn,
        config: toml::toml! { boost = 2 },
    };
    let router = Policy {
        plugin: "/plugins/sticky.wasm".into(),
        deadline: None,
        on_fault: OnFault::Deny,
        config: toml::Table::new(),
    };
    assert_eq!(config.policies.scheduler, Some(scheduler));
    assert_eq!(config.policies.router, Some(router));
    assert_eq!(config.policies.upgrader, None);

    let [task, wire, _] = config.tasks.as_slice() else {
        panic!("{:?}", config.tasks);
    };
    let net = |device: &str, tap: Option<&str>| NetDevice {
        device: device.to_owned(),
        tap: tap.map(str::to_owned),
    };
    let nets = [net("lan", Some("tap0")), net("dmz", None)];
    assert_eq!(wire.spec.nets, nets);
    let web = &task.spec;
    assert_eq!(web.name, "web");
    assert_eq!(web.image, Path::new("/srv/cell/guest-kernel/apps#http"));
    let args = wharf_machine::Args::new(["--greeting", "hello"]).unwrap();
    assert_eq!(web.boot.args, args);
    assert_eq!(web.boot.memory, 64 << 20);
    assert_eq!((web.replicas, web.weight), (2, 200));
    assert_eq!(web.restart, Restart::Always);
    assert_eq!(web.grace, Duration::from_millis(250));
    assert_eq!(web.labels, [("tier".to_owned(), "front".to_owned())].into());
    let publish = |address: &str| Publish {
        address: address.parse().unwrap(),
        guest_port: 80,
    };
    assert_eq!(
        web.publish,
        ["127.0.0.1:8080", "[::1]:8080", "127.0.0.1:81"].map(publish)
    );
    let block = Block {
        device: "data".to_owned(),
        medium: Medium::File {
            file: "/srv/cell/data.img".into(),
            size: Some(64 << 20),
            mode: BlockMode::CopyOnWrite,
        },
    };
    assert_eq!(web.blocks, [block]);
    let log = LogFile {
        file: "/srv/cell/web.log".into(),
        size: 1 << 20,
        keep: 7,
    };
    assert_eq!(web.log, Some(log));
    let built = TaskSpec {
        image: "/built/http.elf".into(),
        ..web.clone()
    };
    assert_eq!(task.spec("/built/http.elf".into()), built);
}

#[test]
fn a_task_is_made_of_a_snapshot() {
    let text = "[[task]]\nname = \"a\"\nfrom = \"a.snap\"\nwarm = 3\n\
                [[task]]\nname = \"b\"\nfrom = \"/b#c\"\n";
    let config = Config::parse(text, Path::new("/srv/cell/wharf.toml")).unwrap();
    let [a, b] = config.tasks.as_slice() else {
        panic!("{:?}", config.tasks);
    };
    assert_eq!(a.spec.image, Path::new("/srv/cell/a.snap"));
    assert_eq!(a.spec.clones, Some(Clones { warm: 3 }));
    assert_eq!(b.spec.image, Path::new("/b#c"));
    assert_eq!(b.spec.clones, Some(Clones { warm: 0 }));
}

#[test]
fn what_is_not_written_has_a_default() {
    let text = task("log = { file = \"./web.log\" }");
    let config = parse(&text).unwrap();
    assert_eq!(config.host, Host::default());
    let [Task { spec: task }] = config.tasks.as_slice() else {
        panic!("{:?}", config.tasks);
    };
    assert_eq!(task.boot.memory, 32 << 20);
    assert_eq!(task.boot.generation, 1);
    assert_eq!((task.replicas, task.weight), (1, 100));
    assert_eq!(task.restart, Restart::OnFailure);
    assert_eq!(task.grace, Duration::from_secs(5));
    let log = task.log.as_ref().unwrap();
    assert_eq!((log.size, log.keep), (16 << 20, 3));
    assert!(task.boot.args == wharf_machine::Args::default() && task.labels.is_empty());
    assert!(task.publish.is_empty() && task.blocks.is_empty() && task.nets.is_empty());
}

#[test]
fn paths_are_relative_to_the_file() {
    for (file, image, resolved) in [
        ("wharf.toml", "http.elf", "http.elf"),
        ("cell/wharf.toml", "apps#http", "cell/apps#http"),
        ("cell/wharf.toml", "../http.elf", "cell/../http.elf"),
        ("cell/wharf.toml", "/http.elf", "/http.elf"),
    ] {
        let text = format!("[[task]]\nname = \"a\"\nimage = \"{image}\"\n");
        let config = Config::parse(&text, Path::new(file)).unwrap();
        assert_eq!(
            config.tasks[0].spec.image,
            PathBuf::from(resolved),
            "{file}"
        );
    }
}

#[test]
fn each_mistake_is_told_with_its_place_and_the_way_out() {
    for (text, told) in [
        (
            "",
            "1:1: there is no task: add [[task]] with a name and an image",
        ),
        (
            "[host]\nworkers = 1\n",
            "1:1: there is no task: add [[task]] with a name and an image",
        ),
        (
            "task = []",
            "1:8: task is empty: add [[task]] with a name and an image",
        ),
        ("task = 1", "1:8: task cannot be an integer: write [[task]]"),
        (
            "[task]\nname = \"a\"",
            "1:1: task cannot be a table: write [[task]]",
        ),
        ("task = [\"a\"]", "1:9: task cannot be text: write [[task]]"),
        (
            "[[task]]\nname = \"web\"",
            "1:1: a task needs image: write image = \"http.elf\"",
        ),
        (
            "[[task]]\nimage = \"web\"",
            "1:1: a task needs name: write name = \"web\"",
        ),
        (
            "[[task]]\nname = \"w\"\nimage = \"i\"\n[[tasks]]\n",
            "4:3: unknown key \"tasks\": did you mean \"task\"?",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\n[[task]]\nname = \"a\"\nimage = \"i\"",
            "5:8: name \"a\" is taken at line 2: choose another",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\nlog.file = \"x.log\"\n[[task]]\nname = \"b\"\nimage = \"i\"\nlog.file = \"./x.log\"",
            "8:12: file is another task's log at line 4: name another",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\nlog.file = \"x.log\"\n[[task]]\nname = \"b\"\nimage = \"i\"\nlog.file = \"y/../x.log\"",
            "8:12: file is another task's log at line 4: name another",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\nlog.file = \"x.log\"\n[[task]]\nname = \"b\"\nimage = \"i\"\nlog.file = \"x.log.3\"",
            "8:12: file is another task's log at line 4: name another",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\nlog.file = \"x.log.1\"\n[[task]]\nname = \"b\"\nimage = \"i\"\nlog.file = \"x.log\"",
            "8:12: file is another task's log at line 4: name another",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\npublish = [\"80:80\"]\n[[task]]\nname = \"b\"\nimage = \"i\"\npublish = [\"0.0.0.0:80:81\"]",
            "8:12: publish 0.0.0.0:80 is taken at line 4: choose another port",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\nnet = [{ device = \"d\", tap = \"t\" }]\n[[task]]\nname = \"b\"\nimage = \"i\"\nnet = [{ device = \"d\", tap = \"t\" }]",
            "8:30: tap \"t\" is another device's at line 4: name another interface",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\nreplicas = 100\n[[task]]\nname = \"b\"\nimage = \"i\"\nreplicas = 29",
            "8:12: replicas come to 129 in all: lower them to 128, since KVM's notifier cost grows with the machines of a process",
        ),
        (
            "[[task]]\nname = \"é\"\nimage = \"i\"",
            "2:8: name \"é\" is no name: use 1 to 63 letters, digits, - and _",
        ),
        (
            "\u{feff}task = 1",
            "1:8: task cannot be an integer: write [[task]]",
        ),
        (
            "x = \"é\"  # é\r\ntask = [{ name = \"a\", image = \"i\" }]",
            "1:1: unknown key \"x\": the file takes host, policy, task",
        ),
        (
            "task = [{ name = \"é\", image = \"i\" }]",
            "1:18: name \"é\" is no name: use 1 to 63 letters, digits, - and _",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\n[host]\nworkers = 0",
            "5:11: workers 0 is out of range: write 1 to 256",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\nfrom = \"s\"",
            "3:9: image is in the snapshot: write image or from",
        ),
        (
            "[[task]]\nname = \"a\"\nfrom = \"s\"\nargs = [\"x\"]",
            "4:8: args is what it was when the snapshot was taken: take it out",
        ),
        (
            "[[task]]\nname = \"a\"\nfrom = \"s\"\nmemory = \"1MiB\"",
            "4:10: memory is what it was when the snapshot was taken: take it out",
        ),
        (
            "[[task]]\nname = \"a\"\nfrom = \"s\"\nwarm = 65",
            "4:8: warm 65 is out of range: write 0 to 64",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\nwarm = 1",
            "4:8: warm needs a snapshot: write from = \"FILE\"",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\n[host]\nworkers = 257",
            "5:11: workers 257 is out of range: write 1 to 256",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\n[host]\nworkers = \"2\"",
            "5:11: workers cannot be text: write workers = 2",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\n[host]\nworker = 2",
            "5:1: unknown key \"worker\": did you mean \"workers\"?",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\n[host]\nsocket = \"\"",
            "5:10: socket is empty: write socket = \"wharf.sock\"",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\nhost = 1",
            "4:1: unknown key \"host\": a task takes name, image, from, warm, args, memory, replicas, weight, restart, stop-timeout, publish, joins, labels, log, block, net",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\n[policy.sheduler]\nplugin = \"p\"",
            "4:9: unknown key \"sheduler\": did you mean \"scheduler\"?",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\n[policy.scheduler]\ndeadline = \"1ms\"",
            "4:1: a policy needs plugin: write plugin = \"plugins/fair-share\"",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\n[policy.scheduler]\nplugin = \"p\"\ndeadline = \"0ms\"",
            "6:12: deadline leaves no time: write deadline = \"1ms\"",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\n[policy.scheduler]\nplugin = \"p\"\ndeadline = \"1\"",
            "6:12: deadline \"1\" needs a number and a unit, such as 250ms",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\n[policy.scheduler]\nplugin = \"p\"\non-fault = \"deny\"",
            "6:12: on-fault cannot be \"deny\": write \"built-in\"",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\n[policy.router]\nplugin = \"p\"\non-fault = \"allow\"",
            "6:12: on-fault cannot be \"allow\": write \"built-in\" or \"deny\"",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\n[policy.router]\nplugin = \"p\"\nconfig = 1",
            "6:10: config cannot be an integer: write config = { boost = 2 }",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\n[policy.router]\nplugin = \"p\"\nconfig = { a = 99999999999999999999 }",
            "6:16: config holds a number that is too large: write it as text",
        ),
        (
            "[[task]]\nname = \"a\"\nimage = \"i\"\n[policy.router]\nplugin = \"p\"\non_fault = \"deny\"",
            "6:1: unknown key \"on_fault\": did you mean \"on-fault\"?",
        ),
        (
            "[[task]]\nmemory = 32MiB",
            "2:10: 32MiB is no value: put text in quotes, as in \"32MiB\"",
        ),
        (
            "[[task]]\nname = ",
            "2:8: there is no value: write one, text in quotes",
        ),
        (
            "[[task]]\nname = \"a\"\nname = \"b\"",
            "3:1: \"name\" is there twice: keep one",
        ),
        ("[[task]", "1:8: unclosed array table, expected `]`"),
        ("a = [1,", "1:8: unclosed array, expected `]`"),
        (
            "a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a = 1",
            "1:1: this is nested too deep: put tables into fewer others",
        ),
        (
            "[[task]]\nname \"a\"",
            "2:6: key with no value, expected `=`",
        ),
    ] {
        assert_eq!(problems(text), [told], "{text}");
    }
}

#[test]
fn each_mistake_in_a_task_is_told_with_its_place_and_the_way_out() {
    for (lines, told) in [
        (
            "name2 = 1",
            "4:1: unknown key \"name2\": did you mean \"name\"?",
        ),
        (
            "replica = 2",
            "4:1: unknown key \"replica\": did you mean \"replicas\"?",
        ),
        (
            "Memory = \"1MiB\"",
            "4:1: unknown key \"Memory\": did you mean \"memory\"?",
        ),
        (
            "colour = \"red\"",
            "4:1: unknown key \"colour\": a task takes name, image, from, warm, args, memory, replicas, weight, restart, stop-timeout, publish, joins, labels, log, block, net",
        ),
        (
            "args = \"a\"",
            "4:8: args cannot be text: write args = [\"--greeting\", \"hello\"]",
        ),
        (
            "args = [\"a\", 1]",
            "4:14: args cannot be an integer: write args = [\"--greeting\", \"hello\"]",
        ),
        (
            "args = [\"a\\u0000b\"]",
            "4:9: args hold a NUL byte, which would end the argument: take it out",
        ),
        (
            "memory = \"32\"",
            "4:10: memory \"32\" needs a number and a unit, such as 32MiB",
        ),
        (
            "memory = 32",
            "4:10: memory cannot be an integer: write memory = \"32MiB\"",
        ),
        (
            "memory = \"32MB\"",
            "4:10: memory \"32MB\": \"MB\" is no unit: use B, KiB, MiB, GiB or TiB",
        ),
        (
            "memory = \"5000B\"",
            "4:10: memory \"5000B\" is no multiple of 4KiB: write 8KiB",
        ),
        (
            "memory = \"0B\"",
            "4:10: memory is nothing: write memory = \"32MiB\"",
        ),
        (
            "memory = \"2TiB\"",
            "4:10: memory \"2TiB\" is more than a task can have: write at most 64GiB",
        ),
        (
            "memory = \"99999999999TiB\"",
            "4:10: memory \"99999999999TiB\" is too large: write memory = \"32MiB\"",
        ),
        (
            "replicas = 0",
            "4:12: replicas 0 is out of range: write 1 to 100",
        ),
        (
            "replicas = 101",
            "4:12: replicas 101 is out of range: write 1 to 100",
        ),
        (
            "replicas = -1",
            "4:12: replicas -1 is out of range: write 1 to 100",
        ),
        (
            "replicas = 1.5",
            "4:12: replicas cannot be a float: write replicas = 2",
        ),
        (
            "replicas = \"2\"",
            "4:12: replicas cannot be text: write replicas = 2",
        ),
        (
            "weight = 0",
            "4:10: weight 0 is out of range: write 1 to 10000",
        ),
        (
            "weight = 10001",
            "4:10: weight 10001 is out of range: write 1 to 10000",
        ),
        (
            "restart = \"sometimes\"",
            "4:11: restart cannot be \"sometimes\": write \"never\" or \"on-failure\" or \"always\"",
        ),
        (
            "restart = true",
            "4:11: restart cannot be a boolean: write restart = \"on-failure\"",
        ),
        (
            "stop-timeout = \"5\"",
            "4:16: stop-timeout \"5\" needs a number and a unit, such as 250ms",
        ),
        (
            "stop-timeout = \"5 fortnights\"",
            "4:16: stop-timeout \"5 fortnights\": \"fortnights\" is no unit: use ns, us, ms, s, min or h",
        ),
        (
            "stop-timeout = 5",
            "4:16: stop-timeout cannot be an integer: write stop-timeout = \"5s\"",
        ),
        (
            "labels = [\"a\"]",
            "4:10: labels cannot be an array: write labels = { tier = \"front\" }",
        ),
        (
            "labels = { a = 1 }",
            "4:16: labels cannot be an integer: write labels = { tier = \"front\" }",
        ),
        (
            "log = \"web.log\"",
            "4:7: log cannot be text: write log = { file = \"web.log\" }",
        ),
        (
            "log = {}",
            "4:7: a log needs file: write file = \"web.log\"",
        ),
        (
            "log = { file = \"\" }",
            "4:16: file is empty: write file = \"web.log\"",
        ),
        (
            "log = { file = \"a\\u0000\" }",
            "4:16: file holds a NUL byte: take it out",
        ),
        (
            "log = { file = \"a\", size = \"0B\" }",
            "4:28: size is nothing: write size = \"16MiB\"",
        ),
        (
            "log = { file = \"a\", keep = 101 }",
            "4:28: keep 101 is out of range: write 0 to 100",
        ),
        (
            "log = { file = \"a\", sise = \"1MiB\" }",
            "4:21: unknown key \"sise\": did you mean \"size\"?",
        ),
        (
            "joins = 7",
            "4:9: joins cannot be an integer: write joins = \"web\"",
        ),
        (
            "joins = \"webb\"",
            "4:9: joins \"webb\" is no task that publishes a port: name one",
        ),
        (
            "publish = \"80:80\"",
            "4:11: publish cannot be text: write publish = [\"127.0.0.1:8080:80\"]",
        ),
        (
            "publish = [\"80\"]",
            "4:12: publish \"80\" is not [ADDR:]PORT:GUESTPORT: write publish = [\"127.0.0.1:8080:80\"]",
        ),
        (
            "publish = [\"0:80\"]",
            "4:12: publish port \"0\" is not 1 to 65535: write publish = [\"127.0.0.1:8080:80\"]",
        ),
        (
            "publish = [\"80:0\"]",
            "4:12: publish port \"0\" is not 1 to 65535: write publish = [\"127.0.0.1:8080:80\"]",
        ),
        (
            "publish = [\"80:65536\"]",
            "4:12: publish port \"65536\" is not 1 to 65535: write publish = [\"127.0.0.1:8080:80\"]",
        ),
        (
            "publish = [\"+80:80\"]",
            "4:12: publish port \"+80\" is not 1 to 65535: write publish = [\"127.0.0.1:8080:80\"]",
        ),
        (
            "publish = [\"localhost:80:80\"]",
            "4:12: publish address \"localhost\" is neither IPv4 nor [IPv6]: write publish = [\"127.0.0.1:8080:80\"]",
        ),
        (
            "publish = [\"::1:80:80\"]",
            "4:12: publish address ::1 needs brackets, as in [::1]: write publish = [\"127.0.0.1:8080:80\"]",
        ),
        (
            "publish = [\"[127.0.0.1]:80:80\"]",
            "4:12: publish address \"[127.0.0.1]\" is neither IPv4 nor [IPv6]: write publish = [\"127.0.0.1:8080:80\"]",
        ),
        (
            "publish = [\":80:80\"]",
            "4:12: publish address \"\" is neither IPv4 nor [IPv6]: write publish = [\"127.0.0.1:8080:80\"]",
        ),
        (
            "publish = [\"80:80\", \"127.0.0.1:80:81\"]",
            "4:21: publish 127.0.0.1:80 is taken at line 4: choose another port",
        ),
        (
            "publish = [\"[::]:80:80\", \"[::1]:80:81\"]",
            "4:26: publish [::1]:80 is taken at line 4: choose another port",
        ),
        (
            "publish = [\"127.0.0.1:80:80\", \"[::ffff:127.0.0.1]:80:81\"]",
            "4:31: publish 127.0.0.1:80 is taken at line 4: choose another port",
        ),
        (
            "[task.block]\ndevice = \"d\"",
            "4:1: block cannot be a table: write [[task.block]]",
        ),
        (
            "[[task.block]]\nfile = \"f\"",
            "4:1: a block device needs device: write device = \"data\"",
        ),
        (
            "[[task.block]]\ndevice = \"d\"",
            "4:1: a block device needs file: write file = \"data.img\"",
        ),
        (
            "[[task.block]]\ndevice = \"a/b\"\nfile = \"f\"",
            "5:10: device \"a/b\" is no name: use 1 to 67 letters, digits, . _ + and -",
        ),
        (
            "[[task.block]]\ndevice = \"d\"\nfile = \"f\"\nmode = \"w\"",
            "7:8: mode cannot be \"w\": write \"rw\" or \"ro\" or \"cow\" or \"memory\"",
        ),
        (
            "[[task.block]]\ndevice = \"d\"\nmode = \"memory\"",
            "4:1: a block device needs size: write size = \"64MiB\"",
        ),
        (
            "[[task.block]]\ndevice = \"d\"\nfile = \"f\"\nsize = \"1MiB\"\nmode = \"memory\"",
            "6:8: file is of no use to a disk in memory: take it out",
        ),
        (
            "[[task.block]]\ndevice = \"d\"\nfile = \"f\"\n[[task.block]]\ndevice = \"e\"\nfile = \"./f\"\nmode = \"ro\"",
            "9:8: file is another device's at line 6, and one of them writes: name another file, or write mode = \"ro\" or \"cow\" at both",
        ),
        (
            "[[task.block]]\ndevice = \"d\"\nfile = \"f\"\nsize = \"1B\"",
            "7:8: size \"1B\" is no multiple of 512B: write size = \"64MiB\"",
        ),
        (
            "[[task.block]]\ndevice = \"d\"\nfile = \"f\"\n[[task.block]]\ndevice = \"d\"\nfile = \"g\"",
            "8:10: device \"d\" is taken at line 5: give each one file",
        ),
        (
            "[[task.block]]\ndevise = \"d\"\nfile = \"f\"\ndevice = \"d\"",
            "5:1: unknown key \"devise\": did you mean \"device\"?",
        ),
        (
            "[task.net]\ndevice = \"d\"",
            "4:1: net cannot be a table: write [[task.net]]",
        ),
        (
            "[[task.net]]\ntap = \"tap0\"",
            "4:1: a net device needs device: write device = \"lan\"",
        ),
        (
            "[[task.net]]\ndevice = \"a/b\"",
            "5:10: device \"a/b\" is no name: use 1 to 67 letters, digits, . _ + and -",
        ),
        (
            "[[task.net]]\ndevice = \"d\"\n[[task.net]]\ndevice = \"d\"\ntap = \"t\"",
            "7:10: device \"d\" is taken at line 5: say it once",
        ),
        (
            "[[task.net]]\ndevice = \"d\"\ntap = 1",
            "6:7: tap cannot be an integer: write tap = \"tap0\"",
        ),
        (
            "[[task.net]]\ndevice = \"d\"\ntab = \"t\"",
            "6:1: unknown key \"tab\": did you mean \"tap\"?",
        ),
        (
            "[[task.net]]\ndevice = \"d\"\ntap = \"switch\"",
            "6:7: tap \"switch\" is what the host's switch is called: take tap out for that",
        ),
        (
            "[[task.net]]\ndevice = \"d\"\ntap = \"a234567890123456\"",
            "6:7: tap \"a234567890123456\" is no interface's name: use 1 to 15 letters, digits and signs but /, : and %",
        ),
        (
            "replicas = 2\n[[task.net]]\ndevice = \"d\"\ntap = \"t\"",
            "7:7: tap \"t\" cannot be 2 replicas' at once: write replicas = 1, or take tap out",
        ),
        (
            "[[task.net]]\ndevice = \"d\"\ntap = \"t\"\n[[task.net]]\ndevice = \"e\"\ntap = \"t\"",
            "9:7: tap \"t\" is another device's at line 6: name another interface",
        ),
        (
            "args = [\"é\", \"\"\"\nx\"\"\", 1]",
            "5:7: args cannot be an integer: write args = [\"--greeting\", \"hello\"]",
        ),
        (
            "start = 1979-05-27",
            "4:1: unknown key \"start\": did you mean \"restart\"?",
        ),
    ] {
        assert_eq!(problems(&task(lines)), [told], "{lines}");
    }
}

#[test]
fn several_mistakes_are_told_in_one_pass_and_counted_in_one_line() {
    let text = "[[task]]\nname = 1\nreplica = 2\nmemory = \"32\"\n";
    assert_eq!(
        problems(text),
        [
            "1:1: a task needs image: write image = \"http.elf\"",
            "2:8: name cannot be an integer: write name = \"web\"",
            "3:1: unknown key \"replica\": did you mean \"replicas\"?",
            "4:10: memory \"32\" needs a number and a unit, such as 32MiB",
        ]
    );
    assert_eq!(
        parse(text).unwrap_err().to_string(),
        "wharf.toml:1:1: a task needs image: write image = \"http.elf\" \
         (and 3 more: see wharf up --check)"
    );
}

#[test]
fn what_does_not_meet_is_no_clash() {
    let task =
        |name: &str, lines: &str| format!("[[task]]\nname = \"{name}\"\nimage = \"i\"\n{lines}\n");
    for (first, second) in [
        (
            "publish = [\"80:80\"]\nreplicas = 100",
            "publish = [\"81:80\"]\nreplicas = 28",
        ),
        (
            "publish = [\"0.0.0.0:80:80\"]",
            "publish = [\"[::]:80:80\"]",
        ),
        (
            "publish = [\"127.0.0.1:80:80\"]",
            "publish = [\"127.0.0.2:80:80\"]",
        ),
        ("log.file = \"a.log\"", "log.file = \"b.log\""),
        ("log.file = \"a.log\"", "log.file = \"a.log.4\""),
        ("log.file = \"../a.log\"", "log.file = \"a.log\""),
        (
            "block = [{ device = \"d\", file = \"a\" }]",
            "block = [{ device = \"d\", file = \"b\" }]",
        ),
        (
            "net = [{ device = \"d\", tap = \"tap0\" }]",
            "net = [{ device = \"d\", tap = \"tap1\" }, { device = \"e\" }]",
        ),
        (
            "net = [{ device = \"d\" }]\nreplicas = 2",
            "net = [{ device = \"d\" }]",
        ),
        (
            "block = [{ device = \"d\", file = \"a\", mode = \"ro\" }]",
            "block = [{ device = \"d\", file = \"a\", mode = \"cow\" }]",
        ),
    ] {
        parse(&(task("a", first) + &task("b", second))).unwrap();
    }
}

#[test]
fn arguments_are_limited_with_their_ends() {
    let text = |len: usize| task(&format!("args = [\"a\", \"{}\"]", "x".repeat(len)));
    parse(&text(64 * 1024 - 3)).unwrap();
    let told = ["4:8: args take 65537 bytes: shorten them to 65536, one for the end of each"];
    assert_eq!(problems(&text(64 * 1024 - 2)), told);
}

#[test]
fn what_is_no_text_is_refused_before_it_is_read() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("wharf.toml");
    let told = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let told = Config::load(&path).unwrap_err().to_string();
        told.strip_prefix(root.path().to_str().unwrap())
            .unwrap()
            .to_owned()
    };
    let utf8 = "/wharf.toml:2:3: this is not UTF-8: save the file in that encoding";
    assert_eq!(told(b"# a\n# \xff\n"), utf8);
    let large = "/wharf.toml:1:1: the file is larger than 1 MiB: \
                 name a configuration, or make several of this";
    assert_eq!(told(&vec![b' '; (1 << 20) + 1]), large);
    assert_eq!(told(&vec![0xff; (1 << 20) + 1]), large);

    fs::write(&path, FULL).unwrap();
    let image = Config::load(&path).unwrap().tasks[0].spec.image.clone();
    assert_eq!(image, root.path().join("guest-kernel/apps#http"));
    let missing = Config::load(&root.path().join("none")).unwrap_err();
    assert!(
        matches!(missing, ConfigError::Unreadable { .. }),
        "{missing}"
    );
    assert_eq!(missing.problems().count(), 0);
}

#[test]
fn a_file_that_is_wrong_everywhere_is_refused_in_few_short_lines() {
    let many = task(&format!("{} = 1", "x".repeat(1 << 19))) + &"[[task]]\n".repeat(50_000);
    let told = problems(&many);
    assert_eq!(told.len(), 100);
    assert!(told.iter().all(|line| line.len() < 300));
    for opening in ["[", "{a=", "a."] {
        let deep = format!("a = {}", opening.repeat(100_000));
        assert_eq!(problems(&deep).len(), 1);
    }
}

/// Nothing that stands in a file, nor its name, reaches a terminal as a command.
#[test]
fn a_file_does_not_command_the_terminal() {
    let base = "[[task]]\nname = \"a\"\nimage = \"x\"\n";
    for odd in [
        "memory = \x1b[31mred",
        "memory = \"\x1b[31m\"",
        "\"\x1b[31m\" = 1",
        "\"\\u001b[31m\" = 1",
        "memory = \"\\u001b[31m\"",
        "memory = \x7f",
        "memory = \u{202e}gnp",
        "\"\u{202e}gnp\" = 1",
        "restart = \"\\u009b31m\"",
        "publish = [\"\\u001b\\n:80:80\"]",
        "log.file = \"\\u0000\"",
        "\"\\u001b\" = 1\n\"\\u001b\" = 2",
    ] {
        let path = Path::new("\x1b]0;\u{202e}\n.toml");
        let error = Config::parse(&format!("{base}{odd}\n"), path).unwrap_err();
        for line in error.problems().map(ToString::to_string) {
            let commands = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
            assert!(!line.contains(commands), "{odd:?}: {line:?}");
        }
    }
}

/// As in `wharf up <(generate)`.
#[test]
fn a_pipe_is_read_to_its_end() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let writer = std::thread::spawn({
        let path = path.clone();
        move || fs::write(path, task(""))
    });
    assert_eq!(Config::load(&path).unwrap().tasks.len(), 1);
    writer.join().unwrap().unwrap();
}

#[test]
fn a_mebibyte_of_tasks_is_refused_at_once() {
    let tasks: String = (0..25_000)
        .map(|number| format!("[[task]]\nname = \"t{number}\"\nimage = \"x\"\n"))
        .collect();
    assert!(tasks.len() > 900_000);
    assert_eq!(problems(&tasks).len(), 1, "there are too many, said once");
    let labels: Vec<_> = (0..60_000).map(|n| format!("k{n} = \"v\"")).collect();
    parse(&task(&format!("labels = {{ {} }}", labels.join(", ")))).unwrap();
}

#[test]
fn numbers_end_where_they_can_be_counted() {
    for (line, what) in [
        ("memory = \"18446744073709551616B\"", "too large"),
        ("memory = \"16777216TiB\"", "too large"),
        (
            "memory = \"18446744073709547520B\"",
            "more than a task can have",
        ),
        ("stop-timeout = \"18446744073709551616ns\"", "too large"),
        ("stop-timeout = \"5124096h\"", "too large"),
        ("weight = 4294967297", "out of range"),
        ("replicas = 99999999999999999999999", "out of range"),
        ("replicas = -9223372036854775809", "out of range"),
        (
            "log = { file = \"x\", size = \"18446744073709551615KiB\" }",
            "too large",
        ),
    ] {
        let told = problems(&task(line));
        assert!(
            told.len() == 1 && told[0].contains(what),
            "{line}: {told:?}"
        );
    }
    parse(&task("stop-timeout = \"18446744073709551615ns\"")).unwrap();
}

proptest! {
    #[test]
    fn no_text_is_too_odd(text in any::<String>()) {
        let _ = parse(&text);
    }

    /// Text that is TOML more often than not.
    #[test]
    fn no_file_is_too_odd(
        lines in prop::collection::vec(
            (
                "(\\[host\\]|\\[policy\\.router\\]|\\[\\[task\\]\\]|\\[\\[task\\.block\\]\\]|\\[\\[task\\.net\\]\\]|\\[task\\.log\\])?",
                "(name|image|args|memory|replicas|publish|labels|file|size|keep|mode|device|tap|plugin|config)",
                "(1|-1|1e9|\"\"|\"é\"|\"32MiB\"|\"80:80\"|\\[\"80:80\"\\]|\\[\\[1\\]\\]|\\{a=1\\}|true|07:32:00)",
            ),
            0..12,
        )
    ) {
        let text: String = lines
            .iter()
            .map(|(table, key, value)| format!("{table}\n{key} = {value}\n"))
            .collect();
        if let Err(error) = parse(&text) {
            prop_assert!(error.problems().count() > 0);
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}
