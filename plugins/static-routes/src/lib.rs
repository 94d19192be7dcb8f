//! A router: each port to the task that the operator names, each device to the
//! back end that the operator names.
//!
//! Of several replicas that a route names, the one with the fewest connections
//! takes the next. Where none of them can take it, it is denied: a route never
//! leads elsewhere. Routes are for connections to tasks; to the outside the
//! built-in policy rules.
//!
//! | setting | |
//! |---|---|
//! | `port-8080 = "web"` | connections to port 8080 go to the task `web` |
//! | `port-8080 = "web.1"` | … to this replica of it |
//! | `other-ports = "deny"` | connections to ports without a route are denied; default `"built-in"` |
//! | `device-data = "disk-a"` | the device `data` of every task gets the back end `disk-a` |
//! | `"device-data@web" = "disk-b"` | … of this task; `@web.1`, of this replica |
//!
//! ```toml
//! [policy.router]
//! plugin = "plugins/static-routes"
//! config = { port-8080 = "web", port-8443 = "web.1", device-data = "disk-a" }
//! ```

mod bindings;

use std::sync::Mutex;

use bindings::{lifecycle, router};
use lifecycle::{Identity, Setting, Task};
use router::{AttachVerdict, Attachment, Connection, Direction, Verdict};
use wharf_plugin_settings::{Settings, open, wrong};

static POLICY: Mutex<StaticRoutes> = Mutex::new(StaticRoutes {
    ports: Vec::new(),
    other: Verdict::BuiltIn,
    devices: Vec::new(),
});

struct StaticRoutes {
    /// Ports, and the replicas that take what comes to them.
    ports: Vec<(u16, Vec<u32>)>,
    other: Verdict,
    /// Those of one replica first, then those of a task, then those of all.
    devices: Vec<Device>,
}

struct Device {
    name: String,
    /// The replicas whose it is; none when it is any's.
    of: Option<Vec<u32>>,
    backend: String,
}

impl StaticRoutes {
    fn configure(settings: Vec<Setting>, tasks: &[Task]) -> Result<Self, String> {
        let mut by = Settings::new(settings.into_iter().map(|it| (it.key, it.value)));
        let mut ports: Vec<(u16, Vec<u32>)> = Vec::new();
        for (port, to) in by.beginning("port-") {
            let key = format!("port-{port}");
            let number = port.parse().ok().filter(|it: &u16| it.to_string() == port);
            let no_port = || format!("{key} is no port: write one such as port-8080");
            let wanted = "the name of a task, or of a replica such as \"web.1\"";
            let replicas = replicas(tasks, &to).ok_or_else(|| wrong(&key, &to, wanted))?;
            ports.push((number.ok_or_else(no_port)?, replicas));
        }
        let mut devices = Vec::new();
        for (key, backend) in by.beginning("device-") {
            let (name, owner) = key.split_once('@').unzip();
            let no_task = || format!("device-{key} is of no task: write one's name after the @");
            let of = owner.map(|it| replicas(tasks, it).ok_or_else(no_task));
            let rank = owner.map_or(2, |it| if it.contains('.') { 0 } else { 1 });
            let device = Device {
                name: name.unwrap_or(&key).to_owned(),
                of: of.transpose()?,
                backend,
            };
            devices.push((rank, device));
        }
        devices.sort_by_key(|(rank, _)| *rank);
        let word = |text: &str| match text {
            "built-in" => Some(Verdict::BuiltIn),
            "deny" => Some(Verdict::Deny),
            _ => None,
        };
        let other = by.read("other-ports", Verdict::BuiltIn, "built-in or deny", word)?;
        by.finish()?;
        Ok(Self {
            ports,
            other,
            devices: devices.into_iter().map(|(_, device)| device).collect(),
        })
    }

    fn attach(&self, asked: &Attachment) -> AttachVerdict {
        let theirs = |of: &Vec<u32>| of.contains(&asked.replica);
        let is_it = |it: &&Device| it.name == asked.device && it.of.as_ref().is_none_or(theirs);
        let Some(device) = self.devices.iter().find(is_it) else {
            return AttachVerdict::BuiltIn;
        };
        let place = asked.backends.iter().position(|it| *it == device.backend);
        match place.and_then(|it| u32::try_from(it).ok()) {
            Some(place) => AttachVerdict::Backend(place),
            None => AttachVerdict::Deny(format!(
                "its device {} is to get the back end {}, which it does not have",
                device.name, device.backend
            )),
        }
    }

    fn connect(&self, asked: &Connection) -> Verdict {
        if asked.direction == Direction::Outbound {
            return Verdict::BuiltIn;
        }
        let same = |it: &&(u16, _)| it.0 == asked.destination.port;
        let Some((_, replicas)) = self.ports.iter().find(same) else {
            return self.other.clone();
        };
        // Those with the fewest connections come first.
        let mut places = (0..).zip(&asked.targets);
        let taken = places.find(|(_, target)| replicas.contains(&target.replica));
        taken.map_or(Verdict::Deny, |(place, _)| Verdict::Target(place))
    }
}

/// The replicas that `web` or `web.1` names, if there are any.
fn replicas(tasks: &[Task], named: &str) -> Option<Vec<u32>> {
    let is_named = |it: &Task| named == it.name || named == format!("{}.{}", it.name, it.index);
    let found = (0..).zip(tasks).filter(|(_, it)| is_named(it));
    let found: Vec<u32> = found.map(|(number, _)| number).collect();
    (!found.is_empty()).then_some(found)
}

struct Plugin;

impl lifecycle::Guest for Plugin {
    fn describe() -> Identity {
        Identity {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state_schema: 0,
            oldest_schema: 0,
        }
    }

    fn configure(settings: Vec<Setting>, tasks: Vec<Task>) -> Result<(), String> {
        *open(&POLICY) = StaticRoutes::configure(settings, &tasks)?;
        Ok(())
    }

    fn save() -> Vec<u8> {
        Vec::new()
    }

    fn restore(_schema: u32, _state: Vec<u8>) -> Result<(), String> {
        Err("static-routes keeps no state".to_owned())
    }
}

impl router::Guest for Plugin {
    fn attach(attachment: Attachment) -> AttachVerdict {
        open(&POLICY).attach(&attachment)
    }

    fn connect(connection: Connection) -> Verdict {
        open(&POLICY).connect(&connection)
    }
}

#[cfg(test)]
mod tests;
