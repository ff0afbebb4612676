//! What happens on one host: dmup's agent, a synchronous loop over standard input and output.
//!
//! ```text
//!  frames ──► serve ──► agent: who does it? ──┬─► stage, prepare, files, probe     as the deploy user
//!  (dmup-wire)  ▲                             └─► privileged ──► sudo -n dmup agent --privileged
//!               └── answers ◄── switch, guard, accounts ──► services: systemd │ supervised
//! ```
//!
//! The same binary as the controller, sent to the host and run there, so it assumes nothing of it: no
//! shell, no locale, no file in `/etc`. It decides nothing; it does one thing per request, checks
//! before and looks after, and says how things are when it could not.

mod accounts;
mod agent;
mod archive;
mod config_check;
mod every_word;
mod fence;
mod files;
mod guard;
mod hash;
mod host;
mod lease;
mod prepare;
mod privileged;
mod probe;
mod processes;
mod program;
mod refuse;
mod run;
mod serve;
mod services;
mod shell;
mod stage;
mod switch;
mod trees;

use std::ffi::OsString;
use std::process::ExitCode;

use camino::Utf8PathBuf;
use dmup_core::systemd::SystemdMode;

use guard::Moment;

#[doc(hidden)]
pub use every_word::{read_as_every_record, read_as_every_word, read_as_parcel};
pub use serve::{Broken, serve};

/// How an agent works.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Mode {
    /// It is the privileged part of another agent and does everything itself.
    pub privileged: bool,
    /// When the conversation began that it is part of: milliseconds since boot. None: now.
    pub since_ms: Option<u64>,
    /// Whose systemd runs the units that it is asked about.
    pub systemd: SystemdMode,
    /// Units are plain processes below this folder, as on a playground without systemd.
    pub supervised: Option<Utf8PathBuf>,
}

/// A guard fires because the unit's systemd starts, not because its time is up.
const AT_BOOT: &str = "--at-boot";

/// What `dmup agent …` is called for.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Call {
    Serve(Mode),
    Fire { mode: Mode, armed: Utf8PathBuf, moment: Moment },
}

/// `dmup agent [--privileged] [--since MS] [--systemd-mode MODE] [--supervised DIR] [--fire-guard FILE [--at-boot]]`;
/// `arguments` is what follows `agent`.
///
/// Ends with 0, with 1 if the conversation broke or the guard could not act, with 2 for arguments that it does not know.
pub fn main_of_agent(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let failed = |words: &dyn std::fmt::Display, code: u8| {
        say(words);
        ExitCode::from(code)
    };
    match parse(arguments) {
        Err(words) => failed(&words, 2),
        Ok(Call::Serve(mode)) => match serve(std::io::stdin().lock(), std::io::stdout(), &mode) {
            Ok(()) => ExitCode::SUCCESS,
            Err(broken) => failed(&broken, 1),
        },
        Ok(Call::Fire { mode, armed, moment }) => {
            let agent = agent::Agent::new(&mode);
            let fired = match &mode.supervised {
                Some(_) => guard::sleep_and_fire(&agent.places, &*agent.services, &armed),
                None => guard::fire(&agent.places, &*agent.services, &armed, moment),
            };
            match fired {
                Ok(()) => ExitCode::SUCCESS,
                Err(refusal) => failed(&refusal, 1),
            }
        }
    }
}

#[allow(clippy::print_stderr, reason = "the agent's stdout is the protocol; stderr is for people")]
fn say(words: &dyn std::fmt::Display) {
    eprintln!("dmup agent: {words}");
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Call, String> {
    let (mut mode, mut armed, mut moment) = (Mode::default(), None, Moment::TimeIsUp);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if argument == "--since" {
            let given = arguments.next().and_then(|word| word.to_str()?.parse().ok());
            mode.since_ms = Some(given.ok_or("--since needs a number of milliseconds")?);
            continue;
        }
        if argument == "--systemd-mode" {
            let given = arguments.next().and_then(|word| word.into_string().ok());
            mode.systemd = given.ok_or("--systemd-mode needs a word")?.parse()?;
            continue;
        }
        let mut path = || {
            let given =
                arguments.next().and_then(|path| path.into_string().ok()).map(Utf8PathBuf::from);
            given
                .filter(|path| path.is_absolute())
                .ok_or_else(|| format!("{} needs an absolute path", argument.to_string_lossy()))
        };
        match argument.to_str() {
            Some("--privileged") => mode.privileged = true,
            Some("--supervised") => mode.supervised = Some(path()?),
            Some("--fire-guard") => armed = Some(path()?),
            Some(AT_BOOT) => moment = Moment::AtBoot,
            _ => return Err(format!("unknown argument `{}`", argument.to_string_lossy())),
        }
    }
    Ok(match armed {
        Some(armed) => Call::Fire { mode: Mode { privileged: true, ..mode }, armed, moment },
        None => Call::Serve(mode),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Call, String> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn arguments_are_read_and_strange_ones_refused() {
        assert_eq!(parsed(&[]), Ok(Call::Serve(Mode::default())));
        assert_eq!(
            parsed(&["--privileged"]),
            Ok(Call::Serve(Mode { privileged: true, ..Mode::default() }))
        );
        assert_eq!(
            parsed(&["--privileged", "--since", "12"]),
            Ok(Call::Serve(Mode { privileged: true, since_ms: Some(12), ..Mode::default() }))
        );
        let mode = Mode { privileged: true, supervised: Some("/p".into()), ..Mode::default() };
        let fire = Call::Fire { mode, armed: "/g.json".into(), moment: Moment::TimeIsUp };
        assert_eq!(parsed(&["--supervised", "/p", "--fire-guard", "/g.json"]), Ok(fire));
        let mode = Mode { privileged: true, systemd: SystemdMode::User, ..Mode::default() };
        let fire = Call::Fire { mode, armed: "/g.json".into(), moment: Moment::AtBoot };
        let words = ["--systemd-mode", "user", "--at-boot", "--fire-guard", "/g.json"];
        assert_eq!(parsed(&words), Ok(fire));
        for bad in [
            &["--supervised"][..],
            &["--supervised", "p"],
            &["x"],
            &["--fire-guard"],
            &["--since", "-1"],
            &["--systemd-mode"],
            &["--systemd-mode", "both"],
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
