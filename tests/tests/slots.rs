//! Policy slots as whoever asks them and whoever changes them knows them. The
//! plugins are written by hand, each for what it does wrong or well; no KVM.

use std::io::Cursor;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use nix::unistd::Pid;
use wharf_model::policy::slot::State;
use wharf_model::policy::{
    Answer, AttachVerdict, Attachment, Candidate, Choice, Connection, DeviceKind, Direction,
    Endpoint, Question, SlotName, Target, Verdict, View,
};
use wharf_policy::{
    By, CarriedSlots, CarryError, Notice, NoticeKind, OnFault, Opened, Plugin, ReplayOptions,
    RollbackRefusal, Slot, SlotConfig, Slots, StateMoved, SwapOptions, SwapRefusal, TaskFacts,
    Trace, TraceLine, replay,
};
use wharf_tests::host::{PATIENCE, poll};
use wharf_tests::plugin::{LOG, PluginWat};
use wharf_tests::process::memory_kib;

/// Slots of a host with two tasks, and what is told of them.
struct Host {
    slots: Arc<Slots>,
    notices: Receiver<Notice>,
    directory: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self::with(SlotConfig::of)
    }

    fn with(config: impl Fn(SlotName) -> SlotConfig) -> Self {
        let task = |index| TaskFacts {
            name: "web".to_owned(),
            index,
            weight: 100,
            labels: Vec::new(),
        };
        let (tell, notices) = unbounded();
        let tell = move |notice| {
            let _ = tell.send(notice);
        };
        Self {
            slots: Slots::new(vec![task(0), task(1)], config, None, tell),
            notices,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn scheduler(&self) -> &Slot {
        self.slots.slot(SlotName::Scheduler)
    }

    fn open(&self, plugin: &PluginWat) -> Arc<Plugin> {
        let path = self.directory.path().join("plugin.wasm");
        plugin.write(&path);
        self.slots.open(&path).unwrap()
    }

    fn swap(&self, plugin: &PluginWat) -> Result<StateMoved, SwapRefusal> {
        let plugin = self.open(plugin);
        let done = self.scheduler().swap(&plugin, &SwapOptions::default())?;
        Ok(done.state)
    }

    fn state(&self) -> State {
        self.scheduler().status().state
    }

    /// The next notice of a kind; others before it are passed over.
    fn until(&self, kind: NoticeKind) -> Notice {
        loop {
            let notice = self.notices.recv_timeout(PATIENCE);
            let notice = notice.unwrap_or_else(|_| panic!("in vain for {kind:?}"));
            if notice.kind == kind {
                return notice;
            }
        }
    }
}

/// A question to the scheduler from a worker, with replicas 0 and 1 ready.
fn question(worker: u32) -> Question {
    let candidate = |replica| Candidate {
        replica,
        weight: 100,
        generation: 5,
        ran: 0,
        virtual_time: 0,
        ready_since: 0,
    };
    Question::Next(View {
        now: 1_000,
        worker,
        last: None,
        ready: vec![candidate(0), candidate(1)],
    })
}

fn choice(answer: &Answer) -> Choice {
    match answer {
        Answer::Next(choice) => *choice,
        other => panic!("{other:?} answers another question"),
    }
}

/// A scheduler that does as the default does on worker 0, where it is rehearsed, and
/// something else on every other.
fn elsewhere(body: &str) -> PluginWat {
    PluginWat::new("scheduler").body(
        "next",
        &format!(
            "(if (local.get 1) (then {body}))
             (i32.store (i32.const 64) (i32.load (local.get 6)))
             (i64.store (i32.const 72) (i64.load offset=8 (local.get 6)))
             (i64.store (i32.const 80) (i64.const 0))
             (i32.const 64)"
        ),
    )
}

/// A scheduler that chooses the last candidate.
fn last() -> PluginWat {
    PluginWat::new("scheduler").identity("last", "1.0.0").body(
        "next",
        "(local $at i32)
         (local.set $at (i32.add (local.get 6)
           (i32.mul (i32.sub (local.get 7) (i32.const 1)) (i32.const 40))))
         (i32.store (i32.const 64) (i32.load (local.get $at)))
         (i64.store (i32.const 72) (i64.load offset=8 (local.get $at)))
         (i64.store (i32.const 80) (i64.const 1000000))
         (i32.const 64)",
    )
}

/// A scheduler that counts its questions and gives the count as the slice, in units
/// of a millisecond from 1; the count is its state.
fn counter(version: &str) -> PluginWat {
    PluginWat::new("scheduler")
        .identity("counter", version)
        .schemas(1, 1)
        .item("(global $count (mut i32) (i32.const 0))")
        .body(
            "next",
            "(global.set $count (i32.add (global.get $count) (i32.const 1)))
             (i32.store (i32.const 64) (i32.load (local.get 6)))
             (i64.store (i32.const 72) (i64.load offset=8 (local.get 6)))
             (i64.store (i32.const 80)
               (i64.mul (i64.extend_i32_u (global.get $count)) (i64.const 1000000)))
             (i32.const 64)",
        )
        .body(
            "save",
            "(i32.store (i32.const 512) (global.get $count))
             (i32.store (i32.const 64) (i32.const 512))
             (i32.store (i32.const 68) (i32.const 4))
             (i32.const 64)",
        )
        .body(
            "restore",
            "(global.set $count (i32.load (local.get 1))) (i32.const 0)",
        )
}

fn count(host: &Host) -> u64 {
    choice(&host.scheduler().ask(&question(0))).slice / 1_000_000
}

#[test]
fn without_a_plugin_what_is_built_in_answers_and_nobody_has_to_ask() {
    let host = Host::new();
    let slot = host.scheduler();
    assert!(slot.wants(1), "a question is kept now and then");
    assert!(!slot.wants(2));
    assert!(slot.wants(20_000_000));
    assert_eq!(choice(&slot.ask(&question(0))).replica, 0);
    let status = slot.status();
    assert_eq!((status.state, status.calls), (State::BuiltIn, 0));
}

#[test]
fn a_plugin_decides_from_the_swap_on_until_it_is_taken_out() {
    let host = Host::new();
    assert_eq!(host.swap(&last()).unwrap(), StateMoved::None);
    assert!(host.scheduler().wants(2));
    let said = choice(&host.scheduler().ask(&question(0)));
    assert_eq!(
        said,
        Choice {
            replica: 1,
            generation: 5,
            slice: 1_000_000
        }
    );
    let status = host.scheduler().status();
    assert_eq!(status.plugin.as_deref(), Some("last"));
    assert_eq!((status.state, status.calls), (State::Probation, 1));
    assert_eq!((status.swaps, status.strikes), (1, 0));
    assert!(status.last_swap_pause_ns > 0 && status.p99_ns > 0);
    assert_eq!(host.until(NoticeKind::Swapped).plugin, "last 1.0.0");

    let there = host.scheduler().remove(true).unwrap();
    assert_eq!((there.old.as_str(), there.pause), ("last 1.0.0", None));
    assert_eq!(host.state(), State::Probation, "nothing has changed");
    let removed = host.scheduler().remove(false).unwrap();
    assert_eq!(removed.old, "last 1.0.0");
    let pause = removed.pause.unwrap().as_nanos();
    assert_eq!(
        pause,
        host.scheduler().status().last_swap_pause_ns.into(),
        "it is measured"
    );
    assert!(pause > 0);
    assert_eq!(choice(&host.scheduler().ask(&question(0))).replica, 0);
    assert_eq!(host.state(), State::BuiltIn);
    for dry_run in [false, true] {
        assert_eq!(
            host.scheduler().remove(dry_run).unwrap_err().to_string(),
            "what is built in is in force in the scheduler already"
        );
    }
}

#[test]
fn state_moves_with_a_swap_and_comes_back_with_a_rollback() {
    let host = Host::new();
    host.swap(&counter("1.0.0")).unwrap();
    assert_eq!(
        [count(&host), count(&host)],
        [1, 2],
        "trials leave no trace"
    );
    assert_eq!(host.swap(&counter("2.0.0")).unwrap(), StateMoved::Bytes(4));
    assert_eq!(count(&host), 3);
    let back = host.scheduler().rollback().unwrap();
    assert_eq!(
        (back.old.as_str(), back.new.as_str()),
        ("counter 2.0.0", "counter 1.0.0")
    );
    assert_eq!(count(&host), 4);
    // Another name, another state.
    let moved = host.swap(&last()).unwrap();
    assert_eq!(moved, StateMoved::Fresh("it is of another name".to_owned()));
}

#[test]
fn what_came_before_probation_can_come_back_later_too() {
    let host = Host::new();
    host.swap(&counter("1.0.0")).unwrap();
    assert_eq!(count(&host), 1);
    // The first is on probation itself, so it is not kept warm.
    host.swap(&last()).unwrap();
    let status = host.scheduler().status();
    assert_eq!(status.previous.as_deref(), Some("counter 1.0.0"));
    host.scheduler().rollback().unwrap();
    assert_eq!(count(&host), 2, "it goes on with its own state");

    let refusal = host.scheduler().rollback().unwrap_err();
    assert!(matches!(refusal, RollbackRefusal::Nothing(_)), "{refusal}");
}

#[test]
fn a_rollback_of_the_first_plugin_is_to_what_is_built_in() {
    let host = Host::new();
    host.swap(&last()).unwrap();
    let back = host.scheduler().rollback().unwrap();
    assert_eq!(back.new, "built-in");
    assert_eq!(host.state(), State::BuiltIn);
    assert_eq!(choice(&host.scheduler().ask(&question(0))).replica, 0);
}

#[test]
fn a_fault_on_probation_is_answered_and_the_one_before_is_back_with_its_state() {
    let host = Host::new();
    host.swap(&counter("1.0.0")).unwrap();
    count(&host);
    // It passes its probation.
    host.until(NoticeKind::Confirmed);
    host.swap(&elsewhere("unreachable")).unwrap();
    assert_eq!(choice(&host.scheduler().ask(&question(0))).replica, 0);
    let said = choice(&host.scheduler().ask(&question(1)));
    assert_eq!((said.replica, said.generation), (0, 5));
    let notice = host.until(NoticeKind::RolledBack);
    assert!(
        notice.detail.contains("`next` trapped"),
        "{}",
        notice.detail
    );
    assert_eq!(host.state(), State::Active);
    assert_eq!(count(&host), 2);
}

/// The slots of another process that goes on where these were.
fn carried(host: &Host) -> Host {
    let carried = host.slots.carry();
    let text = serde_json::to_vec(&carried).unwrap();
    let components = carried.components;
    let mut carried: CarriedSlots = serde_json::from_slice(&text).unwrap();
    let other = Host::new();
    let mut opened = Opened::default();
    let refusal = other.slots.go_on(&carried, &mut opened).unwrap_err();
    assert!(
        matches!(refusal, CarryError::NoComponent { .. }),
        "{refusal}"
    );
    carried.components = components;
    other.slots.go_on(&carried, &mut opened).unwrap();
    // Once more, as a moment later: what is known need not come along again.
    carried.components.clear();
    other.slots.go_on(&carried, &mut opened).unwrap();
    other
}

/// What was taken out while another process got ready does not decide there.
#[test]
fn a_slot_that_goes_on_again_is_as_it_was_the_last_time() {
    let host = Host::new();
    host.swap(&last()).unwrap();
    let other = carried(&host);
    assert_eq!(choice(&other.scheduler().ask(&question(0))).replica, 1);
    host.scheduler().remove(false).unwrap();
    let mut opened = Opened::default();
    other.slots.go_on(&host.slots.carry(), &mut opened).unwrap();
    assert_eq!(other.state(), State::BuiltIn);
    assert_eq!(choice(&other.scheduler().ask(&question(0))).replica, 0);
}

#[test]
fn a_slot_that_goes_to_another_process_is_not_changed_and_decides_still() {
    let host = Host::new();
    host.swap(&counter("1.0.0")).unwrap();
    host.swap(&last()).unwrap();
    host.slots.hold(true);
    let refusals = [
        host.swap(&counter("1.0.0")).unwrap_err().to_string(),
        host.scheduler().rollback().unwrap_err().to_string(),
        host.scheduler().remove(false).unwrap_err().to_string(),
    ];
    for refusal in refusals {
        assert!(refusal.contains("goes to another process"), "{refusal}");
    }
    let status = host.scheduler().status();
    assert_eq!(
        (status.swaps, status.previous.as_deref()),
        (2, Some("counter 1.0.0"))
    );
    choice(&host.scheduler().ask(&question(0)));
    host.slots.hold(false);
    host.scheduler().rollback().unwrap();
}

#[test]
fn a_slot_goes_on_in_another_process_with_its_state_and_its_probation() {
    let host = Host::new();
    host.swap(&counter("1.0.0")).unwrap();
    count(&host);
    host.until(NoticeKind::Confirmed);
    host.swap(&elsewhere("unreachable")).unwrap();
    choice(&host.scheduler().ask(&question(0)));
    let other = carried(&host);
    assert_eq!(other.state(), State::Probation);
    let (was, is) = (host.scheduler().status(), other.scheduler().status());
    assert_eq!((is.calls, is.swaps, is.digest), (1, 2, was.digest));
    assert_eq!((is.p99_ns, is.times), (was.p99_ns, was.times));
    // It fails there, and what was kept warm here is back there.
    let said = choice(&other.scheduler().ask(&question(1)));
    assert_eq!((said.replica, said.generation), (0, 5));
    other.until(NoticeKind::RolledBack);
    assert_eq!(other.state(), State::Active);
    assert_eq!(count(&other), 2);
    // Nothing of that has happened here.
    assert_eq!(host.state(), State::Probation);
}

#[test]
fn what_a_slot_can_go_back_to_is_carried_too() {
    let host = Host::new();
    host.swap(&counter("1.0.0")).unwrap();
    assert_eq!(count(&host), 1);
    host.swap(&last()).unwrap();
    let other = carried(&host);
    let back = other.scheduler().rollback().unwrap();
    assert_eq!(back.new, "counter 1.0.0");
    assert_eq!(count(&other), 2);
    let quarantined = Host::new();
    quarantined.swap(&elsewhere("unreachable")).unwrap();
    choice(&quarantined.scheduler().ask(&question(1)));
    let other = carried(&quarantined);
    assert_eq!(other.state(), State::Quarantined);
    other.until(NoticeKind::Restored);
}

/// Who was rolled back from is not wanted, not even when who came back fails at once.
#[test]
fn a_plugin_that_was_rolled_back_from_does_not_come_back_by_itself() {
    let host = Host::new();
    host.swap(&elsewhere("unreachable")).unwrap();
    host.scheduler().ask(&question(0));
    host.until(NoticeKind::Confirmed);
    host.swap(&last()).unwrap();
    host.scheduler().ask(&question(0));
    // Its predecessor is let go: from here on a rollback makes that anew.
    host.until(NoticeKind::Confirmed);
    assert_eq!(host.scheduler().rollback().unwrap().old, "last 1.0.0");
    host.scheduler().ask(&question(1));
    assert_eq!(host.state(), State::Quarantined);
    let status = host.scheduler().status();
    assert_eq!(status.plugin.as_deref(), Some("hand-made"));
    assert_eq!(status.previous, None);
}

#[test]
fn a_fault_on_probation_without_anything_before_is_quarantine_and_then_a_retry() {
    let host = Host::new();
    host.swap(&elsewhere("unreachable")).unwrap();
    assert_eq!(choice(&host.scheduler().ask(&question(1))).replica, 0);
    assert_eq!(host.state(), State::Quarantined);
    let notice = host.until(NoticeKind::Quarantined);
    assert!(
        notice.detail.ends_with("tried again in 1 s"),
        "{}",
        notice.detail
    );
    assert_eq!(choice(&host.scheduler().ask(&question(1))).replica, 0);
    host.until(NoticeKind::Restored);
    assert_eq!(host.state(), State::Probation);
    assert_eq!(choice(&host.scheduler().ask(&question(1))).replica, 0);
    let notice = host.until(NoticeKind::Quarantined);
    assert!(
        notice.detail.ends_with("tried again in 2 s"),
        "{}",
        notice.detail
    );
}

#[test]
fn an_active_plugin_that_traps_is_made_anew_with_its_state_until_it_does_too_often() {
    let traps = counter("1.0.0").body(
        "next",
        "(if (local.get 1) (then unreachable))
         (global.set $count (i32.add (global.get $count) (i32.const 1)))
         (i32.store (i32.const 64) (i32.load (local.get 6)))
         (i64.store (i32.const 72) (i64.load offset=8 (local.get 6)))
         (i64.store (i32.const 80)
           (i64.mul (i64.extend_i32_u (global.get $count)) (i64.const 1000000)))
         (i32.const 64)",
    );
    let host = Host::new();
    host.swap(&traps).unwrap();
    assert_eq!(count(&host), 1);
    host.until(NoticeKind::Confirmed);
    for strike in 1..=2 {
        host.scheduler().ask(&question(1));
        let calls = host.scheduler().status().calls;
        host.until(NoticeKind::Struck);
        assert_eq!(host.state(), State::Active, "after strike {strike}");
        // Until it is made anew, what is built in answers.
        let found = poll(|| {
            host.scheduler().ask(&question(0));
            (host.scheduler().status().calls > calls).then_some(())
        });
        assert!(found.is_some(), "it is made anew");
    }
    assert!(count(&host) >= 2, "it knows what it knew");
    host.scheduler().ask(&question(1));
    assert_eq!(host.state(), State::Quarantined);
    assert_eq!(host.scheduler().status().strikes, 3);
}

/// Callers wait while state is saved, each second: a plugin that takes its time there
/// is as bad as one that takes it to answer.
#[test]
fn a_save_that_takes_longer_than_an_answer_may_is_a_strike() {
    let slow = counter("1.0.0").body(
        "save",
        "(if (i32.eq (global.get $count) (i32.const 1)) (then (loop $l (br $l))))
         (i32.store (i32.const 512) (global.get $count))
         (i32.store (i32.const 64) (i32.const 512))
         (i32.store (i32.const 68) (i32.const 4))
         (i32.const 64)",
    );
    let host = Host::new();
    // Trials ask more or nothing at all.
    host.swap(&slow).unwrap();
    assert_eq!(count(&host), 1);
    let notice = host.until(NoticeKind::Struck);
    assert_eq!(notice.detail, "`save` took longer than 1 ms");
    assert_eq!(choice(&host.scheduler().ask(&question(0))).replica, 0);
}

#[test]
fn nonsense_is_a_strike_and_the_built_in_answers_that_very_question() {
    for (answer, reason) in [
        ("(i32.const 7)", "it chose replica 7, which is not ready"),
        (
            "(i32.const 1)",
            "it chose generation 0 of replica 1, which is at 5",
        ),
    ] {
        let body = format!(
            "(i32.store (i32.const 64) {answer}) (i64.store (i32.const 72) (i64.const 0))
             (return (i32.const 64))"
        );
        let host = Host::new();
        host.swap(&elsewhere(&body)).unwrap();
        let said = choice(&host.scheduler().ask(&question(1)));
        assert_eq!((said.replica, said.generation), (0, 5));
        let notice = host.until(NoticeKind::Struck);
        assert!(notice.detail.contains(reason), "{}", notice.detail);
    }
}

#[test]
fn a_slice_is_clamped() {
    let body = "(i32.store (i32.const 64) (i32.const 0)) (i64.store (i32.const 72) (i64.const 5))
                (i64.store (i32.const 80) (i64.const -1)) (return (i32.const 64))";
    let host = Host::new();
    host.swap(&elsewhere(body)).unwrap();
    assert_eq!(
        choice(&host.scheduler().ask(&question(1))).slice,
        100_000_000
    );
}

#[test]
fn a_router_that_must_not_fail_open_denies() {
    let host = Host::with(|slot| SlotConfig {
        on_fault: OnFault::Deny,
        ..SlotConfig::of(slot)
    });
    let router = host.slots.slot(SlotName::Router);
    let connect = |port| {
        Question::Connect(Connection {
            now: 1,
            lot: 0,
            direction: Direction::Inbound,
            from_replica: None,
            source: Endpoint::default(),
            destination: Endpoint {
                port,
                ..Endpoint::default()
            },
            targets: vec![Target {
                replica: 0,
                connections: 0,
                generation: 1,
            }],
        })
    };
    assert_eq!(router.ask(&connect(2)), Answer::Connect(Verdict::Target(0)));
    // Traps at port 1, its eleventh parameter; the rehearsal asks for port 80.
    let plugin = PluginWat::new("router").body(
        "connect",
        "(if (i32.eq (local.get 10) (i32.const 1)) (then unreachable))
         (i32.const 0)",
    );
    let plugin = host.open(&plugin);
    router.swap(&plugin, &SwapOptions::default()).unwrap();
    assert_eq!(router.ask(&connect(2)), Answer::Connect(Verdict::Target(0)));
    assert_eq!(router.ask(&connect(1)), Answer::Connect(Verdict::Deny));
    assert_eq!(router.status().state, State::Quarantined);
    assert_eq!(router.ask(&connect(2)), Answer::Connect(Verdict::Deny));
    let attach = Question::Attach(Attachment {
        now: 1,
        replica: 0,
        generation: 1,
        device: "data".to_owned(),
        kind: DeviceKind::Block,
        backends: vec!["data".to_owned()],
    });
    let Answer::Attach(AttachVerdict::Deny(reason)) = router.ask(&attach) else {
        panic!("it does not deny");
    };
    assert!(reason.contains("on-fault"), "{reason}");
}

#[test]
fn a_dry_run_tries_everything_and_changes_nothing() {
    let host = Host::new();
    host.scheduler().ask(&question(0));
    let plugin = host.open(&last());
    let options = SwapOptions {
        dry_run: true,
        ..SwapOptions::default()
    };
    let done = host.scheduler().swap(&plugin, &options).unwrap();
    assert_eq!((done.pause, done.rehearsal.recorded), (None, 1));
    assert!(done.rehearsal.made_up > 0);
    assert_eq!(host.state(), State::BuiltIn);
    let broken = host.open(&elsewhere("unreachable").identity("broken", "1.0.0"));
    host.scheduler().ask(&question(1));
    let refusal = host.scheduler().swap(&broken, &options).unwrap_err();
    let reason = refusal.to_string();
    assert!(
        reason.starts_with("broken 1.0.0 failed in rehearsal, at question 1: `next` trapped"),
        "{reason}"
    );
}

#[test]
fn a_shadow_answers_beside_and_shows_where_it_differs() {
    let host = Host::new();
    let plugin = host.open(&last());
    let options = SwapOptions {
        shadow: 20,
        shadow_patience: PATIENCE,
        dry_run: true,
        ..SwapOptions::default()
    };
    let over = Mutex::new(false);
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut single = question(0);
            if let Question::Next(view) = &mut single {
                view.ready.truncate(1);
            }
            while !*over.lock().unwrap() {
                // Of one candidate there is one choice.
                host.scheduler().ask(&question(0));
                host.scheduler().ask(&single);
            }
        });
        let done = host.scheduler().swap(&plugin, &options);
        *over.lock().unwrap() = true;
        done
    });
    let shadowed = done.unwrap().shadowed.unwrap();
    assert_eq!(shadowed.asked, 20);
    assert!(shadowed.agreed < 20, "{shadowed:?}");
    // Which of the two questions comes first is a matter of luck.
    let chosen = shadowed
        .differences
        .iter()
        .map(|it| (choice(&it.was).replica, choice(&it.would).replica));
    assert!(chosen.into_iter().any(|it| it == (0, 1)), "{shadowed:?}");
    assert_eq!(host.state(), State::BuiltIn);
}

