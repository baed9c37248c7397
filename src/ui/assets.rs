//! The files of the page, embedded in the program.

/// A file of the page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asset {
    pub(super) path: &'static str,
    pub(super) content_type: &'static str,
    pub(super) bytes: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! assets {
    ($($path:literal $content_type:ident $file:literal,)*) => {
        &[$(Asset {
            path: $path,
            content_type: $content_type,
            bytes: include_bytes!(concat!("page/", $file)),
        },)*]
    };
}

/// All files, by their paths.
pub(super) const ASSETS: &[Asset] = assets![
    "/" HTML "index.html",
    "/app.css" CSS "app.css",
    "/icon.svg" SVG "icon.svg",
    "/main.js" SCRIPT "main.js",
    "/ansi.js" SCRIPT "ansi.js",
    "/connection.js" SCRIPT "connection.js",
    "/filter.js" SCRIPT "filter.js",
    "/log_view.js" SCRIPT "log_view.js",
    "/order.js" SCRIPT "order.js",
    "/replicas.js" SCRIPT "replicas.js",
    "/store.js" SCRIPT "store.js",
    "/time.js" SCRIPT "time.js",
];

/// Returns the file at `path`.
pub(super) fn find(path: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Most bytes of all files, uncompressed: a page that loads at once, and stays small enough to read.
    const PAGE_MAX_BYTES: usize = 150 * 1024;

    #[test]
    fn page_is_small_and_has_no_inline_code() {
        let total: usize = ASSETS.iter().map(|asset| asset.bytes.len()).sum();
        assert!(total <= PAGE_MAX_BYTES, "{total}");
        let files = std::fs::read_dir("src/ui/page").unwrap().count();
        assert_eq!(files, ASSETS.len(), "a file that is not served");
        for asset in ASSETS {
            let text = std::str::from_utf8(asset.bytes).unwrap();
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
                let allowed = asset.path == "/icon.svg" && forbidden == "http://";
                assert!(allowed || !text.contains(forbidden), "{}: {forbidden}", asset.path);
            }
        }
        let page = std::str::from_utf8(find("/").unwrap().bytes).unwrap();
        for (start, _) in page.match_indices("<script") {
            assert!(page[start..].starts_with("<script type=\"module\" src=\"/"), "an inline script");
        }
    }

    #[test]
    fn every_import_of_the_page_is_served() {
        for asset in ASSETS {
            let text = std::str::from_utf8(asset.bytes).unwrap();
            for (_, rest) in
                text.match_indices(" from \"./").map(|(at, found)| text.split_at(at + found.len()))
            {
                let name = rest.split('"').next().unwrap();
                assert!(find(&format!("/{name}")).is_some(), "{} imports {name}", asset.path);
            }
        }
    }
}
