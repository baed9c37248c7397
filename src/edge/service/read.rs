//! The one message of a call.

use std::io::Read as _;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use flate2::bufread::GzDecoder;
use http::HeaderMap;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use crate::edge::errors::CallError;
use crate::edge::request_body::RequestBody;
use crate::model::proto::PREFIX_BYTES;

/// A request must have arrived within this; it is a few hundred bytes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How a message that has the compressed flag is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Not at all: no message may have the flag.
    Identity,
    Gzip,
}

// === impl Encoding ===

impl Encoding {
    /// The encoding that the headers of a call name.
    ///
    /// # Errors
    /// It is not supported.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, CallError> {
        match headers.get("grpc-encoding").map(http::HeaderValue::as_bytes) {
            None | Some(b"" | b"identity") => Ok(Self::Identity),
            Some(b"gzip") => Ok(Self::Gzip),
            Some(_) => Err(CallError::Encoding),
        }
    }
}

/// Reads the one message of a call, and returns it without its prefix and decompressed. It has at most `max_bytes` both ways.
pub(super) async fn read(
    body: RequestBody,
    encoding: Encoding,
    max_bytes: usize,
) -> Result<Bytes, CallError> {
    let limited = Limited::new(body, max_bytes + PREFIX_BYTES);
    let collected = tokio::time::timeout(REQUEST_TIMEOUT, limited.collect());
    let collected = collected.await.map_err(|_| CallError::RequestTimeout)?.map_err(|error| {
        if error.downcast_ref::<LengthLimitError>().is_some() {
            CallError::request(format!("the request is longer than {max_bytes} bytes"))
        } else {
            CallError::request("the request broke off")
        }
    })?;
    message(collected.to_bytes(), encoding, max_bytes)
}

fn message(mut bytes: Bytes, encoding: Encoding, max_bytes: usize) -> Result<Bytes, CallError> {
    if bytes.remaining() < PREFIX_BYTES {
        return Err(CallError::request("the request holds no message"));
    }
    let compressed = match bytes.get_u8() {
        0 => false,
        1 => true,
        _ => return Err(CallError::request("the request does not begin as a gRPC message")),
    };
    let length = bytes.get_u32() as usize;
    if length != bytes.remaining() {
        return Err(CallError::request("the request does not hold exactly one message"));
    }
    match (compressed, encoding) {
        (false, _) => Ok(bytes),
        (true, Encoding::Gzip) => gunzip(&bytes, max_bytes),
        (true, Encoding::Identity) => Err(CallError::Encoding),
    }
}

/// Decompresses a message of at most `max_bytes`. However far the data would expand, no more than that is decompressed.
fn gunzip(mut compressed: &[u8], max_bytes: usize) -> Result<Bytes, CallError> {
    let mut message = Vec::new();
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
    GzDecoder::new(&mut compressed)
        .take(limit)
        .read_to_end(&mut message)
        .map_err(|_| CallError::request("the request is not valid gzip data"))?;
    if message.len() > max_bytes {
        return Err(CallError::request(format!(
            "the request is longer than {max_bytes} bytes when decompressed"
        )));
    }
    if !compressed.is_empty() {
        return Err(CallError::request("the request has more data after the gzip data"));
    }
    Ok(message.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use bytes::BufMut as _;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    const MAX_BYTES: usize = 1_000;

    fn gzip(message: &[u8]) -> Vec<u8> {
        let mut gz = GzEncoder::new(Vec::new(), Compression::default());
        gz.write_all(message).unwrap();
        gz.finish().unwrap()
    }

    fn framed(compressed: bool, message: &[u8]) -> Bytes {
        let mut bytes = vec![u8::from(compressed)];
        bytes.put_u32(u32::try_from(message.len()).unwrap());
        bytes.extend(message);
        bytes.into()
    }

    fn refused(bytes: Bytes) -> String {
        message(bytes, Encoding::Gzip, MAX_BYTES).unwrap_err().to_status().message().to_owned()
    }

    #[test]
    fn gzip_message_is_decompressed() {
        for text in [&b""[..], b"a message", &[7; MAX_BYTES]] {
            let read = message(framed(true, &gzip(text)), Encoding::Gzip, MAX_BYTES).unwrap();
            assert_eq!(read, text);
            let plain = message(framed(false, text), Encoding::Gzip, MAX_BYTES).unwrap();
            assert_eq!(plain, text);
        }
    }

    #[test]
    fn decompression_stops_at_the_size_limit() {
        let words = refused(framed(true, &gzip(&[0; MAX_BYTES + 1])));
        assert_eq!(words, "the request is longer than 1000 bytes when decompressed");
        // A thousandfold: what is beyond the limit is not even read, so that a fault in it does not show.
        let mut bomb = gzip(&vec![0; 10_000_000]);
        let end = bomb.len() - 1;
        bomb[end] ^= 1;
        assert_eq!(refused(framed(true, &bomb)), words);
    }

    #[test]
    fn damaged_gzip_message_is_refused() {
        let good = gzip(b"a message");
        assert_eq!(refused(framed(true, b"a message")), "the request is not valid gzip data");
        assert_eq!(refused(framed(true, &good[..good.len() - 1])), "the request is not valid gzip data");
        let more = [&good[..], b"x"].concat();
        assert_eq!(refused(framed(true, &more)), "the request has more data after the gzip data");
    }

    #[test]
    fn unsupported_encoding_names_the_supported_ones() {
        let headers = |value| HeaderMap::from_iter([(http::HeaderName::from_static("grpc-encoding"), value)]);
        let of = |value| Encoding::of(&headers(http::HeaderValue::from_static(value)));
        assert_eq!(Encoding::of(&HeaderMap::new()).unwrap(), Encoding::Identity);
        assert_eq!(of("identity").unwrap(), Encoding::Identity);
        assert_eq!(of("gzip").unwrap(), Encoding::Gzip);
        for error in [
            of("zstd").unwrap_err(),
            message(framed(true, &gzip(b"x")), Encoding::Identity, MAX_BYTES).unwrap_err(),
        ] {
            let status = error.to_status();
            assert_eq!(status.code(), tonic::Code::Unimplemented);
            assert_eq!(status.metadata().get("grpc-accept-encoding").unwrap(), "identity,gzip");
        }
    }
}