#[test]
fn a_shadow_that_nobody_asks_gives_up() {
    let host = Host::new();
    let plugin = host.open(&last());
    let options = SwapOptions {
        shadow: 5,
        shadow_patience: Duration::from_millis(10),
        ..SwapOptions::default()
    };
    let refusal = host.scheduler().swap(&plugin, &options).unwrap_err();
    assert!(
        matches!(
            refusal,
            SwapRefusal::FewQuestions {
                asked: 0,
                wanted: 5,
                ..
            }
        ),
        "{refusal}"
    );
    assert_eq!(host.state(), State::BuiltIn);
}

/// What a shadow waits for may never come, and the operator must not wait with it.
#[test]
fn a_shadow_keeps_its_place_until_nobody_waits_for_it() {
    let host = Host::new();
    let plugin = host.open(&last());
    let given_up = Arc::new(AtomicBool::new(false));
    let endless = SwapOptions {
        shadow: u64::MAX,
        shadow_patience: PATIENCE,
        given_up: Arc::clone(&given_up),
        ..SwapOptions::default()
    };
    let dry_run = SwapOptions {
        dry_run: true,
        ..SwapOptions::default()
    };
    std::thread::scope(|scope| {
        // Who asks whether all places are taken has one meanwhile.
        let shadow = || {
            let done = poll(|| match host.scheduler().swap(&plugin, &endless) {
                Err(SwapRefusal::Busy(_)) => None,
                done => Some(done),
            });
            done.unwrap()
        };
        let shadows = [(); 3].map(|()| scope.spawn(shadow));
        let refusal = poll(|| host.scheduler().swap(&plugin, &dry_run).err());
        assert_eq!(
            refusal.unwrap().to_string(),
            "3 other changes of the scheduler are being made: try again when one of them is over"
        );
        given_up.store(true, Ordering::Relaxed);
        for shadow in shadows {
            let refusal = shadow.join().unwrap().unwrap_err();
            assert!(matches!(refusal, SwapRefusal::GivenUp { .. }), "{refusal}");
        }
    });
    host.swap(&last()).unwrap();
}

