//! The built-in policies and every plugin of this repository, as real components:
//! what all of a slot must do, and what each is for. No KVM.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wharf_model::policy::{
    Answer, AttachVerdict, Attachment, Connection, DeviceKind, Direction, Endpoint, Judgement,
    Plan, Question, SlotName, Verdict,
};
use wharf_policy::{Engine, Fault, Instance, Plugin, Setup, State, TaskFacts};
use wharf_tests::command::policy;
use wharf_tests::conformance::router::connection;
use wharf_tests::conformance::scheduler::Host;
use wharf_tests::conformance::upgrader::{Upgrade, proposal};
use wharf_tests::conformance::{BuiltIn, Dice, Policy, answer, router, scheduler, upgrader};

/// How long an answer may take; generous, because tests run side by side.
const LIMIT: Duration = Duration::from_secs(5);

const MS: u64 = 1_000_000;

/// A plugin, built and compiled once per test process.
fn plugin(name: &'static str) -> Arc<Plugin> {
    static BUILT: Mutex<BTreeMap<&str, Arc<Plugin>>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap();
    let plugin = built.entry(name).or_insert_with(|| {
        // An engine each: its instances are counted.
        let engine = Engine::new(None).unwrap();
        Plugin::open(&engine, &policy(name)).unwrap()
    });
    Arc::clone(plugin)
}

/// An instance of a plugin.
struct Component(Instance);

impl Component {
    fn new(
        name: &'static str,
        settings: &[(&str, &str)],
        tasks: Vec<TaskFacts>,
    ) -> Result<Self, Fault> {
        let mut instance = Instance::new(&plugin(name)).unwrap();
        let settings = pairs(settings);
        instance.configure(&Setup { settings, tasks })?;
        Ok(Self(instance))
    }
}

impl Policy for Component {
    fn ask(&mut self, question: &Question) -> Answer {
        self.0.ask(question, LIMIT).unwrap()
    }

    fn save(&mut self) -> Option<Vec<u8>> {
        self.0.save().unwrap().map(|state| state.bytes)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let (schema, bytes) = (self.0.plugin().identity.state_schema, state.to_vec());
        match self.0.restore(&State { schema, bytes }) {
            Err(Fault::Refused { reason, .. }) => Err(reason),
            other => {
                other.unwrap();
                Ok(())
            }
        }
    }
}

fn pairs(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    settings.iter().map(owned).collect()
}

/// A task of this name, weight and labels.
fn task(name: &str, index: u32, weight: u32, labels: &[(&str, &str)]) -> TaskFacts {
    TaskFacts {
        name: name.to_owned(),
        index,
        weight,
        labels: pairs(labels),
    }
}

fn weighted(weights: &[u32]) -> Vec<TaskFacts> {
    let numbered = (0..).zip(weights);
    numbered
        .map(|(it, weight)| task("t", it, *weight, &[]))
        .collect()
}

/// web.0, web.1, next.0 on trial.
fn services() -> Vec<TaskFacts> {
    vec![
        task("web", 0, 100, &[]),
        task("web", 1, 100, &[]),
        task("next", 0, 100, &[("canary", "10")]),
    ]
}

/// Holds a plugin, set up like this, to the set of its slot.
fn conforms(name: &'static str, settings: &[(&str, &str)]) {
    let make = |weights: &[u32]| -> Box<dyn Policy> {
        Box::new(Component::new(name, settings, weighted(weights)).unwrap())
    };
    match plugin(name).slots()[..] {
        [SlotName::Scheduler] => scheduler::conforms(&make),
        [SlotName::Router] => router::conforms(&make),
        [SlotName::Upgrader] => upgrader::conforms(&make),
        ref slots => panic!("it is for {slots:?}"),
    }
}

#[test]
fn the_built_in_policies_do_what_all_must() {
    scheduler::conforms(&|_| Box::new(BuiltIn));
    router::conforms(&|_| Box::new(BuiltIn));
    upgrader::conforms(&|_| Box::new(BuiltIn));
}

#[test]
fn round_robin_does_what_all_schedulers_must() {
    conforms("round-robin", &[]);
    conforms("round-robin", &[("slice", "100ms")]);
}

#[test]
fn fair_share_does_what_all_schedulers_must() {
    conforms("fair-share", &[]);
    conforms("fair-share", &[("boost", "100"), ("slice", "100us")]);
}

#[test]
fn deadline_does_what_all_schedulers_must() {
    conforms("deadline", &[]);
    let make = |weights: &[u32]| -> Box<dyn Policy> {
        let labels = |it: u32| [&[("deadline", "7ms")][..], &[]][usize::from(it.is_multiple_of(2))];
        let tasks = (0..).zip(weights);
        let tasks = tasks.map(|(it, weight)| task("t", it, *weight, labels(it)));
        Box::new(Component::new("deadline", &[], tasks.collect()).unwrap())
    };
    scheduler::says_the_same_to_any_view(&make);
}

