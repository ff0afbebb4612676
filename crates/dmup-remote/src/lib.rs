//! Under construction.
pub mod dm_api;
