//! The one message of a call.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use crate::edge::request_body::RequestBody;
use crate::edge::status::CallError;
use crate::model::proto::PREFIX_BYTES;

/// A request must have arrived within this; it is a few hundred bytes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The one message of a call, without its prefix; of at most `max_bytes`.
pub(super) async fn read(body: RequestBody, max_bytes: usize) -> Result<Bytes, CallError> {
    let limited = Limited::new(body, max_bytes + PREFIX_BYTES);
    let collected = tokio::time::timeout(REQUEST_TIMEOUT, limited.collect());
    let collected = collected.await.map_err(|_| CallError::RequestTimeout)?.map_err(|error| {
        if error.downcast_ref::<LengthLimitError>().is_some() {
            CallError::request(format!("the request is longer than {max_bytes} bytes"))
        } else {
            CallError::request("the request broke off")
        }
    })?;
    let mut bytes = collected.to_bytes();
    if bytes.remaining() < PREFIX_BYTES {
        return Err(CallError::request("the request holds no message"));
    }
    match bytes.get_u8() {
        0 => {}
        1 => return Err(CallError::Unimplemented("compressed requests are not accepted")),
        _ => return Err(CallError::request("the request does not begin as a gRPC message")),
    }
    let length = bytes.get_u32() as usize;
    if length != bytes.remaining() {
        return Err(CallError::request("the request does not hold exactly one message"));
    }
    Ok(bytes)
}