#[test]
fn static_routes_does_what_all_routers_must() {
    conforms("static-routes", &[]);
    let routes = [("port-0", "t.2"), ("port-1", "t"), ("device-data@t", "a")];
    conforms("static-routes", &routes);
}

#[test]
fn canary_does_what_all_routers_must() {
    conforms("canary", &[]);
    let make = |_: &[u32]| -> Box<dyn Policy> {
        Box::new(Component::new("canary", &[("sticky", "false")], services()).unwrap())
    };
    router::conforms(&make);
}

#[test]
fn allow_list_does_what_all_routers_must() {
    conforms("allow-list", &[]);
    conforms("allow-list", &[("allow", "0.0.0.0/0:*, [::]/0:1-65535")]);
}

#[test]
fn blue_green_does_what_all_upgraders_must() {
    conforms("blue-green", &[]);
    conforms(
        "blue-green",
        &[("connections", "500"), ("stateful", "refuse")],
    );
}

#[test]
fn canary_judge_does_what_all_upgraders_must() {
    conforms("canary-judge", &[]);
    conforms(
        "canary-judge",
        &[("steps", "[1, 2, 99]"), ("connections", "150")],
    );
}

#[test]
fn plugins_say_who_they_are_and_take_nothing_but_the_log() {
    for (name, state_schema) in [
        ("round-robin", 0),
        ("fair-share", 1),
        ("deadline", 0),
        ("static-routes", 0),
        ("canary", 0),
        ("allow-list", 0),
        ("blue-green", 0),
        ("canary-judge", 1),
        ("session-formats", 0),
    ] {
        let plugin = plugin(name);
        assert_eq!(plugin.identity.name, name);
        assert_eq!(plugin.identity.state_schema, state_schema, "{name}");
        for import in &plugin.surface.imports {
            assert!(import.starts_with("wharf:policy/"), "{name}: {import}");
        }
    }
}

#[test]
fn wrong_settings_are_refused_by_name_and_change_nothing() {
    for (name, key, value) in [
        ("round-robin", "slice", "5"),
        ("fair-share", "boost", "-1"),
        ("deadline", "period", "5ms"),
        ("static-routes", "port-80", "wep"),
        ("canary", "sticky", "1"),
        ("allow-list", "allow", "10.0.0.1/8:80"),
        ("blue-green", "stateful", "keep"),
        ("canary-judge", "steps", "[50, 5]"),
        ("session-formats", "format", "2"),
    ] {
        let mut component = Component::new(name, &[], services()).unwrap();
        let wrong = Setup {
            settings: pairs(&[(key, value)]),
            tasks: services(),
        };
        match component.0.configure(&wrong) {
            Err(Fault::Refused { reason, .. }) => assert!(reason.contains(key), "{reason}"),
            other => panic!("{name}: {other:?}"),
        }
        let right = Setup {
            settings: Vec::new(),
            tasks: services(),
        };
        component.0.configure(&right).unwrap();
    }
}

fn run(host: &mut Host, policy: &mut Component, turns: usize) {
    for _ in 0..turns {
        host.turn(policy);
    }
}

#[test]
fn fair_share_shares_by_weight() {
    let mut policy = Component::new("fair-share", &[], weighted(&[1, 3])).unwrap();
    let mut host = Host::new(&[1, 3]);
    run(&mut host, &mut policy, 4000);
    let share = host.tasks[0].ran * 10_000 / host.now;
    assert!(share.abs_diff(2500) <= 10, "{share} of 10,000");
}

#[test]
fn fair_share_runs_who_slept_before_those_that_always_want_to() {
    for (boost, at_once) in [("0", 1), ("3", 4)] {
        let weights = [100; 4];
        let settings = [("boost", boost)];
        let mut policy = Component::new("fair-share", &settings, weighted(&weights)).unwrap();
        let mut host = Host::new(&weights);
        run(&mut host, &mut policy, 40);
        host.tasks[3].asleep = true;
        run(&mut host, &mut policy, 400);
        host.tasks[3].asleep = false;
        let turns: Vec<u32> = (0..10).map(|_| host.turn(&mut policy)).collect();
        let first = turns.iter().take_while(|it| **it == 3).count();
        assert!(first.abs_diff(at_once) <= 1, "boost {boost}: {turns:?}");
    }
}

