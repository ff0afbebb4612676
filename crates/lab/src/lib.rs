//! What tests and the demo need around dmup: hosts, a DM to look at, rows, an operator at a keyboard.

pub mod dm;
pub mod operator;
