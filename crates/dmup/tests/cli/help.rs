//! Help and completion: what an operator reads at three in the morning.

use clap::{CommandFactory, Parser};
use dmup::args::Cli;

use crate::desk::Desk;

/// Every command that is shown, with its help as `--help` prints it.
fn helps() -> Vec<(String, String)> {
    fn walk(command: &mut clap::Command, path: &str, all: &mut Vec<(String, String)>) {
        let path = format!("{path} {}", command.get_name()).trim_start().to_owned();
        all.push((path.clone(), command.render_long_help().to_string()));
        for below in command.get_subcommands_mut() {
            if !below.is_hide_set() && below.get_name() != "help" {
                walk(below, &path, all);
            }
        }
    }
    let mut all = Vec::new();
    walk(&mut Cli::command(), "", &mut all);
    all
}

/// Words as a shell sees them; no example needs more than single quotes.
fn shell_words(typed: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in typed.split('\'').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(ToOwned::to_owned));
        }
    }
    words
}

#[test]
fn every_command_has_examples_and_all_of_them_are_taken() {
    let helps = helps();
    assert!(helps.len() > 25, "{}", helps.len());
    for (path, help) in helps {
        let examples: Vec<&str> =
            help.lines().filter_map(|line| line.strip_prefix("  dmup ")).collect();
        assert!(help.contains("Examples:") && !examples.is_empty(), "{path}\n{help}");
        for example in examples {
            // What explains an example stands behind it, and what a shell does with it behind `>`.
            let typed = example.split("   ").next().unwrap_or_default();
            let typed = typed.split(" > ").next().unwrap_or_default();
            let words = std::iter::once("dmup".to_owned()).chain(shell_words(typed));
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{path}: `dmup {typed}` is not taken: {error}");
            }
        }
    }
}

#[test]
fn help_is_printed_where_it_is_asked_for() {
    let desk = Desk::empty();
    for words in [&["--help"][..], &["patch", "-h"], &["help", "rollback"]] {
        assert!(desk.ok(words).contains("Examples:"), "{words:?}");
    }
    assert!(desk.ok(&["--version"]).starts_with("dmup "));
    for shell in ["bash", "zsh", "fish"] {
        let script = desk.ok(&["completion", shell]);
        assert!(script.contains("scale-out") && script.contains("accept-new-host-keys"), "{shell}");
    }
    assert!(desk.state().is_empty(), "help is no command that is recorded");
}
