//! `cargo xtask bench`: figures to look at, never to fail on. Every line of `--json` has the same shape, whatever is measured.

pub mod block;
pub mod start;
