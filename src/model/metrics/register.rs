//! From declarations to handles.

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};

use super::Family;
use super::declare::{Declaration, LabelSet, Labels, MetricKind, Unit};

/// Registers what is declared, all of it at zero, so that every series is there from the first scrape on.
pub(super) struct Registrar<'a>(pub(super) &'a dyn Recorder);

const METADATA: Metadata<'static> = Metadata::new("leasemux", Level::INFO, Some(module_path!()));

impl Registrar<'_> {
    /// Says what a metric is.
    pub(super) fn describe(&self, metric: &Declaration) {
        let name = KeyName::from_const_str(metric.name);
        let unit = match metric.unit {
            Unit::Bytes => Some(metrics::Unit::Bytes),
            Unit::Seconds => Some(metrics::Unit::Seconds),
            Unit::Count | Unit::Info => None,
        };
        match metric.kind {
            MetricKind::Counter => self.0.describe_counter(name, unit, metric.help.into()),
            MetricKind::Gauge => self.0.describe_gauge(name, unit, metric.help.into()),
            MetricKind::Histogram(_) => self.0.describe_histogram(name, unit, metric.help.into()),
        }
    }

    pub(super) fn one_counter(&self, key: &Key) -> Counter {
        let counter = self.0.register_counter(key, &METADATA);
        counter.increment(0);
        counter
    }

    fn one_gauge(&self, key: &Key) -> Gauge {
        let gauge = self.0.register_gauge(key, &METADATA);
        gauge.set(0.0);
        gauge
    }

    fn one_histogram(&self, key: &Key) -> Histogram {
        self.0.register_histogram(key, &METADATA)
    }

    pub(super) fn counter(&self, metric: &Declaration) -> Counter {
        self.describe(metric);
        self.one_counter(&Key::from_static_name(metric.name))
    }

    pub(super) fn gauge(&self, metric: &Declaration) -> Gauge {
        self.describe(metric);
        self.one_gauge(&Key::from_static_name(metric.name))
    }

    pub(super) fn histogram(&self, metric: &Declaration) -> Histogram {
        self.describe(metric);
        self.one_histogram(&Key::from_static_name(metric.name))
    }

    pub(super) fn counters<L: Labels>(&self, metric: &Declaration) -> Family<Counter, L> {
        self.family(metric, Self::one_counter)
    }

    pub(super) fn gauges<L: Labels>(&self, metric: &Declaration) -> Family<Gauge, L> {
        self.family(metric, Self::one_gauge)
    }

    pub(super) fn histograms<L: Labels>(&self, metric: &Declaration) -> Family<Histogram, L> {
        self.family(metric, Self::one_histogram)
    }

    /// A metric that is always 1 and tells by its labels.
    pub(super) fn info(&self, metric: &Declaration, values: &[&'static str]) {
        self.describe(metric);
        let labels = metric.labels.iter().zip(values);
        let labels = labels.map(|(label, value)| Label::from_static_parts(label.name, value));
        self.one_gauge(&Key::from_parts(metric.name, labels.collect::<Vec<_>>())).set(1.0);
    }

    /// A handle for each combination of the values of its labels.
    pub(super) fn each<H>(&self, metric: &Declaration, one: impl Fn(&Self, &Key) -> H) -> Box<[H]> {
        self.describe(metric);
        let keys = combinations(metric.labels).into_iter().map(|labels| Key::from_parts(metric.name, labels));
        keys.map(|key| one(self, &key)).collect()
    }

    fn family<H, L: Labels>(&self, metric: &Declaration, one: impl Fn(&Self, &Key) -> H) -> Family<H, L> {
        debug_assert_eq!(metric.labels, L::SETS, "{} is declared with other labels", metric.name);
        Family::new(self.each(metric, one))
    }
}

/// Every combination of values, in the order of [`Labels::index`].
fn combinations(sets: &[LabelSet]) -> Vec<Vec<Label>> {
    sets.iter().fold(vec![Vec::new()], |shorter, set| {
        let longer = shorter.iter().flat_map(|labels| {
            set.values.iter().map(|value| {
                let mut labels = labels.clone();
                labels.push(Label::from_static_parts(set.name, value));
                labels
            })
        });
        longer.collect()
    })
}
