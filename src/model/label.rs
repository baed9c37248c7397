//! Labels: names of closed sets of values, as metrics and error details use them.

/// A label and its possible values. Never a tenant, a lease or a service: their number has no bound, and
/// readers of metrics should not learn them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelSet {
    /// Name of the label in metrics and error details.
    pub name: &'static str,
    /// Possible values; empty if the build determines them.
    pub values: &'static [&'static str],
}

/// A value of one label.
pub trait LabelValue: Copy + 'static {
    /// The label, with its values in the order of [`LabelValue::index`].
    const SET: LabelSet;

    /// Returns the index of this value.
    fn index(self) -> usize;

    /// Returns the text of this value.
    fn label(self) -> &'static str {
        Self::SET.values[self.index()]
    }
}

/// The values of all labels of one series.
pub trait Labels: Copy + 'static {
    /// The labels, in the order in which a series has them.
    const SETS: &'static [LabelSet];

    /// Returns the index of this combination. The value of the last label changes first.
    fn index(self) -> usize;
}

impl<L: LabelValue> Labels for L {
    const SETS: &'static [LabelSet] = &[L::SET];

    fn index(self) -> usize {
        LabelValue::index(self)
    }
}

impl<A: LabelValue, B: LabelValue> Labels for (A, B) {
    const SETS: &'static [LabelSet] = &[A::SET, B::SET];

    fn index(self) -> usize {
        LabelValue::index(self.0) * B::SET.values.len() + LabelValue::index(self.1)
    }
}

/// Declares an enum whose variants are the values of a label.
macro_rules! label {
    ($(#[$about:meta])* $vis:vis enum $name:ident as $label:literal {
        $($(#[$what:meta])* $variant:ident = $value:literal,)+
    }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis enum $name {
            $($(#[$what])* $variant,)+
        }

        impl $name {
            /// All values, in the order of [`LabelValue::index`](crate::model::label::LabelValue::index).
            #[allow(dead_code, reason = "only some labels are enumerated")]
            $vis const ALL: &'static [Self] = &[$(Self::$variant),+];
        }

        impl $crate::model::label::LabelValue for $name {
            const SET: $crate::model::label::LabelSet =
                $crate::model::label::LabelSet { name: $label, values: &[$($value),+] };

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}
pub(crate) use label;
