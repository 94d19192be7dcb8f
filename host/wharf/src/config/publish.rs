//! Ports of a task that are reachable from outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::claims::Claims;
use super::field::Field;
use super::findings::{Findings, quote};
use crate::net::Publish;

/// Reads every port of one task.
pub(super) fn read_all(
    field: Field<'_>,
    claims: &mut Claims,
    found: &mut Findings<'_>,
) -> Option<Vec<Publish>> {
    let mut ports = Vec::new();
    for item in field.items(found)? {
        if let Some(publish) = read(item, found) {
            claims.port(item, publish, found);
            ports.push(publish);
        }
    }
    Some(ports)
}

fn read(field: Field<'_>, found: &mut Findings<'_>) -> Option<Publish> {
    let text = field.text(found)?;
    match parse(text) {
        Ok(publish) => Some(publish),
        Err(what) => {
            field.wrong_unlike(what, found);
            None
        }
    }
}

/// Reads `[ADDR:]PORT:GUESTPORT`. Without an address it is the machine's own: to be
/// reachable from elsewhere has to be asked for.
///
/// # Errors
///
/// What is wrong with it.
pub(crate) fn parse(text: &str) -> Result<Publish, String> {
    let (front, guest_port) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("{} is not [ADDR:]PORT:GUESTPORT", quote(text)))?;
    let (ip, port) = match front.rsplit_once(':') {
        Some((address, port)) => (parse_address(address)?, port),
        None => (Ipv4Addr::LOCALHOST.into(), front),
    };
    Ok(Publish {
        address: SocketAddr::new(ip, parse_port(port)?),
        guest_port: parse_port(guest_port)?,
    })
}

fn parse_address(text: &str) -> Result<IpAddr, String> {
    let bracketed = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = match bracketed {
        Some(inner) => inner.parse::<Ipv6Addr>().map(IpAddr::from),
        None => text.parse::<Ipv4Addr>().map(IpAddr::from),
    };
    match address {
        // An IPv4 address in IPv6 clothes takes the port of the IPv4 one.
        Ok(address) => Ok(address.to_canonical()),
        Err(_) if text.parse::<Ipv6Addr>().is_ok() => {
            Err(format!("address {text} needs brackets, as in [{text}]"))
        }
        Err(_) => Err(format!(
            "address {} is neither IPv4 nor [IPv6]",
            quote(text)
        )),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    // The standard library takes a sign, too.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(format!("port {} is not 1 to 65535", quote(text))),
    }
}
