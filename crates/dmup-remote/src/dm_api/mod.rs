//! DM's own interfaces, as far as a hotfix needs them.
//!
//! ```text
//! Instance (topology) ──► DmClient ──► REST v1alpha1, /status, /health, gRPC pb.Master
//!                             │
//!                             └──► DmSeen · EffectError · TiUP's status words
//! ```
//!
//! Works with DM v2.0.0 and later: REST v1alpha1 where it has a route, gRPC for
//! the rest (`OperateTask` with sources, `TransferSource`, `ShowDDLLocks`); the
//! OpenAPI is off by default and not used. Every request has a time limit,
//! every answer a size limit; proxies of the environment are ignored, for the
//! masters are the cluster's own hosts. Nothing here decides: it asks, and says
//! which master said what.
//!
//! Facts: tiflow dm/proto/dmmaster.proto, dm/master/server.go (read at v5.3.0
//! to v8.5), and recordings of v5.3.0 and v8.1.0 in `tests/fixtures`.

mod answers;
mod client;
mod code;
mod display;
mod every_answer;
mod grpc;
mod http;
mod look;
mod seen;
#[cfg(test)]
mod tests;

pub use client::{DmClient, Timeouts, Tls, Unusable};
pub use code::DmCode;
#[doc(hidden)]
pub use every_answer::read_as_every_answer;
