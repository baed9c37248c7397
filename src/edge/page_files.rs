//! The files of the page, embedded in the program, and the headers of all answers to it. Two servers have
//! them: `leasemux ui`, and the REST port with `--rest-ui`.

use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue};

/// The page loads its own files and calls its own server, and nothing else: log lines are untrusted.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'";

/// A file of the page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageFile {
    path: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) bytes: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! files {
    ($($path:literal $content_type:ident $file:literal,)*) => {
        &[$(PageFile {
            path: $path,
            content_type: $content_type,
            bytes: include_bytes!(concat!("../ui/page/", $file)),
        },)*]
    };
}

/// All files, by their paths below the page.
const FILES: &[PageFile] = files![
    "/" HTML "index.html",
    "/app.css" CSS "app.css",
    "/icon.svg" SVG "icon.svg",
    "/main.js" SCRIPT "main.js",
    "/ansi.js" SCRIPT "ansi.js",
    "/connection.js" SCRIPT "connection.js",
    "/controls.js" SCRIPT "controls.js",
    "/copies.js" SCRIPT "copies.js",
    "/dom.js" SCRIPT "dom.js",
    "/filter.js" SCRIPT "filter.js",
    "/gap_refill.js" SCRIPT "gap_refill.js",
    "/log_view.js" SCRIPT "log_view.js",
    "/login.js" SCRIPT "login.js",
    "/match_worker.js" SCRIPT "match_worker.js",
    "/matcher.js" SCRIPT "matcher.js",
    "/order.js" SCRIPT "order.js",
    "/replicas.js" SCRIPT "replicas.js",
    "/server.js" SCRIPT "server.js",
    "/since.js" SCRIPT "since.js",
    "/store.js" SCRIPT "store.js",
    "/time.js" SCRIPT "time.js",
];

/// Returns the file at `path`.
pub(crate) fn find(path: &str) -> Option<&'static PageFile> {
    FILES.iter().find(|file| file.path == path)
}

/// Adds the headers that all answers to the page have.
pub(crate) fn restrict(headers: &mut HeaderMap) {
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Most bytes of all files, uncompressed: a page that loads at once, and stays small enough to read.
    const PAGE_MAX_BYTES: usize = 150 * 1024;

    #[test]
    fn page_is_small_and_has_no_inline_code() {
        let total: usize = FILES.iter().map(|file| file.bytes.len()).sum();
        assert!(total <= PAGE_MAX_BYTES, "{total}");
        let files = std::fs::read_dir("src/ui/page").unwrap().count();
        assert_eq!(files, FILES.len(), "a file that is not served");
        for file in FILES {
            let text = std::str::from_utf8(file.bytes).unwrap();
            for forbidden in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                " style=",
                "http://",
                "https://",
            ] {
                let allowed = file.path == "/icon.svg" && forbidden == "http://";
                assert!(allowed || !text.contains(forbidden), "{}: {forbidden}", file.path);
            }
        }
        let page = std::str::from_utf8(find("/").unwrap().bytes).unwrap();
        for (start, _) in page.match_indices("<script") {
            assert!(page[start..].starts_with("<script type=\"module\" src=\""), "an inline script");
        }
    }

    #[test]
    fn every_import_of_the_page_is_served() {
        for file in FILES {
            let text = std::str::from_utf8(file.bytes).unwrap();
            for (_, rest) in
                text.match_indices(" from \"./").map(|(at, found)| text.split_at(at + found.len()))
            {
                let name = rest.split('"').next().unwrap();
                assert!(find(&format!("/{name}")).is_some(), "{} imports {name}", file.path);
            }
        }
    }
}
