//! What a metric is said to be, before it is counted: enough to register it, to print a page of all, and to hold that page, the
//! dashboard and the alerts against the code.

/// One metric, as it is declared.
#[derive(Clone, Copy, Debug)]
pub struct Declaration {
    /// Its name, as Prometheus' conventions have it: base units, `_total` for what only grows.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: MetricKind,
    /// What its value is a number of.
    pub unit: Unit,
    /// Its labels, in the order in which they are written.
    pub labels: &'static [LabelSet],
    /// What it means: one sentence, without a full stop. Part of `/metrics`.
    pub help: &'static str,
    /// When whoever is on call should look closer. Part of the page only.
    pub alert_hint: &'static str,
}

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricKind {
    /// Only grows, but for a restart.
    Counter,
    /// Is what it is now.
    Gauge,
    /// Samples, counted in buckets with these upper bounds.
    Histogram(&'static [f64]),
}

/// What a value is a number of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Of things that are counted: the name says which.
    Count,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// Nothing: the value is always 1, and the labels tell.
    Info,
}

/// A label and all the values that it can have. Never a tenant, a lease or a service: their number has no bound, and whoever
/// reads metrics is not meant to know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelSet {
    /// Its name.
    pub name: &'static str,
    /// Its values; none if they are fixed by the build.
    pub values: &'static [&'static str],
}

/// Metrics that are told of together.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// What they are about.
    pub title: &'static str,
    /// A sentence or two for who looks at them for the first time.
    pub about: &'static str,
    /// The metrics, in the order in which they are told.
    pub metrics: &'static [&'static Declaration],
}

/// A closed set of values of one label.
pub trait LabelValue: Copy + 'static {
    /// The label, with all values in the order of [`LabelValue::index`].
    const SET: LabelSet;

    /// Which of them this is.
    fn index(self) -> usize;
}

/// The values of all labels of one series.
pub trait Labels: Copy + 'static {
    /// The labels.
    const SETS: &'static [LabelSet];

    /// Which of all combinations this is: the last label's value changes first.
    fn index(self) -> usize;
}

/// Declares an enum whose variants are the values of a label.
macro_rules! label {
    ($(#[$about:meta])* $vis:vis enum $name:ident as $label:literal {
        $($(#[$what:meta])* $variant:ident = $value:literal,)+
    }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $vis enum $name {
            $($(#[$what])* $variant,)+
        }

        impl $name {
            /// All of them, in the order of [`LabelValue::index`](crate::model::metrics::LabelValue::index).
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
        }

        impl $crate::model::metrics::LabelValue for $name {
            const SET: $crate::model::metrics::LabelSet =
                $crate::model::metrics::LabelSet { name: $label, values: &[$($value),+] };

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}
pub(crate) use label;

impl<L: LabelValue> Labels for L {
    const SETS: &'static [LabelSet] = &[L::SET];

    fn index(self) -> usize {
        LabelValue::index(self)
    }
}

impl<A: LabelValue, B: LabelValue> Labels for (A, B) {
    const SETS: &'static [LabelSet] = &[A::SET, B::SET];

    fn index(self) -> usize {
        self.0.index() * B::SET.values.len() + LabelValue::index(self.1)
    }
}

// === impl Kind ===

impl MetricKind {
    /// The word that Prometheus has for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

// === impl Unit ===

impl Unit {
    /// One word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Count => "number",
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
            Self::Info => "always 1",
        }
    }
}
