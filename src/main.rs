//! leasemux
fn main() {}
