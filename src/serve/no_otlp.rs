//! Stands in for the export of spans in a build without the feature `otlp`.

use std::sync::Arc;

use http::Uri;
use metrics::Counter;

use super::ServeError;
use crate::edge::call_trace::Tracer;
use crate::model::metrics::SpanLoss;

/// No export of spans: there is never a tracer.
#[derive(Debug)]
pub(super) struct Traces(Option<Arc<dyn Tracer>>);

impl Traces {
    /// Returns an error for any endpoint. The configuration does not accept one.
    pub(super) fn start(
        endpoint: Option<&Uri>,
        _accepted: Counter,
        _dropped: impl Fn(SpanLoss) -> Counter,
    ) -> Result<Self, ServeError> {
        endpoint.map_or(Ok(Self(None)), |_| Err(ServeError::Otlp("this build has no feature `otlp`".into())))
    }

    pub(super) fn tracer(&self) -> Option<Arc<dyn Tracer>> {
        self.0.clone()
    }

    #[expect(clippy::unused_async, reason = "the counterpart waits")]
    pub(super) async fn flush(self) {}
}
