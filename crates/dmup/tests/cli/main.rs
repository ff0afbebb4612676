//! The real program at the command line: what it says, how it ends, what it leaves behind.
//!
//! Runs no cluster; hosts are refused before they are asked, silent, or this machine with folders of a test's own.
#![allow(clippy::unwrap_used, reason = "the whole program is a test, its desk as well")]

mod as_tiup;
mod deploying;
mod desk;
mod error_paths;
mod help;
mod locking;
mod making;
mod members;
mod own_commands;
mod reference;
mod refusals;
mod replaying;
mod showing;
mod side_by_side;
mod state;