#[test]
fn a_shadow_holds_no_other_change_up_and_gives_way_to_the_first_that_is_made() {
    let host = Host::new();
    let plugin = host.open(&last());
    let options = SwapOptions {
        shadow: 5,
        shadow_patience: PATIENCE,
        ..SwapOptions::default()
    };
    assert!(host.scheduler().wants(1));
    let refusal = std::thread::scope(|scope| {
        let shadow = scope.spawn(|| host.scheduler().swap(&plugin, &options));
        poll(|| host.scheduler().wants(2).then_some(())).expect("it watches");
        host.swap(&counter("1.0.0")).unwrap();
        host.scheduler().rollback().unwrap();
        host.swap(&counter("1.0.0")).unwrap();
        while !shadow.is_finished() {
            count(&host);
        }
        shadow.join().unwrap().unwrap_err()
    });
    assert_eq!(
        refusal.to_string(),
        "last 1.0.0 was tried beside another: the scheduler has meanwhile been given to counter \
         1.0.0, try again"
    );
    let status = host.scheduler().status();
    assert_eq!(status.plugin.as_deref(), Some("counter"));
}

/// A trace of a slot while `ask` asks.
fn traced(host: &Host, ask: impl FnOnce()) -> Vec<u8> {
    let trace = Trace::start(host.scheduler());
    ask();
    let mut file = TraceLine::Trace(trace.header.clone()).encode().unwrap();
    while let Some(line) = trace.next(Duration::from_millis(1)) {
        file.extend(line.encode().unwrap());
    }
    file
}

