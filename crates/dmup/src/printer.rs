//! Everything that dmup says: data on standard output, talk on standard error.

use std::io::Write;

use crate::args::Format;
use crate::failure::Failure;
use crate::manner::Manner;

/// The one way out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    /// Which form was asked for.
    pub(crate) format: Format,
    /// Whose manners.
    pub(crate) manner: Manner,
}

impl Printer {
    /// Data: what scripts read. A reader that is gone (`| head`) is no error.
    pub(crate) fn data(self, text: impl std::fmt::Display) {
        drop(writeln!(std::io::stdout().lock(), "{text}"));
    }

    /// Talk: what people read along. Silent for JSON, whose stream is data alone. TiUP says it on standard output.
    pub(crate) fn talk(self, text: impl std::fmt::Display) {
        match (self.format, self.manner) {
            (Format::Default, Manner::Dmup) => drop(writeln!(std::io::stderr().lock(), "{text}")),
            (Format::Default, Manner::TiupDm) => self.data(text),
            (Format::Json, _) => {}
        }
    }

    /// Talk that TiUP does not have: beside the data in its manner as well, so that scripts for TiUP read what they know.
    pub(crate) fn aside(self, text: impl std::fmt::Display) {
        match self.format {
            Format::Default => drop(writeln!(std::io::stderr().lock(), "{text}")),
            Format::Json => {}
        }
    }

    /// The process's exit code after a bad end: ours by kind, TiUP's is always 1.
    pub(crate) fn exit_code(self, failure: &Failure) -> u8 {
        match self.manner {
            Manner::Dmup => failure.kind.code(),
            Manner::TiupDm => 1,
        }
    }

    /// More about a bad end.
    pub(crate) fn after_failure(self, text: impl std::fmt::Display) {
        drop(writeln!(std::io::stderr().lock(), "\n{text}"));
    }

    /// The bad end of a command.
    pub(crate) fn failure(self, failure: &Failure) {
        let text = match self.format {
            Format::Default if self.manner == Manner::TiupDm => {
                let text = failure.to_string();
                format!("\nError: {}", text.strip_prefix("error: ").unwrap_or(&text))
            }
            Format::Default => failure.to_string(),
            Format::Json => serde_json::json!({
                "error": failure.error,
                "causes": failure.causes,
                "now": failure.now,
                "hints": failure.hints,
                "exit_code": self.exit_code(failure),
            })
            .to_string(),
        };
        drop(writeln!(std::io::stderr().lock(), "{text}"));
    }
}