#[test]
fn deadlines_are_met_beside_those_that_always_want_to_run() {
    // Work each period, period and deadline, in milliseconds: half the processor.
    let timely = [(1, 5), (2, 20), (10, 50)];
    let mut tasks = weighted(&[10_000, 10_000]);
    for (work, period) in timely {
        let (deadline, budget) = (format!("{period}ms"), format!("{work}ms"));
        let labels = [("budget", budget.as_str()), ("deadline", &deadline)];
        tasks.push(task("timely", period, 1, &labels));
    }
    let mut policy = Component::new("deadline", &[("slice", "1ms")], tasks).unwrap();
    let mut host = Host::new(&[10_000, 10_000, 1, 1, 1]);
    let mut begun = [0; 3];
    while host.now < 10_000 * MS {
        for (place, (work, period)) in timely.into_iter().enumerate() {
            let (task, period) = (&mut host.tasks[place + 2], u64::from(period) * MS);
            if host.now >= begun[place] * period {
                let left = task.needs.unwrap_or(0);
                assert_eq!(left, 0, "deadline {period} missed at {}", host.now);
                (task.asleep, task.needs) = (false, Some(work * MS));
                task.ready_since = host.now;
                begun[place] += 1;
            }
        }
        host.turn(&mut policy);
    }
    // What is left goes to the others, half each.
    for replica in [0, 1] {
        let share = host.tasks[replica].ran * 100 / host.now;
        assert!((23..=27).contains(&share), "{replica}: {share} %");
    }
}

#[test]
fn who_has_a_deadline_and_always_wants_to_run_leaves_the_rest_to_the_others() {
    let greedy = task("greedy", 0, 1, &[("deadline", "10ms"), ("budget", "4ms")]);
    let tasks = vec![greedy, task("other", 0, 10_000, &[])];
    let mut policy = Component::new("deadline", &[], tasks).unwrap();
    let mut host = Host::new(&[1, 10_000]);
    run(&mut host, &mut policy, 4000);
    let share = host.tasks[0].ran * 100 / host.now;
    assert!((38..=42).contains(&share), "{share} %");
}

fn verdict(policy: &mut Component, asked: Connection) -> Verdict {
    match answer(policy, &Question::Connect(asked)) {
        Answer::Connect(verdict) => verdict,
        other => panic!("{other:?}"),
    }
}

/// An address as the contract writes it.
fn endpoint(text: &str) -> Endpoint {
    let address: SocketAddr = text.parse().unwrap();
    let bits = match address {
        SocketAddr::V4(it) => it.ip().to_ipv6_mapped().to_bits(),
        SocketAddr::V6(it) => it.ip().to_bits(),
    };
    Endpoint {
        high: u64::try_from(bits >> 64).unwrap(),
        low: u64::try_from(bits & u128::from(u64::MAX)).unwrap(),
        port: address.port(),
    }
}

fn inbound(from: &str, port: u16, targets: &[u32]) -> Connection {
    Connection {
        source: endpoint(from),
        destination: Endpoint {
            port,
            ..Endpoint::default()
        },
        ..connection(Direction::Inbound, targets)
    }
}

#[test]
fn a_canary_gets_its_share_and_keeps_its_clients() {
    let mut policy = Component::new("canary", &[], services()).unwrap();
    let mut again = Component::new("canary", &[], services()).unwrap();
    let mut on_trial = 0;
    for client in 0..10_000_u32 {
        let [_, _, high, low] = client.to_be_bytes();
        let first = inbound(&format!("192.0.{high}.{low}:1"), 80, &[2, 0, 1]);
        let said = verdict(&mut policy, first.clone());
        on_trial += u32::from(said == Verdict::Target(0));
        // From another port, at another time, to another instance.
        let mut later = first;
        (later.source.port, later.now, later.lot) = (60_000, u64::MAX, u64::from(client));
        assert_eq!(verdict(&mut again, later), said, "client {client}");
    }
    assert!((900..=1100).contains(&on_trial), "{on_trial} of 10,000");
}

#[test]
fn a_canary_that_is_not_sticky_goes_by_lot() {
    let mut policy = Component::new("canary", &[("sticky", "false")], services()).unwrap();
    let (mut on_trial, mut dice) = (0, Dice::new(1));
    for _ in 0..1000 {
        let mut asked = inbound("192.0.2.1:1", 80, &[2, 0, 1]);
        asked.lot = dice.roll(1 << 31);
        on_trial += u32::from(verdict(&mut policy, asked) == Verdict::Target(0));
    }
    assert!((80..=120).contains(&on_trial), "{on_trial} of 1000");
}