#[test]
fn a_trace_replays_without_a_difference_on_the_same_plugin_and_shows_those_of_another() {
    let host = Host::new();
    host.swap(&counter("1.0.0")).unwrap();
    count(&host);
    let file = traced(&host, || {
        (0..50).for_each(|_| {
            count(&host);
        });
    });
    let options = ReplayOptions {
        settings: None,
        report: 3,
    };
    let run = |plugin| replay(&host.open(&plugin), &mut Cursor::new(&file), &options).unwrap();
    let same = run(counter("1.0.0"));
    assert_eq!(
        (same.asked, same.same, same.differ, same.failed),
        (50, 50, 0, 0)
    );
    assert_eq!(same.state, "4 bytes restored");
    let other = run(last());
    assert_eq!((other.asked, other.differ), (50, 50));
    assert_eq!(
        (other.differences.len(), other.was.as_str()),
        (3, "counter 1.0.0")
    );
    assert_eq!(run(last()), other, "a replay is deterministic");
}

#[test]
fn a_trace_tells_who_answered_and_why() {
    let host = Host::new();
    host.swap(&elsewhere("unreachable")).unwrap();
    let file = traced(&host, || {
        host.scheduler().ask(&question(0));
        host.scheduler().ask(&question(1));
    });
    let lines: Vec<TraceLine> = file
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let [
        TraceLine::Trace(_),
        TraceLine::Seen(well),
        TraceLine::Seen(ill),
    ] = &lines[..]
    else {
        panic!("{lines:?}");
    };
    assert_eq!((well.by, &well.failure), (By::Plugin, &None));
    assert_eq!(ill.by, By::BuiltIn);
    assert!(ill.failure.as_ref().unwrap().contains("trapped"));
}

