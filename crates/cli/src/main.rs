//! The `evidenceos` command.
fn main() {}
