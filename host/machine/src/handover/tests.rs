//! Guests that go on elsewhere: between two hypervisors of one process, through the same
//! text that two processes exchange.

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use wharf_abi::{Answer, Manifest};

use super::{Announced, Carried, CarriedBackend, CarryError, Luggage, PAGE_LEN, Reserved};
use crate::device::Backend;
use crate::image::Image;
use crate::snapshot::RestoreConfig;
use crate::testing::{
    BUFFER, COUNT, DATA, Frozen, counter, disk, disk_driver, image, kvm, to_served_wait, to_wait,
    wait, word,
};
use crate::{BootConfig, Call, Exit, Hypervisor, Machine};

fn boot(kvm: &Hypervisor, image: &Image, backends: Vec<Backend>) -> Machine {
    let config = BootConfig {
        memory: 4 << 20,
        ..BootConfig::default()
    };
    Machine::boot(kvm, image, &config, backends).unwrap()
}

/// What the other process reads of what this one wrote.
fn passed<T: serde::Serialize + serde::de::DeserializeOwned>(
    it: &T,
    luggage: &Luggage,
) -> (T, Luggage) {
    let text = serde_json::to_vec(it).unwrap();
    let (files, bytes) = luggage.parts();
    let files = files.iter().map(|it| it.try_clone_to_owned().unwrap());
    (
        serde_json::from_slice(&text).unwrap(),
        Luggage::new(files.collect(), bytes.to_vec()),
    )
}

/// What another process makes ready.
fn reserve(machine: &mut Machine, kvm: &Hypervisor, image: &Arc<Image>) -> Reserved {
    let mut luggage = Luggage::default();
    let announced = machine.announce(&mut luggage).unwrap();
    let (announced, mut luggage) = passed::<Announced>(&announced, &luggage);
    Reserved::new(kvm, image, &announced, &mut luggage).unwrap()
}

/// The same guest in another process; it is left here as it was described.
fn moved(
    machine: &mut Machine,
    kvm: &Hypervisor,
    image: &Arc<Image>,
    backends: Vec<Backend>,
) -> Machine {
    let reserved = reserve(machine, kvm, image);
    let began = Instant::now();
    let mut luggage = Luggage::default();
    let carried = machine.carry(&mut luggage).unwrap();
    let described = began.elapsed();
    let (carried, mut luggage) = passed::<Carried>(&carried, &luggage);
    let other = reserved.go_on(&carried, &mut luggage, backends).unwrap();
    eprintln!(
        "described in {described:?}, gone on with after {:?}",
        began.elapsed()
    );
    other
}

#[test]
fn a_guest_goes_on_in_another_process_in_the_middle_of_a_call() {
    let Some(kvm) = kvm() else { return };
    let image = Arc::new(counter());
    for shares in [true, false] {
        let old = Hypervisor::open().unwrap();
        let old = if shares {
            old.with_shared_memory()
        } else {
            old
        };
        let mut machine = boot(&old, &image, Vec::new());
        to_wait(&mut machine, None);
        for _ in 0..4 {
            to_wait(&mut machine, Some(1));
        }
        let shows = machine.monotonic_ns();
        let mut other = moved(&mut machine, &kvm, &image, Vec::new());
        machine.let_go();
        drop(machine);
        assert_eq!(word(&other, DATA), 4);
        to_wait(&mut other, Some(77));
        assert_eq!((word(&other, DATA), word(&other, DATA + 16)), (5, 77));
        // What only the FPU knew, and a register that nothing else wrote.
        assert_eq!(word(&other, DATA + 24), 0x1122_3344_5566_7788);
        assert_eq!(word(&other, DATA + 32) as u32, 0x7F80);
        assert_eq!(other.vcpu.registers().r15, 6);
        let later = other.monotonic_ns();
        assert!((shows..shows + 30_000_000_000).contains(&later));
        // And on, to a third.
        let mut third = moved(&mut other, &old, &image, Vec::new());
        other.let_go();
        to_wait(&mut third, Some(1));
        assert_eq!(word(&third, DATA), 6);
    }
}

#[test]
fn a_guest_goes_on_that_was_interrupted_with_its_answer() {
    let Some(kvm) = kvm() else { return };
    let kvm = kvm.with_shared_memory();
    let image = Arc::new(counter());
    let mut machine = boot(&kvm, &image, Vec::new());
    // Before its first instruction, too.
    let mut machine = moved(&mut machine, &kvm, &image, Vec::new());
    to_wait(&mut machine, None);
    machine.vcpu.set_interrupted(true);
    let exit = machine.enter(Some(Answer::ok(5))).unwrap();
    assert!(matches!(exit, Exit::Interrupted), "{exit:?}");
    machine.vcpu.set_interrupted(false);
    let mut other = moved(&mut machine, &kvm, &image, Vec::new());
    to_wait(&mut other, None);
    assert_eq!((word(&other, DATA), word(&other, DATA + 16)), (1, 5));
}

