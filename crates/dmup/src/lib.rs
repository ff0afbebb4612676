//! The command line of dmup: arguments in, exit code out.
//!
//! A command is `Args` + one `run`; it loads (topology, state), has others look
//! and plan, shows, asks, has others execute, and prints. Exit codes are those
//! of [`failure::Kind`], 0 for a good end; 0 and 1 alone in TiUP's [`manner`].

pub mod args;
mod ask;
mod commands;
mod context;
pub mod failure;
mod kept;
pub mod manner;
mod pointing;
mod printer;
mod progress;
pub mod surroundings;
mod tiup;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::args::{Cli, Command, Format};
use crate::context::Context;
use crate::failure::{Failure, Kind};
use crate::manner::Manner;
use crate::printer::Printer;
use crate::surroundings::Surroundings;

/// Runs one command line to its end.
pub fn run(words: Vec<OsString>, surroundings: Surroundings) -> ExitCode {
    // The agent speaks frames on its standard output: clap must not get a chance to print there.
    if words.get(1).is_some_and(|word| word == "agent") {
        return dmup_agent::main_of_agent(words.into_iter().skip(2));
    }
    let (manner, words) = match Manner::of(words) {
        Ok(known) => known,
        Err(not_dm) => {
            let printer = Printer { format: Format::Default, manner: Manner::TiupDm };
            printer.failure(&Failure::new(Kind::Usage, not_dm));
            return ExitCode::FAILURE;
        }
    };
    let cli = match Cli::of_words(&words) {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error, manner, &words, &surroundings),
    };
    let printer = Printer { format: cli.global.format, manner };
    let context = Context::new(surroundings, cli.global.clone(), printer);
    let outcome = context.audit_mark().and_then(|_| obey(&cli.command, &context));
    // Why the command itself failed is worth more than why that could not be recorded.
    let recorded = context.record(&cli.command, &words, &outcome);
    match outcome.and(recorded) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            end_badly(&failure, printer, &words, &context.surroundings);
            ExitCode::from(printer.exit_code(&failure))
        }
    }
}

/// Words that make no command: help where it was asked for or where TiUP prints it, else an error.
fn not_parsed(
    error: &clap::Error,
    manner: Manner,
    words: &[OsString],
    surroundings: &Surroundings,
) -> ExitCode {
    let printer = Printer { format: Format::Default, manner };
    if let Some(help) = manner.help_instead(error, words) {
        printer.data(help.trim_end());
        return ExitCode::SUCCESS;
    }
    if !error.use_stderr() {
        drop(error.print());
        return ExitCode::SUCCESS;
    }
    match manner {
        Manner::Dmup => {
            drop(error.print());
            ExitCode::from(Kind::Usage.code())
        }
        Manner::TiupDm => {
            let failure = Failure::new(Kind::Usage, manner::words_of(error));
            end_badly(&failure, printer, words, surroundings);
            ExitCode::FAILURE
        }
    }
}

/// Says why; in TiUP's manner also where the log of it lies.
fn end_badly(failure: &Failure, printer: Printer, words: &[OsString], around: &Surroundings) {
    printer.failure(failure);
    if printer.manner == Manner::TiupDm
        && printer.format == Format::Default
        && let Some(log) = manner::write_debug_log(&around.logs, jiff::Zoned::now(), words, failure)
    {
        printer.after_failure(format_args!("Verbose debug logs has been written to {log}."));
    }
}

/// Carries a command out; one that is replayed, with its own flags.
fn obey(command: &Command, context: &Context) -> Result<(), Failure> {
    if let (Manner::TiupDm, Command::Patch(args)) = (context.printer.manner, command)
        && args.selection.nodes.is_empty()
        && args.selection.roles.is_empty()
    {
        // What a script for TiUP does not select, it does not expect to be touched.
        return Err(Failure::new(Kind::Usage, "the flag -R or -N must be specified at least one"));
    }
    let Command::Replay(args) = command else { return dispatch(command, context) };
    let again = commands::replay::recorded(args, context)?;
    let printer = Printer { format: again.global.format, ..context.printer };
    let context = Context::new(context.surroundings.clone(), again.global, printer);
    // `recorded` has refused a replay: this goes one level deep.
    obey(&again.command, &context)
}

fn dispatch(command: &Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::List => commands::list::run(context),
        Command::Audit(args) => commands::audit::run(args, context),
        Command::Completion { shell } => commands::completion::run(*shell),
        Command::Package(args) => in_runtime(commands::package::run(args, context)),
        Command::Runs(args) => commands::runs::run(args, context),
        Command::Template(args) => commands::template::run(args, context),
        Command::Meta(args) => commands::meta::run(args, context),
        Command::EditConfig(args) => commands::edit_config::run(args, context),
        Command::Deploy(args) => in_runtime(commands::deploy::run(args, context)),
        Command::ScaleOut(args) => in_runtime(commands::scale_out::run(args, context)),
        Command::ScaleIn(args) => in_runtime(commands::scale_in::run(args, context)),
        Command::Prune(args) => in_runtime(commands::prune::run(args, context)),
        Command::Start(args) => in_runtime(commands::units::start(args, context)),
        Command::Stop(args) => in_runtime(commands::units::stop(args, context)),
        Command::Restart(args) => in_runtime(commands::restart::run(args, context)),
        Command::Reload(args) => in_runtime(commands::reload::run(args, context)),
        Command::Enable(args) => in_runtime(commands::units::enable(args, context)),
        Command::Disable(args) => in_runtime(commands::units::disable(args, context)),
        Command::Destroy(args) => in_runtime(commands::destroy::run(args, context)),
        Command::Display(args) => in_runtime(commands::display::run(args, context)),
        Command::Versions(args) => in_runtime(commands::versions::run(args, context)),
        Command::Exec(args) => in_runtime(commands::exec::run(args, context)),
        Command::Patch(args) => in_runtime(commands::patch::run(args, context)),
        Command::Upgrade(args) => in_runtime(commands::upgrade::run(args, context)),
        Command::Resume(args) => in_runtime(commands::resume::run(args, context)),
        Command::Rollback(args) => in_runtime(commands::rollback::run(args, context)),
        Command::Unlock(args) => in_runtime(commands::unlock::run(args, context)),
        Command::Rotatessh(args) => in_runtime(commands::rotate_ssh::run(args, context)),
        Command::Replay(_) => Err(Failure::refused("a replay of a replay is none")),
        Command::Agent(_) => {
            Err(Failure::new(Kind::Usage, "`agent` takes no flags of other commands"))
        }
    }
}

/// Async begins here and ends here.
fn in_runtime(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format_args!("start the runtime: {error}")))?
        .block_on(work)
}
