//! Policy slots as metrics.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use wharf_model::policy::slot::State;
use wharf_policy::{BUCKETS_NS, SlotStatus};

/// Every state, so that a series is there, at 0, before a slot is first in it.
const STATES: [(State, &str); 4] = [
    (State::BuiltIn, "built-in"),
    (State::Probation, "probation"),
    (State::Active, "active"),
    (State::Quarantined, "quarantined"),
];

/// The slots of a moment.
#[derive(Debug)]
pub(super) struct Policies(pub(super) Vec<SlotStatus>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSlot {
    slot: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSlotInState {
    slot: &'static str,
    state: &'static str,
}

impl Collector for Policies {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.states(&mut encoder)?;
        self.counters(
            &mut encoder,
            ("policy_strikes", "Questions that plugins failed to answer"),
            |it| it.all_strikes,
        )?;
        self.counters(
            &mut encoder,
            ("policy_swaps", "Times that another plugin was put in"),
            |it| it.swaps,
        )?;
        let mut pauses = encoder.encode_descriptor(
            "policy_last_swap_pause",
            "For how long callers had to wait in the last swap",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for it in &self.0 {
            let pause = Duration::from_nanos(it.last_swap_pause_ns).as_secs_f64();
            ConstGauge::new(pause).encode(pauses.encode_family(&of(it))?)?;
        }
        self.times(&mut encoder)
    }
}

impl Policies {
    fn states(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut states = encoder.encode_descriptor(
            "policy_state",
            "Whether a slot is in a state: 1 for the one it is in",
            None,
            MetricType::Gauge,
        )?;
        for it in &self.0 {
            for (state, word) in STATES {
                let labels = OfSlotInState {
                    slot: it.slot.as_str(),
                    state: word,
                };
                let is_in_it = i64::from(it.state == state);
                ConstGauge::new(is_in_it).encode(states.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn counters(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        value: impl Fn(&SlotStatus) -> u64,
    ) -> Result<(), fmt::Error> {
        let mut counters = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for it in &self.0 {
            ConstCounter::new(value(it)).encode(counters.encode_family(&of(it))?)?;
        }
        Ok(())
    }

    fn times(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut times = encoder.encode_descriptor(
            "policy_call",
            "Time that plugins took to answer",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        let seconds = |ns: u64| Duration::from_nanos(ns).as_secs_f64();
        let bounds = BUCKETS_NS.map(seconds).into_iter().chain([f64::INFINITY]);
        let bounds: Vec<f64> = bounds.collect();
        for it in &self.0 {
            let counts = bounds.iter().copied().zip(it.times.buckets);
            let counts: Vec<(f64, u64)> = counts.collect();
            times
                .encode_family(&of(it))?
                .encode_histogram::<NoLabelSet>(
                    seconds(it.times.sum_ns),
                    it.times.count(),
                    &counts,
                    None,
                )?;
        }
        Ok(())
    }
}

fn of(it: &SlotStatus) -> OfSlot {
    OfSlot {
        slot: it.slot.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;
    use wharf_model::policy::SlotName;
    use wharf_model::policy::slot::State;
    use wharf_policy::{SlotConfig, Slots};

    use super::Policies;

    #[test]
    fn a_slot_has_every_metric() {
        let slots = Slots::new(Vec::new(), SlotConfig::of, None, |_| {});
        let mut status = slots.slot(SlotName::Scheduler).status();
        status.state = State::Quarantined;
        (status.all_strikes, status.swaps) = (3, 2);
        status.last_swap_pause_ns = 18_000;
        // One call within 1 µs, and two above all.
        status.times.buckets[2] = 1;
        status.times.buckets[12] = 2;
        status.times.sum_ns = 4_000_000_000;
        let mut registry = Registry::with_prefix("wharf");
        registry.register_collector(Box::new(Policies(vec![status])));
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        for line in [
            "# TYPE wharf_policy_call_seconds histogram",
            "wharf_policy_state{slot=\"scheduler\",state=\"quarantined\"} 1",
            "wharf_policy_state{slot=\"scheduler\",state=\"active\"} 0",
            "wharf_policy_strikes_total{slot=\"scheduler\"} 3",
            "wharf_policy_swaps_total{slot=\"scheduler\"} 2",
            "wharf_policy_last_swap_pause_seconds{slot=\"scheduler\"} 0.000018",
            "wharf_policy_call_seconds_sum{slot=\"scheduler\"} 4.0",
            "wharf_policy_call_seconds_count{slot=\"scheduler\"} 3",
            "wharf_policy_call_seconds_bucket{le=\"0.000001\",slot=\"scheduler\"} 1",
            "wharf_policy_call_seconds_bucket{le=\"+Inf\",slot=\"scheduler\"} 3",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
    }
}