#[test]
fn what_is_no_trace_is_refused_by_line() {
    let host = Host::new();
    let plugin = host.open(&last());
    let good = traced(&host, || {
        host.scheduler().ask(&question(0));
    });
    let text = String::from_utf8(good).unwrap();
    let (header, rest) = text.split_once('\n').unwrap();
    for (trace, reason) in [
        (
            String::new(),
            "it is no trace: its first line has to say what it is",
        ),
        (
            "x\n".to_owned(),
            "it is no trace: its first line has to say what it is",
        ),
        (
            text.replace("\"version\":1", "\"version\":2"),
            "it is a trace of version 2, this is version 1",
        ),
        (
            text.replace("\"slot\":\"scheduler\"", "\"slot\":\"router\""),
            "it is a trace of the router, and last 1.0.0 is none",
        ),
        (
            format!("{header}\n{}", &rest[..rest.len() / 2]),
            "line 2: it is cut, or longer than a line of a trace is",
        ),
        (
            format!("{header}\n{header}\n"),
            "line 2: it does not belong into this trace",
        ),
        (
            format!("{header}\n{{\"seen\":7}}\n"),
            "line 2: invalid type",
        ),
    ] {
        let options = ReplayOptions {
            settings: None,
            report: 3,
        };
        let refusal = replay(&plugin, &mut Cursor::new(&trace), &options).unwrap_err();
        assert!(refusal.to_string().starts_with(reason), "{refusal}");
    }
}

