//! Carries plans out: one step at a time, each written down before it happens.
//!
//! ```text
//! Plan ─► execute ─► journal line (fsync) ─► effect through a port ─► journal line ─► …  ─► Report
//!            ▲                                  hosts │ DM │ records
//!            └── resume: fold the journal, look at the hosts, go on
//! ```
//!
//! This crate knows hosts and DM only by the [`ports`]; `dmup-remote` implements
//! them over SSH and HTTP, tests implement them in memory.

mod error;
mod events;
mod execute;
mod gate;
mod journal;
mod look;
pub mod ports;
mod recorder;
mod run_folder;
mod turn;

pub use error::{JournalError, RunError};
pub use events::Event;
pub use execute::{Reach, execute, resume, take_back};
pub use journal::{FileJournal, Journal, MemoryJournal};
pub use look::look;
pub use run_folder::RunFolder;
