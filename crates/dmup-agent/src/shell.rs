//! The operator's own command (`dmup exec`): the one place where a text from outside is given to a shell.
//!
//! It is the argument of `-c` as it was typed; nothing is put before, behind or into it.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use dmup_wire::message::{Outcome, Ran, RefusalKind, Shell};

use crate::accounts::Account;
use crate::refuse::{Reply, bad, refuse, system};
use crate::run::{self, NotRun};

/// Longest command: what a kernel takes as one argument has twice as much (`MAX_ARG_STRLEN`).
const COMMAND_BYTES: usize = 64 * 1024;

/// Each output as JSON: both must fit into one frame.
const ESCAPED_BYTES: usize = 480 * 1024;

/// Runs it as whoever this process is, with the environment of a login, in the folder that the agent was started in.
pub(crate) fn shell(order: &Shell, me: &Account) -> Reply {
    let attempted = "run the command";
    if order.command.len() > COMMAND_BYTES || order.command.contains('\0') {
        let seen = format!("it must have at most {COMMAND_BYTES} bytes and no NUL");
        return Err(bad(attempted, seen));
    }
    // What TiUP gives a command to where there is one.
    let program = if run::find("bash").is_some() { "bash" } else { "sh" };
    let mut command = run::command(program).map_err(|error| system(attempted, &error))?;
    command.arg("-c").arg(&order.command).env_remove("LC_ALL");
    command.env("HOME", &me.home).env("USER", &me.name).env("LOGNAME", &me.name);
    match run::run(command, Duration::from_millis(order.within_ms)) {
        Ok(ran) => {
            let (stdout, cut) = fit(ran.stdout);
            let (stderr, also_cut) = fit(ran.stderr);
            Ok(Outcome::Ran(Ran {
                status: ran.status.code(),
                signal: ran.status.signal(),
                stdout,
                stderr,
                dropped_bytes: ran.dropped + cut + also_cut,
            }))
        }
        Err(NotRun::Spawn(error)) => Err(system(attempted, &error)),
        Err(NotRun::TooSlow(limit)) => {
            let seen = format!("it had not ended after {} s, and was killed", limit.as_secs());
            Err(refuse(RefusalKind::TooSlow, attempted, seen))
        }
    }
}

/// Cuts text to what fits into a frame with every escape of JSON; says how many bytes were cut.
fn fit(mut text: String) -> (String, u64) {
    let mut escaped = 0;
    let end = text.char_indices().find_map(|(at, c)| {
        escaped += match c {
            '"' | '\\' | '\n' | '\r' | '\t' => 2,
            c if c.is_control() => 6,
            c => c.len_utf8(),
        };
        (escaped > ESCAPED_BYTES).then_some(at)
    });
    let cut = end.map_or(0, |end| text.len() - end);
    text.truncate(end.unwrap_or(text.len()));
    (text, cut as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(command: &str) -> Reply {
        let order = Shell { command: command.to_owned(), root: false, within_ms: 20_000 };
        shell(&order, &Account::own())
    }

    fn ran(command: &str) -> Ran {
        let Outcome::Ran(ran) = ask(command).unwrap() else {
            panic!("an answer to something else")
        };
        ran
    }

    #[test]
    fn a_command_is_one_argument_and_its_end_is_told() {
        let seen = ran("printf '%s|' \"$0\" \"$#\" 'a  b'; echo $HOME >&2; exit 7");
        assert!(seen.stdout.ends_with("sh|0|a  b|"), "{seen:?}");
        assert_eq!(seen.stderr.trim(), Account::own().home.as_str());
        assert_eq!((seen.status, seen.signal, seen.dropped_bytes), (Some(7), None, 0));
        let seen = ran("kill -9 $$");
        assert_eq!((seen.status, seen.signal), (None, Some(9)));
    }

    #[test]
    fn output_that_no_frame_can_hold_is_cut_and_counted() {
        // Every byte of these becomes six in JSON, or three by being no UTF-8.
        for source in ["head -c 262144 /dev/zero", "head -c 262144 /dev/zero | tr '\\0' '\\377'"] {
            let seen = ran(&format!("{source}; {source} >&2"));
            assert!(seen.dropped_bytes > 0 && !seen.stdout.is_empty());
            let body = serde_json::to_vec(&Outcome::Ran(seen)).unwrap();
            assert!(body.len() <= dmup_wire::frame::MAX_BODY, "{}", body.len());
        }
    }

    #[test]
    fn a_command_that_is_too_long_or_takes_too_long_is_refused() {
        for bad in ["x".repeat(COMMAND_BYTES + 1), "a\0b".to_owned()] {
            assert_eq!(ask(&bad).unwrap_err().kind, RefusalKind::BadRequest);
        }
        // It would not end within the test; the limit kills it, with all that it started.
        let order = Shell { command: "sleep 600".to_owned(), root: false, within_ms: 50 };
        let refusal = shell(&order, &Account::own()).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::TooSlow);
    }
}