#[test]
fn a_watcher_that_does_not_read_keeps_nobody_waiting_and_is_told_what_it_missed() {
    let host = Host::new();
    let trace = Trace::start(host.scheduler());
    for _ in 0..5_000 {
        host.scheduler().ask(&question(0));
    }
    let mut seen = 0;
    while let Some(TraceLine::Seen(_)) = trace.next(Duration::from_millis(1)) {
        seen += 1;
    }
    assert_eq!(seen, 4_096);
    host.scheduler().ask(&question(0));
    let next = trace.next(Duration::from_millis(1));
    assert!(matches!(next, Some(TraceLine::LeftOut(904))), "{next:?}");
}

#[test]
fn a_trace_that_has_ended_leaves_nobody_to_ask_for() {
    let host = Host::new();
    let slot = host.scheduler();
    assert!(slot.wants(1), "a question is kept now and then");
    let trace = Trace::start(slot);
    assert!(slot.wants(2), "it is shown");
    drop(trace);
    slot.ask(&question(0));
    assert!(!slot.wants(3));
    // Nor does one that ends while nobody asks, when the next begins.
    drop(Trace::start(slot));
    let trace = Trace::start(slot);
    slot.ask(&question(0));
    assert!(slot.wants(4));
    drop(trace);
    slot.ask(&question(0));
    assert!(!slot.wants(5));
}

