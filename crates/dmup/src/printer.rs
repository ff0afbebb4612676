//! Everything that dmup says: data on standard output, talk on standard error.

use std::io::Write;

use crate::args::Format;
use crate::failure::Failure;

/// The one way out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    /// Which form was asked for.
    pub(crate) format: Format,
}

impl Printer {
    /// Data: what scripts read. A reader that is gone (`| head`) is no error.
    pub(crate) fn data(self, text: impl std::fmt::Display) {
        drop(writeln!(std::io::stdout().lock(), "{text}"));
    }

    /// Talk: what people read along. Silent for JSON, whose stream is data alone.
    pub(crate) fn talk(self, text: impl std::fmt::Display) {
        if self.format == Format::Default {
            drop(writeln!(std::io::stderr().lock(), "{text}"));
        }
    }

    /// The bad end of a command.
    pub(crate) fn failure(self, failure: &Failure) {
        let text = match self.format {
            Format::Default => failure.to_string(),
            Format::Json => serde_json::json!({
                "error": failure.error,
                "causes": failure.causes,
                "now": failure.now,
                "hints": failure.hints,
                "exit_code": failure.kind.code(),
            })
            .to_string(),
        };
        drop(writeln!(std::io::stderr().lock(), "{text}"));
    }
}
