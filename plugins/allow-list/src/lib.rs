//! A router: tasks connect to the outside only where a list lets them.
//!
//! Without a rule nothing is allowed. What comes from outside or goes from task to
//! task, and devices, are left to the built-in policy.
//!
//! | setting | |
//! |---|---|
//! | `allow = "10.0.0.0/8:443"` | rules for every task |
//! | `allow-web = ["192.0.2.7:*"]` | more for the task `web` |
//!
//! A rule is a network and what ports: `10.0.0.0/8:443`, `192.0.2.7:8000-8999`,
//! `[2001:db8::]/32:*`. Without `/` it is one address. Several are an array, or
//! parted by commas. A rule for IPv6 never lets an IPv4 address through that is
//! written as one of IPv6.
//!
//! ```toml
//! [policy.router]
//! plugin = "plugins/allow-list"
//! on-fault = "deny"
//! config = { allow = "10.0.0.0/8:443, [2001:db8::]/32:*" }
//! ```

mod bindings;

use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Mutex;

use bindings::{lifecycle, router};
use lifecycle::{Identity, Setting, Task};
use router::{AttachVerdict, Attachment, Connection, Direction, Endpoint, Verdict};
use wharf_plugin_settings::{Settings, list, open};

static POLICY: Mutex<AllowList> = Mutex::new(AllowList {
    all: Vec::new(),
    own: Vec::new(),
});

struct AllowList {
    all: Vec<Rule>,
    /// By number of the replica.
    own: Vec<Vec<Rule>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    network: u128,
    mask: u128,
    ports: RangeInclusive<u16>,
}

impl AllowList {
    fn configure(settings: Vec<Setting>, tasks: &[Task]) -> Result<Self, String> {
        let mut by = Settings::new(settings.into_iter().map(|it| (it.key, it.value)));
        let all = rules("allow", &by.text("allow").unwrap_or_default())?;
        let mut own = vec![Vec::new(); tasks.len()];
        for (name, value) in by.beginning("allow-") {
            let key = format!("allow-{name}");
            let rules = rules(&key, &value)?;
            if !tasks.iter().any(|task| task.name == name) {
                return Err(format!(
                    "{key} is of no task: write one's name after allow-"
                ));
            }
            let theirs = tasks
                .iter()
                .zip(&mut own)
                .filter(|(task, _)| task.name == name);
            for (_, own) in theirs {
                own.clone_from(&rules);
            }
        }
        by.finish()?;
        Ok(Self { all, own })
    }

    fn connect(&self, asked: &Connection) -> Verdict {
        if asked.direction != Direction::Outbound {
            return Verdict::BuiltIn;
        }
        let number = asked.from_replica.and_then(|it| usize::try_from(it).ok());
        let own = number.and_then(|it| self.own.get(it));
        let mut rules = self.all.iter().chain(own.into_iter().flatten());
        if rules.any(|rule| rule.lets(&asked.destination)) {
            Verdict::Pass
        } else {
            Verdict::Deny
        }
    }
}

impl Rule {
    fn lets(&self, to: &Endpoint) -> bool {
        let address = u128::from(to.high) << 64 | u128::from(to.low);
        address & self.mask == self.network
            && is_v4(address) == is_v4(self.network)
            && self.ports.contains(&to.port)
    }

    /// Reads a rule, or says what is wrong with it.
    fn read(text: &str) -> Result<Self, &'static str> {
        let (network, ports) = text.rsplit_once(':').ok_or("it has no port")?;
        let ports = match ports.split_once('-') {
            _ if ports == "*" => 0..=u16::MAX,
            None => port(ports)?..=port(ports)?,
            Some((from, to)) => port(from)?..=port(to)?,
        };
        let (address, prefix) = network.split_once('/').unzip();
        let address = address.unwrap_or(network);
        let opened = address.strip_prefix('[');
        let inner = opened.and_then(|it| it.strip_suffix(']'));
        let (address, bits) = match (inner.unwrap_or(address).parse(), inner) {
            (Ok(IpAddr::V4(it)), None) => (it.to_ipv6_mapped(), 32),
            (Ok(IpAddr::V6(it)), Some(_)) if is_v4(it.to_bits()) => {
                return Err("it is an IPv4 address, to be written as one");
            }
            (Ok(IpAddr::V6(it)), Some(_)) => (it, 128),
            (Ok(IpAddr::V6(_)), None) => return Err("its IPv6 address is not in [ ]"),
            _ => return Err("it has no IP address"),
        };
        let length = match prefix.map(str::parse::<u32>) {
            None => bits,
            Some(Ok(length)) if length <= bits => length,
            Some(_) => return Err("the number after / is too large, or none"),
        };
        let mask = u128::MAX
            .checked_shl(bits.saturating_sub(length))
            .unwrap_or(0);
        let network = address.to_bits();
        if network & !mask != 0 {
            return Err("its address has bits that are not of the network");
        }
        if ports.is_empty() {
            return Err("its ports end before they begin");
        }
        Ok(Self {
            network,
            mask,
            ports,
        })
    }
}

fn port(text: &str) -> Result<u16, &'static str> {
    text.parse().map_err(|_| "its port is none from 0 to 65535")
}

fn is_v4(address: u128) -> bool {
    Ipv6Addr::from_bits(address).to_ipv4_mapped().is_some()
}

fn rules(key: &str, value: &str) -> Result<Vec<Rule>, String> {
    let read = |text: &&str| {
        Rule::read(text).map_err(|what| {
            format!(
                "{key}: the rule \"{text}\" is wrong, {what}: write rules such as \
                 10.0.0.0/8:443 or [2001:db8::]/32:*"
            )
        })
    };
    list(value).iter().map(read).collect()
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
        *open(&POLICY) = AllowList::configure(settings, &tasks)?;
        Ok(())
    }

    fn save() -> Vec<u8> {
        Vec::new()
    }

    fn restore(_schema: u32, _state: Vec<u8>) -> Result<(), String> {
        Err("allow-list keeps no state".to_owned())
    }
}

impl router::Guest for Plugin {
    fn attach(_attachment: Attachment) -> AttachVerdict {
        AttachVerdict::BuiltIn
    }

    fn connect(connection: Connection) -> Verdict {
        open(&POLICY).connect(&connection)
    }
}

#[cfg(test)]
mod tests;