#[test]
fn ten_thousand_swaps_lose_no_decision_and_no_memory() {
    const SWAPS: u64 = 10_000;
    let host = Host::new();
    let versions = [counter("1.0.0"), counter("2.0.0")].map(|it| host.open(&it));
    let options = SwapOptions::default();
    host.scheduler().swap(&versions[0], &options).unwrap();
    let mut before = 0;
    for swap in 0..SWAPS {
        // Every question is counted once, whoever counts.
        assert_eq!(count(&host), (swap % 90) + 1);
        if swap % 90 == 89 {
            let fresh = SwapOptions {
                discard_state: true,
                ..SwapOptions::default()
            };
            host.scheduler().swap(&versions[0], &fresh).unwrap();
        } else {
            let next = &versions[usize::try_from(swap % 2).unwrap()];
            host.scheduler().swap(next, &options).unwrap();
        }
        if swap == SWAPS / 10 {
            before = memory_kib(Pid::this(), "VmRSS");
        }
    }
    let grown = memory_kib(Pid::this(), "VmRSS").saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB more than after the first tenth");
    assert_eq!(host.scheduler().status().swaps, SWAPS + 1);
}

#[test]
fn what_is_refused_leaves_the_slot_as_it_was() {
    let trap = "unreachable";
    let cases: Vec<(&str, PluginWat, &str)> = vec![
        (
            "for another slot",
            PluginWat::new("router"),
            "hand-made 1.0.0 is no scheduler: it exports router",
        ),
        (
            "a trap in configure",
            PluginWat::new("scheduler").body("configure", trap),
            "hand-made 1.0.0: `configure` trapped",
        ),
        (
            "a trap in save",
            counter("2.0.0").body("save", trap),
            "counter 2.0.0: `save` trapped",
        ),
        (
            "a trap in restore",
            counter("2.0.0").body("restore", trap),
            "counter 2.0.0: `restore` trapped",
        ),
        (
            "a loop in restore",
            counter("2.0.0").body("restore", "(loop $l (br $l)) (i32.const 0)"),
            "counter 2.0.0: `restore` took longer than 20 ms",
        ),
        (
            "state of a newer schema",
            counter("0.9.0").schemas(9, 2),
            "counter 0.9.0 reads state of formats 2 to 9, and what is in force keeps format 1",
        ),
        (
            "a loop in next",
            PluginWat::new("scheduler").body("next", "(loop $l (br $l)) (i32.const 0)"),
            "hand-made 1.0.0 failed in rehearsal, at question 0: `next` took longer than 1 ms",
        ),
        (
            "a loop in configure",
            PluginWat::new("scheduler").body("configure", "(loop $l (br $l)) (i32.const 0)"),
            "hand-made 1.0.0: `configure` took longer than 1000 ms",
        ),
        (
            "recursion without end",
            PluginWat::new("scheduler")
                .item("(func $deep (call $deep))")
                .body("next", "(call $deep) (i32.const 0)"),
            "hand-made 1.0.0 failed in rehearsal, at question 0: `next` trapped",
        ),
        (
            "a list that is longer than memory",
            counter("2.0.0").body(
                "save",
                "(i32.store (i32.const 64) (i32.const 0))
                 (i32.store (i32.const 68) (i32.const -1))
                 (i32.const 64)",
            ),
            "counter 2.0.0: `save` trapped",
        ),
        (
            "an answer that is nowhere",
            PluginWat::new("scheduler").body("next", "(i32.const -8)"),
            "hand-made 1.0.0 failed in rehearsal, at question 0: `next` trapped",
        ),
    ];
    let host = Host::new();
    host.swap(&counter("1.0.0")).unwrap();
    let mut expected = 0;
    for (what, plugin, reason) in cases {
        let refusal = host.swap(&plugin).unwrap_err().to_string();
        assert!(refusal.starts_with(reason), "{what}: {refusal}");
        expected += 1;
        assert_eq!(count(&host), expected, "after {what}");
    }
    assert_eq!(host.scheduler().status().swaps, 1);
}

