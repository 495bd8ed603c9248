//! Runs the scenarios of the lab. Skeleton of the commands.
fn main() {}
