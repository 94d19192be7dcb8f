//! Devices for frames of a task.

use std::collections::BTreeMap;

use super::block::read_device;
use super::claims::Claims;
use super::field::Field;
use super::findings::{Findings, quote};
use super::section::Key;
use crate::net::{NetDevice, SWITCH, is_tap_name};

const DEVICE: Key = Key::new("device", "device = \"lan\"");
const TAP: Key = Key::new("tap", "tap = \"tap0\"");

/// Reads every device for frames of one task, which has so many replicas.
pub(super) fn read_all(
    field: Field<'_>,
    replicas: u32,
    claims: &mut Claims,
    found: &mut Findings<'_>,
) -> Option<Vec<NetDevice>> {
    let mut devices = BTreeMap::new();
    let mut read = Vec::new();
    for item in field.items(found)? {
        let Some(section) = item.section("a net device", &[DEVICE, TAP], found) else {
            continue;
        };
        let device = section.require(DEVICE, found);
        let device = device.and_then(|it| read_device(it, &mut devices, "say it once", found));
        let tap = section.get(TAP);
        let tap = tap.and_then(|it| read_tap(it, replicas, claims, found));
        read.extend(device.map(|device| NetDevice { device, tap }));
    }
    Some(read)
}

fn read_tap(
    field: Field<'_>,
    replicas: u32,
    claims: &mut Claims,
    found: &mut Findings<'_>,
) -> Option<String> {
    let tap = field.text(found)?;
    let quoted = quote(tap);
    if tap == SWITCH {
        let what = format!("{quoted} is what the host's switch is called: take tap out for that");
        field.wrong(what, found);
    } else if !is_tap_name(tap) {
        let what = format!(
            "{quoted} is no interface's name: use 1 to 15 letters, digits and signs but /, : and %"
        );
        field.wrong(what, found);
    } else if replicas > 1 {
        let what = format!(
            "{quoted} cannot be {replicas} replicas' at once: write replicas = 1, or take tap out"
        );
        field.wrong(what, found);
    } else {
        claims.tap(field, tap, found);
    }
    Some(tap.to_owned())
}
