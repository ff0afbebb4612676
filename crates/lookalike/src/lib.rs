//! A small stand-in for TiDB Data Migration (DM), for tests: one program that is dm-master, dm-worker or Grafana's
//! server by the name it is called with.
//!
//! It speaks DM's interfaces on the same ports with the same semantics and timing where a hotfix can notice:
//! membership, election and quorum by a real etcd inside each dm-master; REST `v1alpha1`, `/status`, `/metrics`,
//! `/health`, `/version` and the gRPC calls without a REST route; sources, tasks, bindings, keepalive leases, eviction,
//! pause, resume and transfer. And it really replicates: numbered rows from a [log to a sink](rows), with a
//! checkpoint and idempotent replay, so that a lost or doubled row is seen. What a build says of itself, and how it
//! is bad, is [stamped](stamp) into the executable when a package is made.
//!
//! Facts come from recordings of DM v8.1.0 and v5.3.0 (tests/fixtures) and from reading and measuring DM; no code
//! of DM is in here.
//!
//! Not imitated: `cert-allowed-cn`; OpenAPI (`/api/v1` answers 404, as with `openapi` off); etcd's own API on the master's port (it
//! is 10 000 ports further); relay logs and the stage `relay`; DDL and its locks (always none); validators; dump and load
//! as work (a task can be told to stay in that unit: `lookalike-unit: Load`); block lists and routes; `GetCfg`, schema
//! and error handling; task configuration updates; DM's sentences, where no program reads them; most metrics; the
//! dashboards and logins of Grafana.

mod cli;
mod etcd;
mod flags;
mod grafana;
mod http;
mod keys;
mod log;
mod master;
mod proto;
mod row_client;
pub mod rows;
pub mod stamp;
mod tls;
mod worker;

pub use cli::run;
