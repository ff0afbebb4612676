//! The name that dmup was called by, and the manners that go with it.
//!
//! Called as `tiup-dm`, or as `tiup` with `dm` as its first word, it answers scripts as TiUP 1.16.5
//! does: exit code 0 or 1, help and 0 where arguments are missing, `Error: ` before errors,
//! sentences on standard output. What stays different is in `docs/differences.md`.
//! Facts: tiup components/dm/command/root.go; cobra 1.6.1.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use camino::{Utf8Path, Utf8PathBuf};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory};

use crate::args::Cli;
use crate::failure::Failure;

/// How scripts are answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Manner {
    /// Our own: exit codes of [`crate::failure::Kind`], talk on standard error.
    Dmup,
    /// TiUP's.
    TiupDm,
}

/// Called as `tiup` for something else than `dm`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("called as `tiup`, dmup knows the component `dm` alone: type `tiup dm …`")]
pub struct NotDm;

impl Manner {
    /// The manner that the program's name asks for, and the command line without the component's name.
    ///
    /// # Errors
    ///
    /// [`NotDm`].
    pub fn of(mut words: Vec<OsString>) -> Result<(Self, Vec<OsString>), NotDm> {
        let name = words.first().map(Path::new).and_then(Path::file_name).and_then(OsStr::to_str);
        match name {
            Some("tiup-dm") => Ok((Self::TiupDm, words)),
            Some("tiup") => {
                // `dm:v1.16.5` asks for a version of the component; there is this one only.
                let component = words.get(1).and_then(|word| word.to_str());
                if !component.is_some_and(|word| word == "dm" || word.starts_with("dm:")) {
                    return Err(NotDm);
                }
                words.remove(1);
                words[0] = "tiup-dm".into();
                Ok((Self::TiupDm, words))
            }
            _ => Ok((Self::Dmup, words)),
        }
    }

    /// The help that TiUP prints, ending with 0, where the number of arguments is wrong.
    pub fn help_instead(self, error: &clap::Error, words: &[OsString]) -> Option<String> {
        let is_help = self == Self::TiupDm && is_about_arguments(error, &path_of(words));
        is_help.then(|| help_of(&path_of(words)))
    }
}

/// Whether TiUP prints help for this. `deploy` and `meta` say what is missing, and so does a flag that must be there.
fn is_about_arguments(error: &clap::Error, path: &[String]) -> bool {
    let command = path.first().map(String::as_str);
    match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand, _) => {
            true
        }
        (ErrorKind::InvalidSubcommand, _) => !path.is_empty(),
        (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(missing))) => {
            let says_so = match command {
                Some("deploy") => missing.len() < 3,
                Some("meta") => path.len() > 1,
                _ => false,
            };
            !says_so && !missing.iter().any(|word| word.starts_with('-'))
        }
        (ErrorKind::UnknownArgument, Some(ContextValue::String(surplus))) => {
            !surplus.starts_with('-')
        }
        _ => false,
    }
}

/// The words among these that name a command and what is below it.
fn path_of(words: &[OsString]) -> Vec<String> {
    let root = Cli::command();
    let mut command = &root;
    let mut path = Vec::new();
    for word in words.iter().skip(1).filter_map(|word| word.to_str()) {
        if let Some(below) = command.find_subcommand(word) {
            path.push(below.get_name().to_owned());
            command = below;
        }
    }
    path
}

fn help_of(path: &[String]) -> String {
    let mut root = Cli::command().name("tiup-dm").bin_name("tiup-dm");
    root.build();
    let meant = path.iter().fold(&mut root, |command: &mut Command, name| {
        command.find_subcommand_mut(name).expect("`path_of` found it")
    });
    meant.render_help().to_string()
}

/// What is wrong with a command line, without clap's own heading.
pub(crate) fn words_of(error: &clap::Error) -> String {
    if let (ErrorKind::InvalidSubcommand, Some(ContextValue::String(word))) =
        (error.kind(), error.get(ContextKind::InvalidSubcommand))
    {
        return format!("unknown command \"{word}\" for \"tiup-dm\"");
    }
    let text = error.to_string();
    text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned()
}

/// The file that TiUP writes after an error and names: support scripts look for it.
pub(crate) fn write_debug_log(
    logs: &Utf8Path,
    now: jiff::Zoned,
    words: &[OsString],
    failure: &Failure,
) -> Option<Utf8PathBuf> {
    let path = logs.join(now.strftime("tiup-dm-debug-%Y-%m-%d-%H-%M-%S.log").to_string());
    let line: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    // The command has failed already and said why; a log of it that cannot be written is no news.
    fs_err::create_dir_all(logs).ok()?;
    fs_err::write(&path, format!("{}\n{failure}\n", line.join(" "))).ok()?;
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_name_decides() {
        let of = |line: &str| Manner::of(words(line));
        let display = Ok((Manner::TiupDm, words("tiup-dm display prod")));
        assert_eq!(of("tiup dm display prod"), display);
        assert_eq!(of("/usr/bin/tiup dm:v1.16.5 display prod"), display);
        assert_eq!(of("/usr/bin/tiup-dm list").unwrap().0, Manner::TiupDm);
        assert_eq!(of("/usr/bin/dmup dm").unwrap().0, Manner::Dmup);
        for other in ["tiup", "tiup cluster list", "tiup dmx"] {
            assert_eq!(of(other), Err(NotDm));
        }
    }

    #[test]
    fn help_is_printed_where_tiup_prints_it() {
        let helps = |line: &str| {
            let error = Cli::of_words(&words(line)).unwrap_err();
            Manner::TiupDm.help_instead(&error, &words(line)).is_some()
        };
        for line in [
            "tiup-dm",
            "tiup-dm patch",
            "tiup-dm patch prod",
            "tiup-dm display",
            "tiup-dm display prod test",
            "tiup-dm deploy",
            "tiup-dm deploy --yes",
            "tiup-dm meta",
            "tiup-dm meta what",
        ] {
            assert!(helps(line), "{line}");
        }
        for line in [
            "tiup-dm what",
            "tiup-dm display prod --what",
            "tiup-dm deploy prod v8.1.0",
            "tiup-dm scale-in prod",
            "tiup-dm scale-in",
            "tiup-dm meta backup",
            "tiup-dm display prod -c x",
        ] {
            assert!(!helps(line), "{line}");
        }
    }
}
