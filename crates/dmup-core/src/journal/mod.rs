//! The journal of a run: an append-only list of facts, and the state they add up to.
//!
//! On disk: JSON Lines, UTF-8, one [`Line`] a line, fsynced before the effect it
//! announces; each line has the hash of the one before it. The state is never stored;
//! it is folded from the entries, so a journal cut off in mid-line (a killed process)
//! still reads to its last whole line.

mod entry;
mod fold;

pub use entry::{Away, BadJournal, Entry, Line, TurnEnd, parse};
pub use fold::{Folded, IllegalEntry, OpenTurn, RunState, WayBack, fold};
