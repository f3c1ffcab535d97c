//! The `kernelry` command line.

fn main() {}
