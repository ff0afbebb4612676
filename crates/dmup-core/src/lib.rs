//! Decides what to do to a DM cluster, without doing it.
//!
//! ```text
//! topology  (YAML, what the operator wants)   ─┐
//! inventory (what hosts and DM reported)       ─┼─► plan::* ─► Decision ─► dmup-exec
//! policy    (limits: soak, time limits, flags) ─┘
//! ```
//!
//! Nothing in this crate is async, reads a clock, or touches a file or socket.

pub mod builds;
pub mod config_check;
pub mod digest;
pub mod display;
pub mod exporters;
pub mod ids;
pub mod instance;
pub mod inventory;
pub mod journal;
pub mod layout;
pub mod plan;
pub mod policy;
pub mod preflight;
pub mod report;
pub mod selection;
pub mod systemd;
pub mod texts;
pub mod topology;
pub mod unfinished;
pub mod version;