#[test]
fn what_nobody_took_goes_on_as_if_nothing_had_been() {
    let Some(kvm) = kvm() else { return };
    let image = Arc::new(counter());
    for shares in [true, false] {
        let kvm = Hypervisor::open().unwrap();
        let kvm = if shares {
            kvm.with_shared_memory()
        } else {
            kvm
        };
        let mut machine = boot(&kvm, &image, Vec::new());
        to_wait(&mut machine, None);
        let reserved = reserve(&mut machine, &kvm, &image);
        machine.carry(&mut Luggage::default()).unwrap();
        machine.resume();
        to_wait(&mut machine, Some(9));
        drop(reserved);
        assert_eq!((word(&machine, DATA), word(&machine, DATA + 16)), (1, 9));
        // And once more, for good.
        let mut other = moved(&mut machine, &kvm, &image, Vec::new());
        to_wait(&mut other, Some(8));
        assert_eq!((word(&other, DATA), word(&other, DATA + 16)), (2, 8));
    }
    drop(kvm);
}

#[test]
fn a_clone_takes_along_what_it_wrote_and_shares_the_rest() {
    let Some(kvm) = kvm() else { return };
    let image = Arc::new(counter());
    let mut machine = boot(&kvm, &image, Vec::new());
    to_wait(&mut machine, None);
    let saved = machine.save(Some(Answer::ok(0))).unwrap();
    let frozen = Frozen::new(&saved, &image);
    let snapshot = frozen.open(&kvm);
    let config = RestoreConfig { generation: 2 };
    let mut clone = Machine::restore(&kvm, &snapshot, config, Vec::new()).unwrap();
    to_wait(&mut clone, None);
    to_wait(&mut clone, Some(1));
    let image = Arc::clone(snapshot.image());
    let reserved = reserve(&mut clone, &kvm, &image);
    let mut luggage = Luggage::default();
    let carried = clone.carry(&mut luggage).unwrap();
    let (numbers, _) = carried.pages.unwrap();
    let pages = luggage.bytes(numbers).unwrap().len() / 8 * PAGE_LEN;
    assert!(
        pages < 256 << 10,
        "{pages} bytes of {} in all",
        saved.resident()
    );
    let mut other = reserved.go_on(&carried, &mut luggage, Vec::new()).unwrap();
    clone.let_go();
    drop((clone, snapshot));
    to_wait(&mut other, Some(6));
    assert_eq!((word(&other, DATA), word(&other, DATA + 16)), (3, 6));
}

#[test]
fn a_guest_that_was_carried_can_be_frozen_with_pages_that_were_never_touched_here() {
    let Some(kvm) = kvm() else { return };
    let kvm = kvm.with_shared_memory();
    let image = Arc::new(counter());
    let mut machine = boot(&kvm, &image, Vec::new());
    to_wait(&mut machine, None);
    to_wait(&mut machine, Some(1));
    let mut other = moved(&mut machine, &kvm, &image, Vec::new());
    let saved = other.save(Some(Answer::ok(4))).unwrap();
    let frozen = Frozen::new(&saved, &image);
    let snapshot = frozen.open(&kvm);
    let config = RestoreConfig { generation: 2 };
    let mut clone = Machine::restore(&kvm, &snapshot, config, Vec::new()).unwrap();
    to_wait(&mut clone, None);
    assert_eq!((word(&clone, DATA), word(&clone, DATA + 16)), (2, 4));
}

#[test]
fn a_ring_goes_on_around_and_around_and_no_request_is_served_twice() {
    let Some(kvm) = kvm() else { return };
    let kvm = kvm.with_shared_memory();
    let image = Arc::new(disk_driver());
    let (old, backends) = disk(0);
    let mut machine = boot(&kvm, &image, backends);
    to_served_wait(&mut machine, None);
    for _ in 1..13 {
        to_served_wait(&mut machine, Some(0));
    }
    // Put into the ring and not looked at.
    to_wait(&mut machine, Some(0));
    let (new, backends) = disk(0);
    let mut other = moved(&mut machine, &kvm, &image, backends);
    machine.let_go();
    assert_eq!(*old.0.lock().unwrap(), 13);
    other.serve().unwrap();
    assert_eq!(*new.0.lock().unwrap(), 1);
    assert_eq!(word(&other, BUFFER), 1);
    for count in 2..20 {
        to_served_wait(&mut other, Some(0));
        assert_eq!(*new.0.lock().unwrap(), count);
    }
    assert_eq!(word(&other, COUNT), 12 + 19);
}

