//! Reaches hosts and DM: the ports of `dmup-exec`, implemented.
//!
//! ```text
//! fleet ─► ssh (russh │ system ssh │ local) ─► bootstrap ─► agent_session ─► dmup agent on the host
//! dm_api ─► dm-master, dm-worker
//! ```
//!
//! Nothing is decided here but whom to trust ([`known_hosts`]) and when a
//! connection is gone; everything else is handed on as it was said.

pub mod agent_session;
pub mod bootstrap;
pub mod dm_api;
pub mod fleet;
pub mod hosts;
pub mod known_hosts;
pub mod lease;
pub mod login;
pub mod quote;
pub mod ssh;

pub use fleet::{Fleet, FleetSettings, HostAddress};
pub use login::{AuthMethod, Login, Secret};
