//! Plans: what to do to a cluster, in which order, decided before anything is touched.
//!
//! ```text
//! HotfixRequest (want) ┐                    ┌ NothingToDo
//! Inventory     (is)   ├─► plan_hotfix ─► Decision ┼ Go(Plan)  ─► check ─► render, execute
//! Policy        (may)  ┘                    └ Blocked(all reasons at once)
//! ```
//!
//! A [`Plan`] is first everything that can be prepared without touching what
//! systemd starts, then one [`Turn`] per instance. After any whole turn, and
//! before any window, the cluster is in a state in which it can stay.
//! Facts about DM: reference/dm.md sections 7 and 12.

mod basis;
mod check;
mod decision;
mod health;
mod hotfix;
mod render;
mod step;
mod turn;

pub use basis::{Basis, basis_of};
pub use check::{BrokenRule, check};
pub use decision::{
    Blocker, Consent, Decision, Kind, Override, ParcelSpec, Plan, TargetBuild, Turn, Warning,
};
pub use health::{Expectation, Health, busy, is_quiet, judge, judge_cluster, reported_by_dash_v};
pub use hotfix::{
    Allowances, HotfixRequest, Purpose, RestartRequest, RollbackRequest, RollbackTarget,
    plan_hotfix, plan_restart, plan_rollback,
};
pub use render::render;
pub use step::{Around, Step};
pub use turn::{TurnFacts, is_up, leader_of, master_of, turn_steps, worker_of};
