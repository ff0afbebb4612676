//! What tests and the demo need around the product: machines, faults, programs and packages.
//!
//! - [`hosts`]: real machines (systemd, sshd, sudo) in `systemd-nspawn`, in sets h1 … hN, with [`hosts::Host`] carrying the faults
//! - [`root_image`]: the Debian root that these machines run on, made once and cached
//! - [`debian`]: which Debian packages this needs, and installing what is missing
//! - [`local_hosts`]: folders and loopback addresses, for machines that cannot boot hosts
//! - [`delay_proxy`]: a TCP proxy that adds latency or cuts connections
//! - [`build`]: builds the workspace's programs and says where they are
//! - [`dm`]: DM as its users see it; [`operator`]: somebody at a keyboard with `dmup`
//! - [`packages`], [`writer`], [`witness`]: packages of the stand-in, rows that go in, rows that come out
//! - [`mirror`]: a signed mirror as TiUP's clients know it
//! - [`playground`]: the main job without hosts, for machines that cannot boot any
//! - [`scene`]: a cluster on hosts with rows flowing, for tests; [`demo`]: the main job, told from outside
//! - [`faults_matrix`]: a hotfix with every fault in every phase; [`soak`]: one that is killed again and again; both in [`Lane`]s, with
//!   [`attended`], a `dmup` under way, and [`outside`], how a cluster stands without asking `dmup`
//! - [`real_dm`]: a real DM and databases around it, where somebody has a package of one
//! - [`surroundings`]: the environment variables that are read, all in one place
//!
//! Everything here is for development; nothing of it is reachable from `dmup`.

pub mod attended;
pub mod build;
pub mod command;
pub mod debian;
pub mod delay_proxy;
pub mod demo;
pub mod dm;
pub mod faults_matrix;
pub mod hosts;
mod lane;
pub mod local_hosts;
pub mod mirror;
pub mod operator;
pub mod outside;
pub mod packages;
pub mod playground;
pub mod real_dm;
pub mod root_image;
pub mod scene;
pub mod soak;
pub mod surroundings;
mod waiting;
pub mod witness;
pub mod writer;

pub use command::CommandFailed;
pub use hosts::{Host, HostSet, LabError};
pub use lane::Lane;
pub use waiting::{wait_for, wait_until};