#[test]
fn what_a_back_end_says_of_itself_arrives() {
    let Some(kvm) = kvm() else { return };
    let image = Arc::new(disk_driver());
    let (_, backends) = disk(41);
    let mut machine = boot(&kvm, &image, backends);
    to_served_wait(&mut machine, None);
    machine.announce(&mut Luggage::default()).unwrap();
    let carried = machine.carry(&mut Luggage::default()).unwrap();
    assert!(matches!(carried.backends(), [CarriedBackend::Block(it)] if *it == 42));
}

/// A description with one thing changed is refused in a line, and nothing is left behind.
#[test]
fn what_does_not_add_up_is_refused() {
    let Some(kvm) = kvm() else { return };
    let image = Arc::new(disk_driver());
    let (_, backends) = disk(0);
    let mut machine = boot(&kvm, &image, backends);
    to_served_wait(&mut machine, None);
    let changes: [(&str, Value, &str); 9] = [
        ("/fpu", Value::from(vec![0; 127]), "floating-point"),
        ("/fpu/6", Value::from(u32::MAX), "set the FPU"),
        ("/devices/devices", Value::Array(Vec::new()), "devices"),
        (
            "/devices/devices/0/accepted/queues/0/size",
            3.into(),
            "queue",
        ),
        (
            "/devices/devices/0/accepted/queues/0/size",
            1024.into(),
            "queue",
        ),
        (
            "/devices/devices/0/accepted/queues/0/used",
            4096.into(),
            "ring",
        ),
        (
            "/devices/devices/0/accepted/queues/0/descriptors",
            (DATA + 8).into(),
            "ring",
        ),
        (
            "/devices/devices/0/accepted/features",
            u64::MAX.into(),
            "features",
        ),
        (
            "/pages",
            serde_json::json!([{"at":0,"len":8}, 0]),
            "not there",
        ),
    ];
    for (place, value, why) in changes {
        let reserved = reserve(&mut machine, &kvm, &image);
        let mut luggage = Luggage::default();
        let carried = machine.carry(&mut luggage).unwrap();
        let mut text = serde_json::to_value(&carried).unwrap();
        *text.pointer_mut(place).unwrap_or_else(|| panic!("{place}")) = value;
        let carried: Carried = serde_json::from_value(text).unwrap();
        let (_, backends) = disk(0);
        let refused = reserved
            .go_on(&carried, &mut luggage, backends)
            .unwrap_err();
        assert!(refused.to_string().contains(why), "{place}: {refused}");
    }
    let mut luggage = Luggage::default();
    let announced = machine.announce(&mut luggage).unwrap();
    let reserve = |announced: &Announced, luggage: &mut Luggage| {
        Reserved::new(&kvm, &image, announced, luggage).unwrap_err()
    };
    // Its memory has not come along, or is another's.
    let refused = reserve(&announced, &mut Luggage::default());
    assert!(matches!(refused, CarryError::Luggage(_)), "{refused}");
    let mut other = Luggage::default();
    other.put_file(tempfile::tempfile().unwrap().into());
    let refused = reserve(&announced, &mut other);
    assert!(matches!(refused, CarryError::Machine(_)), "{refused}");
    for (place, why) in [
        ("/plan/mappings/0/2", "laid out otherwise"),
        ("/cpu/features", "its CPU is"),
    ] {
        let mut text = serde_json::to_value(&announced).unwrap();
        *text.pointer_mut(place).unwrap() = 1.into();
        let announced: Announced = serde_json::from_value(text).unwrap();
        let refused = reserve(&announced, &mut luggage);
        assert!(refused.to_string().contains(why), "{refused}");
    }
    machine.resume();
    to_served_wait(&mut machine, Some(0));
}

#[test]
fn a_guest_that_is_over_does_not_go_anywhere() {
    let Some(kvm) = kvm() else { return };
    let image = Arc::new(image(Manifest::new("over", "1"), &[], |a| {
        wait(a)?;
        a.hlt()
    }));
    let mut machine = boot(&kvm, &image, Vec::new());
    to_wait(&mut machine, None);
    let exit = machine.enter(Some(Answer::ok(0))).unwrap();
    assert!(!matches!(exit, Exit::Call(Call::Wait { .. })), "{exit:?}");
    machine.announce(&mut Luggage::default()).unwrap();
    let refused = machine.carry(&mut Luggage::default()).unwrap_err();
    assert!(matches!(refused, CarryError::Over), "{refused}");
}
