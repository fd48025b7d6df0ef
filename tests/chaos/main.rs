//! Kills services at random moments.
fn main() {}
