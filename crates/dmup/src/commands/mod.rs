//! One room per command.

pub(crate) mod audit;
pub(crate) mod completion;
pub(crate) mod deploy;
pub(crate) mod destroy;
pub(crate) mod display;
pub(crate) mod edit_config;
pub(crate) mod exec;
pub(crate) mod laying_out;
pub(crate) mod list;
pub(crate) mod meta;
pub(crate) mod obtaining;
mod own_files;
pub(crate) mod package;
pub(crate) mod patch;
pub(crate) mod prune;
pub(crate) mod refreshing;
pub(crate) mod replay;
pub(crate) mod resume;
pub(crate) mod rollback;
pub(crate) mod rotate_ssh;
pub(crate) mod run;
pub(crate) mod runs;
pub(crate) mod scale_in;
pub(crate) mod scale_out;
pub(crate) mod template;
pub(crate) mod units;
pub(crate) mod unlock;
