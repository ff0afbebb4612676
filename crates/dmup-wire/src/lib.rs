//! The messages between the controller and its agent on a host.
//!
//! ```text
//! controller                      agent (dmup agent, same build, one per host)
//!    │  ◄──────────── Hello ────────── │   once, unasked
//!    │ ── Request{id} ───────────────► │   several may be under way, told apart by id
//!    │ ◄──────────── Credit{id} ────── │   only for requests that take a stream
//!    │ ── Chunk{id}… End{id} ────────► │   never more bytes than credited
//!    │ ◄──────────── Answer{id} ────── │   exactly one per request
//! ```
//!
//! An answer on the wire is one of two: it held, or it was refused with a
//! reason. The third answer, "we do not know", is the controller's own
//! conclusion when the stream breaks between request and answer.
//!
//! This crate does no I/O: [`frame`] turns bytes into frames and back.

pub mod frame;
pub mod lease;
pub mod message;

use dmup_core::systemd::SystemdMode;

/// Both sides must have the same one; it rises with every change of a message.
///
/// 1: first. 2: leases; login keys are taken away; commands of the operator's run. 3: windows that
/// write files, and those that exchange nothing; how file systems are mounted. 4: trees that stay.
/// 5: a cluster leaves a host. 6: guards write files back. 7: what a window exchanges need not be called `bin`.
/// 8: services of a user's systemd. 9: configurations are judged. 10: who else may write into a folder.
pub const PROTOCOL: u32 = 10;

/// What follows `agent` when it is started for clusters of that mode. All of a conversation is about one: that is
/// said once, before it begins, and [`message::Hello`] says it back.
pub fn agent_arguments(systemd: SystemdMode) -> &'static [&'static str] {
    match systemd {
        SystemdMode::System => &[],
        SystemdMode::User => &["--systemd-mode", "user"],
    }
}
