//! Handles: the values that the code counts with. Each registers the series of its metric.

use std::marker::PhantomData;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};

use super::declare::{Declaration, MetricKind, Unit};
use super::labels::{BUILD, BUILD_VALUES};
use crate::model::label::{LabelSet, Labels};

const METADATA: Metadata<'static> = Metadata::new("leasemux", Level::INFO, Some(module_path!()));

/// A handle to a metric: its type determines the metric's type and labels.
pub(super) trait Handle: Sized {
    const KIND: MetricKind;
    const LABELS: &'static [LabelSet];

    /// Registers all series, at zero.
    fn register(recorder: &dyn Recorder, metric: &Declaration) -> Self;
}

/// A handle to one series.
pub(super) trait Series: Sized {
    const KIND: MetricKind;

    /// Registers the series, at zero.
    fn register(recorder: &dyn Recorder, key: &Key) -> Self;
}

/// A metric with labels: a handle for each combination of their values.
#[derive(Debug)]
pub(crate) struct Family<H, L> {
    handles: Box<[H]>,
    labels: PhantomData<fn(L)>,
}

/// The series whose labels describe the build.
#[derive(Debug)]
pub(crate) struct BuildInfo(pub(super) Gauge);

/// A counter with fractions, which recorders do not have: the exporter reads the value and renders it itself.
#[derive(Debug)]
pub(crate) struct RenderedCounter(pub(crate) Declaration);

/// Returns a declaration of the type and labels that belong to the handle `H`; the unit is [`Unit::Count`].
pub(super) const fn declare<H: Handle>(
    name: &'static str,
    help: &'static str,
    alert_hint: &'static str,
) -> Declaration {
    Declaration { name, kind: H::KIND, unit: Unit::Count, labels: H::LABELS, help, alert_hint }
}

/// Describes a metric to the recorder and registers its series.
pub(super) fn register<H: Handle>(recorder: &dyn Recorder, metric: &Declaration) -> H {
    let name = KeyName::from_const_str(metric.name);
    let unit = match metric.unit {
        Unit::Bytes => Some(metrics::Unit::Bytes),
        Unit::Seconds => Some(metrics::Unit::Seconds),
        Unit::Count | Unit::Info => None,
    };
    match metric.kind {
        MetricKind::Counter => recorder.describe_counter(name, unit, metric.help.into()),
        MetricKind::Gauge => recorder.describe_gauge(name, unit, metric.help.into()),
        MetricKind::Histogram(_) => recorder.describe_histogram(name, unit, metric.help.into()),
    }
    H::register(recorder, metric)
}

// === impl Series ===

impl Series for Counter {
    const KIND: MetricKind = MetricKind::Counter;

    fn register(recorder: &dyn Recorder, key: &Key) -> Self {
        let counter = recorder.register_counter(key, &METADATA);
        counter.increment(0);
        counter
    }
}

impl Series for Gauge {
    const KIND: MetricKind = MetricKind::Gauge;

    fn register(recorder: &dyn Recorder, key: &Key) -> Self {
        let gauge = recorder.register_gauge(key, &METADATA);
        gauge.set(0.0);
        gauge
    }
}

impl Series for Histogram {
    /// The catalogue adds the buckets.
    const KIND: MetricKind = MetricKind::Histogram(&[]);

    fn register(recorder: &dyn Recorder, key: &Key) -> Self {
        recorder.register_histogram(key, &METADATA)
    }
}

// === impl Handle ===

impl<S: Series> Handle for S {
    const KIND: MetricKind = S::KIND;
    const LABELS: &'static [LabelSet] = &[];

    fn register(recorder: &dyn Recorder, metric: &Declaration) -> Self {
        S::register(recorder, &Key::from_static_name(metric.name))
    }
}

impl<S: Series, L: Labels> Handle for Family<S, L> {
    const KIND: MetricKind = S::KIND;
    const LABELS: &'static [LabelSet] = L::SETS;

    fn register(recorder: &dyn Recorder, metric: &Declaration) -> Self {
        let keys = combinations(L::SETS).into_iter().map(|labels| Key::from_parts(metric.name, labels));
        Self { handles: keys.map(|key| S::register(recorder, &key)).collect(), labels: PhantomData }
    }
}

impl Handle for BuildInfo {
    const KIND: MetricKind = MetricKind::Gauge;
    const LABELS: &'static [LabelSet] = &BUILD;

    fn register(recorder: &dyn Recorder, metric: &Declaration) -> Self {
        let labels = BUILD.iter().zip(BUILD_VALUES);
        let labels = labels.map(|(label, value)| Label::from_static_parts(label.name, value));
        Self(Series::register(recorder, &Key::from_parts(metric.name, labels.collect::<Vec<_>>())))
    }
}

impl Handle for RenderedCounter {
    const KIND: MetricKind = MetricKind::Counter;
    const LABELS: &'static [LabelSet] = &[];

    fn register(_: &dyn Recorder, metric: &Declaration) -> Self {
        Self(*metric)
    }
}

// === impl Family ===

impl<H, L: Labels> Family<H, L> {
    pub(crate) fn of(&self, labels: L) -> &H {
        // In bounds: `register` goes through the same combinations, in the order of `Labels::index`.
        &self.handles[labels.index()]
    }
}

/// Returns all combinations of values, in the order of [`Labels::index`].
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
