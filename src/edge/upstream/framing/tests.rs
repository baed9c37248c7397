use proptest::prelude::*;

use super::*;

/// Scans `bytes` in parts of `part` bytes. Returns what passes.
fn pass(bytes: &[u8], part: usize) -> Vec<u8> {
    let mut scanner = FramingGuard::new(()).scanner;
    let mut passed = Vec::new();
    for part in bytes.chunks(part) {
        let mut part = part.to_vec();
        let taken = scanner.scan(&mut part);
        passed.extend_from_slice(&part[..taken]);
        if scanner.state == State::Rejected {
            break;
        }
    }
    passed
}

const VALID: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "\r\n\r\nGET / HTTP/1.1\nHost: a\n\n",
    "PUT / HTTP/1.1\r\nContent-Length: 47\r\n\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
    "PUT / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "PUT / HTTP/1.1\r\nContent-Length: 3\r\ncontent-length:3\r\n\r\nabc",
    "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n\r\n\r\n1E;x=\"y\"\r\nContent-Length: 1\r\nContent-Len\r\n0\r\n\r\n",
    "PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nTransfer-Encoding: x\r\nContent-Length: 1\r\n\r\n",
];

const AMBIGUOUS: &[&str] = &[
    "PUT / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\nX: y\r\ncontent-length: 3\r\n\r\n",
    "PUT / HTTP/1.1\nTRANSFER-ENCODING:chunked\nCONTENT-LENGTH:3\n\n",
    "PUT / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
    "PUT / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\n",
    "PUT / HTTP/1.1\r\nContent-Length: +3\r\n\r\n",
    "PUT / HTTP/1.1\r\nContent-Length:\r\n\r\n",
    "PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "PUT / HTTP/1.1\r\nContent-Length:                                                                  3\r\n\r\n",
    "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
    "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc",
    "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x\nabc",
    "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\nX: y\r\nContent-Length: 9\r\n\r\n",
    "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n",
    "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc",
    "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000003\r\nabc\r\n",
];

#[test]
fn valid_requests_pass_unchanged() {
    let all = VALID.concat();
    for part in [1, 2, 7, 64, 100_000] {
        assert_eq!(pass(all.as_bytes(), part), all.as_bytes(), "{part}");
    }
}

#[test]
fn ambiguous_request_is_cut_after_an_invalid_byte() {
    for ambiguous in AMBIGUOUS {
        for before in ["", VALID[0], VALID[2], VALID[5], VALID[6]] {
            let all = [before, ambiguous].concat();
            for part in [1, 3, 100_000] {
                let passed = pass(all.as_bytes(), part);
                assert_eq!(passed.last(), Some(&INVALID_BYTE), "{all:?}");
                let unchanged = passed.len() - 1;
                assert!(unchanged >= before.len(), "{all:?}");
                assert_eq!(passed[..unchanged], all.as_bytes()[..unchanged]);
                assert_eq!(all.as_bytes()[unchanged], b'\n', "{all:?}");
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_pass_independently_of_their_parts(
        bytes in prop::collection::vec(prop_oneof![
            Just(b"\r\n".to_vec()), Just(b"\n".to_vec()), Just(b"Content-Length: 2".to_vec()),
            Just(b"Transfer-Encoding: chunked".to_vec()), Just(b"1".to_vec()), Just(b"0".to_vec()),
            Just(b"PUT / HTTP/1.1\r\n".to_vec()), prop::collection::vec(any::<u8>(), 0..80),
        ], 0..20),
        part in 1_usize..50,
    ) {
        let bytes = bytes.concat();
        let passed = pass(&bytes, part);
        prop_assert_eq!(&passed, &pass(&bytes, bytes.len().max(1)));
        let unchanged = passed.len().saturating_sub(1);
        prop_assert_eq!(&passed[..unchanged], &bytes[..unchanged]);
    }
}
