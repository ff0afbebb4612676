//! `replay`: gives a recorded command once more, by its recorded words.
//!
//! TiUP skips the steps that its log calls done. Ours needs no such log: every command looks at the
//! hosts first and does what is missing.

use std::ffi::OsString;

use crate::args::{Cli, Command, ReplayArgs};
use crate::ask;
use crate::context::{Context, state_failure};
use crate::failure::Failure;

/// The command line that is to be given again, after the operator has said yes.
pub(crate) fn recorded(args: &ReplayArgs, context: &Context) -> Result<Cli, Failure> {
    let words = context
        .profile
        .audit()
        .words(&args.id)
        .map_err(|error| state_failure(error).hint("`dmup audit` lists all entries"))?;
    let line = words.join(" ");
    let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
    let mut cli = Cli::of_words(&words).map_err(|error| {
        let text = error.to_string();
        let why = text.lines().next().unwrap_or_default();
        Failure::refused(format_args!("read the recorded command `{line}` again"))
            .because([why.strip_prefix("error: ").unwrap_or(why).to_owned()])
    })?;
    if matches!(cli.command, Command::Replay(_)) {
        return Err(Failure::refused(format_args!("{} is a replay itself: `{line}`", args.id))
            .hint("replay what it replayed"));
    }
    if !context.global.yes {
        ask::confirm(&format!("Will replay the command `{line}`, in this folder."))?;
    }
    cli.global.yes |= context.global.yes;
    cli.global.accept_new_host_keys |= context.global.accept_new_host_keys;
    Ok(cli)
}
