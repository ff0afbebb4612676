//! `completion`: a script that teaches a shell our commands and flags.

use clap::CommandFactory;

use crate::args::Cli;
use crate::failure::Failure;

pub(crate) fn run(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "dmup", &mut script);
    std::io::Write::write_all(&mut std::io::stdout().lock(), &script)
        .map_err(|error| Failure::failed(format_args!("print the script: {error}")))
}
