//! Opens the page in the user's browser.

/// Opens `url`, if there is a desktop. Failures are not reported: the URL was printed.
pub(crate) fn open(url: &str) {
    // Without a display, `xdg-open` starts a browser in the terminal, or fails.
    let has_display = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
    if has_display {
        let _ = open::that_detached(url);
    }
}
