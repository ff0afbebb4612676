//! Transports: a byte stream to a program on a host.
//!
//! Three kinds inside one [`Connection`]: `russh` in this process (the default), the system's `ssh`
//! (honours everything in the user's ssh_config), and `local` (no network at all). With
//! [`Jump`], the first two go through a host in between. What lies on the stream is not known here; see [`crate::bootstrap`] and [`crate::agent_session`].

mod connection;
mod error;
mod host_keys;
mod in_process;
mod jump;
mod spawned;
mod stream;

pub use connection::{Connection, Reach, ReachLimits, Target};
pub use error::{ChangedHostKey, ConnectFailure, ReachError};
pub use host_keys::{HostKeys, NewHostKey, UnknownHostKeys};
pub(crate) use in_process::{Stream, dial};
pub use jump::Jump;
pub use stream::{ByteStream, Piece, StreamReader, StreamWriter};