#[test]
fn an_allow_list_lets_out_what_it_names() {
    let rules = [
        ("allow", "10.0.0.0/8:443, [2001:db8::]/32:*"),
        ("allow-next", "[\"192.0.2.7:8000-8999\"]"),
    ];
    let mut policy = Component::new("allow-list", &rules, services()).unwrap();
    for (from, to, said) in [
        (0, "10.1.2.3:443", Verdict::Pass),
        (0, "10.1.2.3:80", Verdict::Deny),
        (0, "11.0.0.1:443", Verdict::Deny),
        (0, "[2001:db8::1]:25", Verdict::Pass),
        (0, "[2001:db9::1]:25", Verdict::Deny),
        (0, "192.0.2.7:8080", Verdict::Deny),
        (2, "192.0.2.7:8080", Verdict::Pass),
        (2, "192.0.2.7:9000", Verdict::Deny),
        (2, "10.1.2.3:443", Verdict::Pass),
    ] {
        let asked = Connection {
            from_replica: Some(from),
            destination: endpoint(to),
            ..connection(Direction::Outbound, &[])
        };
        assert_eq!(verdict(&mut policy, asked), said, "{from} to {to}");
    }
    let mut nothing = Component::new("allow-list", &[], services()).unwrap();
    let asked = Connection {
        destination: endpoint("10.1.2.3:443"),
        ..connection(Direction::Outbound, &[])
    };
    assert_eq!(verdict(&mut nothing, asked), Verdict::Deny);
    let asked = inbound("10.1.2.3:443", 80, &[1]);
    assert_eq!(verdict(&mut nothing, asked), Verdict::Target(0));
}

#[test]
fn static_routes_lead_where_they_say() {
    let routes = [
        ("port-80", "web"),
        ("port-81", "next"),
        ("device-data", "a"),
        ("device-data@web.1", "b"),
    ];
    let mut policy = Component::new("static-routes", &routes, services()).unwrap();
    for (port, targets, said) in [
        (80, &[2, 1, 0][..], Verdict::Target(1)),
        (81, &[0, 1, 2], Verdict::Target(2)),
        (81, &[0, 1], Verdict::Deny),
        (82, &[1, 0], Verdict::Target(0)),
    ] {
        let asked = inbound("192.0.2.1:1", port, targets);
        assert_eq!(verdict(&mut policy, asked), said, "port {port}");
    }
    for (replica, place) in [(0, 1), (1, 2), (2, 1)] {
        let asked = Question::Attach(Attachment {
            now: 0,
            replica,
            generation: 1,
            device: "data".to_owned(),
            kind: DeviceKind::Block,
            backends: vec!["data".to_owned(), "a".to_owned(), "b".to_owned()],
        });
        let said = Answer::Attach(AttachVerdict::Backend(place));
        assert_eq!(answer(&mut policy, &asked), said, "replica {replica}");
    }
}

#[test]
fn blue_green_runs_both_and_goes_back_when_the_new_one_does_worse() {
    let mut policy = Component::new("blue-green", &[("period", "2min")], services()).unwrap();
    let said = answer(&mut policy, &Question::Review(proposal(0, 0)));
    assert_eq!(said, Answer::Review(Plan::BlueGreen(120_000 * MS)));
    let said = answer(&mut policy, &Question::Review(proposal(0, 1)));
    assert_eq!(said, Answer::Review(Plan::Replace));
    let mut upgrade = Upgrade::begin(&mut policy, proposal(0, 0));
    upgrade.new.errors = 2;
    match upgrade.judged(&mut policy) {
        Judgement::RollBack(why) => assert!(why.contains("2 of its 100"), "{why}"),
        other => panic!("{other:?}"),
    }
    upgrade.new.errors = 1;
    assert_eq!(upgrade.judged(&mut policy), Judgement::Keep);
}

#[test]
fn canary_judge_goes_up_step_by_step_and_back_at_once() {
    let percents = |judged: Vec<Judgement>| -> Vec<u32> {
        let percent = |it: Judgement| match it {
            Judgement::Advance(canary) => canary.percent,
            Judgement::Keep => 100,
            Judgement::RollBack(_) => 0,
            other => panic!("{other:?}"),
        };
        judged.into_iter().map(percent).collect()
    };
    for (what, slower, errors, faults, expected) in [
        ("good", 1, 0, 0, [25, 50, 100]),
        ("slow", 2, 0, 0, [25, 50, 0]),
        ("wrong", 1, 4, 0, [25, 50, 0]),
        ("broken", 1, 0, 1, [25, 50, 0]),
    ] {
        let mut policy = Component::new("canary-judge", &[], services()).unwrap();
        let mut upgrade = Upgrade::begin(&mut policy, proposal(1, 0));
        let mut judged = vec![upgrade.judged(&mut policy), upgrade.judged(&mut policy)];
        // It is moved in the midst of it.
        let state = policy.save().unwrap();
        policy = Component::new("canary-judge", &[], services()).unwrap();
        policy.restore(&state).unwrap();
        upgrade.new.p99 *= slower;
        (upgrade.new.errors, upgrade.new.faults) = (errors, faults);
        judged.push(upgrade.judged(&mut policy));
        assert_eq!(percents(judged), expected, "{what}");
    }
}