#[test]
fn what_a_plugin_takes_is_bounded() {
    // Each asks for more than it may have and traps when it gets it: what it gets
    // decides whether it passes.
    let greedy = |body: &str| {
        PluginWat::new("scheduler").item(
        "(table $t 1 funcref)
         (func $memory (if (i32.ne (memory.grow (i32.const 257)) (i32.const -1)) (then unreachable)))
         (func $table
           (if (i32.ne (table.grow $t (ref.null func) (i32.const 20000)) (i32.const -1))
             (then unreachable)))",
    ).body("configure", &format!("{body} (i32.const 0)"))
    };
    for body in ["(call $memory)", "(call $table)"] {
        Host::new().swap(&greedy(body)).unwrap();
    }
}

/// Counts the lines of the plugin below, whichever thread they come from.
struct Noise;

static NOISE: AtomicUsize = AtomicUsize::new(0);

impl log::Log for Noise {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.args().to_string().ends_with(": noise") {
            NOISE.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

#[test]
fn a_flood_of_log_lines_is_cut() {
    log::set_logger(&Noise).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let noise = "(data (i32.const 512) \"noise\")";
    let floods = PluginWat::new("scheduler").import(LOG).item(noise).body(
        "configure",
        "(local $n i32)
         (loop $l
           (call $log (i32.const 1) (i32.const 512) (i32.const 5))
           (local.set $n (i32.add (local.get $n) (i32.const 1)))
           (br_if $l (i32.lt_u (local.get $n) (i32.const 10000))))
         (i32.const 0)",
    );
    // It does not cost the plugin its place.
    Host::new().swap(&floods).unwrap();
    // Ten in a second and an instance; it is configured twice.
    let told = NOISE.load(Ordering::Relaxed);
    assert!((10..1000).contains(&told), "{told} lines of 20,000");
}

#[test]
fn what_is_no_plugin_is_refused_with_a_reason() {
    let host = Host::new();
    let path = host.directory.path().join("bad.wasm");
    let refusal = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        host.slots.open(&path).unwrap_err().to_string()
    };
    let ends = |bytes: &[u8], reason: &str| {
        let said = refusal(bytes);
        assert!(said.contains(reason), "{said}");
    };
    ends(b"", "it is no WebAssembly component");
    ends(&[0xa5; 4096], "it is no WebAssembly component");
    ends(b"\0asm\x01\0\0\0", "it is a core WebAssembly module");
    ends(b"\0asm\x0d\0\x01\0garbage", "it is no valid component");
    let whole = PluginWat::new("scheduler").component();
    ends(&whole[..whole.len() / 2], "it is no valid component");
    let newer = PluginWat::new("scheduler")
        .contract(|wit| wit.replace("wharf:policy@0.1.0", "wharf:policy@0.2.0"));
    ends(
        &newer.component(),
        "it speaks wharf:policy 0.2.0, this host speaks 0.1.0",
    );
    let other = PluginWat::new("scheduler").contract(|wit| {
        wit.replace("/// For how long; the host clamps it to 0.1 to 100 ms. 0 means 2 ms.\n    slice: nanos,", "")
    });
    ends(
        &other.component(),
        "its scheduler is not that of wharf:policy 0.1.0",
    );
    let describes = |body| PluginWat::new("scheduler").body("describe", body);
    ends(&describes("unreachable").component(), "`describe` trapped");
    ends(
        &describes("(loop $l (br $l)) (i32.const 0)").component(),
        "`describe` took longer than 1000 ms",
    );
    // A name that is no text: 0xff where `describe` says that its name is.
    ends(
        &describes("(i32.store8 (i32.const 152) (i32.const 255)) (i32.const 128)").component(),
        "`describe` trapped",
    );
    ends(
        &PluginWat::new("scheduler").schemas(1, 2).component(),
        "it reads state formats from 2 on, but writes 1",
    );
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let host = Host::new();
    let path = host.directory.path().join("large.wasm");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(100_000_000).unwrap();
    let said = host.slots.open(&path).unwrap_err().to_string();
    assert!(said.contains("it is larger than 32 MiB"), "{said}");
    for (path, reason) in [
        (Path::new("/dev/zero"), "it is no regular file"),
        (host.directory.path(), "it is no regular file"),
        (Path::new("/nowhere/x.wasm"), "cannot read it"),
    ] {
        let said = host.slots.open(path).unwrap_err().to_string();
        assert!(said.contains(reason), "{said}");
    }
}
