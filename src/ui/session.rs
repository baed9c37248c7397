//! Admits one browser: it presents the secret of the printed URL once and gets a cookie for it.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use data_encoding::BASE64URL_NOPAD;
use http::HeaderMap;
use http::header::COOKIE;
use parking_lot::Mutex;
use rand::RngExt as _;

/// Bytes of a secret: 256 random bits, too many to guess.
const SECRET_BYTES: usize = 32;

/// The secrets of one run of the program.
pub(super) struct Session {
    /// In the printed URL. `None` after its use: the URL may be in a history, or in a list of processes.
    secret: Mutex<Option<String>>,
    cookie_name: String,
    cookie: String,
}

// === impl Session ===

impl Session {
    /// Creates a session of the server on this port.
    pub(super) fn new(port: u16) -> Self {
        // Cookies belong to a host and not to a port, so programs on other ports need other names.
        let cookie_name = format!("leasemux-ui-{port}");
        Self { secret: Mutex::new(Some(random())), cookie_name, cookie: random() }
    }

    /// Returns the secret, unless it was used.
    pub(super) fn secret(&self) -> Option<String> {
        self.secret.lock().clone()
    }

    /// Uses up the secret. Returns the cookie to set, as the value of `Set-Cookie`; `None` if `secret` is
    /// another one.
    pub(super) fn exchange(&self, secret: &str) -> Option<String> {
        let mut expected = self.secret.lock();
        if !expected.as_ref().is_some_and(|expected| is_equal(expected, secret)) {
            return None;
        }
        *expected = None;
        Some(format!("{}={}; Path=/; HttpOnly; SameSite=Strict", self.cookie_name, self.cookie))
    }

    /// Returns whether the request has the cookie.
    pub(super) fn is_authorized(&self, headers: &HeaderMap) -> bool {
        let cookies = headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
        let pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut own = pairs.filter(|(name, _)| *name == self.cookie_name);
        own.any(|(_, value)| is_equal(&self.cookie, value))
    }
}

/// Omits the secrets.
impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("cookie_name", &self.cookie_name).finish_non_exhaustive()
    }
}

fn random() -> String {
    BASE64URL_NOPAD.encode(&rand::rng().random::<[u8; SECRET_BYTES]>())
}

fn is_equal(expected: &str, given: &str) -> bool {
    verify_slices_are_equal(expected.as_bytes(), given.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_authorized(session: &Session, cookies: &[&str]) -> bool {
        session.is_authorized(&cookies.iter().map(|cookie| (COOKIE, cookie.parse().unwrap())).collect())
    }

    #[test]
    fn secret_is_good_for_one_cookie() {
        let session = Session::new(7000);
        let secret = session.secret().unwrap();
        assert_eq!(secret.len(), 43);
        assert_eq!(session.exchange(""), None);
        assert_eq!(session.exchange(&secret[1..]), None);
        let set = session.exchange(&secret).unwrap();
        assert_eq!((session.exchange(&secret), session.secret()), (None, None));
        let (pair, attributes) = set.split_once(';').unwrap();
        assert_eq!(attributes, " Path=/; HttpOnly; SameSite=Strict");
        assert!(is_authorized(&session, &[pair]));
        assert!(is_authorized(&session, &["a=b; c", &format!("leasemux-ui-7000=old; {pair}; x=y")]));
        for other in [
            "",
            "leasemux-ui-7000=",
            "leasemux-ui-7000",
            &pair.replace("7000", "7001"),
            &pair[..pair.len() - 1],
        ] {
            assert!(!is_authorized(&session, &[other]), "{other}");
        }
        assert!(!is_authorized(&Session::new(7000), &[pair]), "another run");
    }
}
