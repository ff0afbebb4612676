//! How a verb says no: constructors of [`Refusal`], and system errors turned into one.

use std::io;

use dmup_wire::message::{Outcome, Refusal, RefusalKind};

/// What every verb ends with.
pub(crate) type Reply = Result<Outcome, Refusal>;

/// What the wire allows for `observed`.
const OBSERVED_LIMIT: usize = 4096;

/// A refusal whose attempt changed nothing.
pub(crate) fn refuse(
    kind: RefusalKind,
    attempted: impl Into<String>,
    observed: impl Into<String>,
) -> Refusal {
    Refusal { attempted: attempted.into(), observed: clip(observed.into()), kind, state: None }
}

/// The request makes no sense here.
pub(crate) fn bad(attempted: impl Into<String>, observed: impl Into<String>) -> Refusal {
    refuse(RefusalKind::BadRequest, attempted, observed)
}

/// Says how things are now.
pub(crate) fn with_state(mut refusal: Refusal, state: impl Into<String>) -> Refusal {
    refusal.state = Some(state.into());
    refusal
}

/// A system error in the context of an attempt.
pub(crate) fn system(attempted: impl Into<String>, error: &io::Error) -> Refusal {
    refuse(kind_of(error), attempted, error.to_string())
}

/// Results of the system that become refusals.
pub(crate) trait When<T> {
    /// Names what was tried.
    fn when(self, attempted: impl FnOnce() -> String) -> Result<T, Refusal>;
}

impl<T, E: Into<io::Error>> When<T> for Result<T, E> {
    fn when(self, attempted: impl FnOnce() -> String) -> Result<T, Refusal> {
        self.map_err(|error| system(attempted(), &error.into()))
    }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "ErrorKind is open")]
fn kind_of(error: &io::Error) -> RefusalKind {
    match error.kind() {
        io::ErrorKind::PermissionDenied => RefusalKind::Permission,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => RefusalKind::NoSpace,
        _ => RefusalKind::System,
    }
}

/// Cuts text to what the wire allows, between characters, keeping its end: that is where errors say why.
fn clip(text: String) -> String {
    if text.len() <= OBSERVED_LIMIT {
        return text;
    }
    let from = (text.len() - OBSERVED_LIMIT + 4..text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len());
    format!("…{}", &text[from..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_words_of_the_system_are_cut_between_characters_and_keep_their_end() {
        let refusal = bad("x", format!("{}end", "ä".repeat(5000)));
        assert!(refusal.observed.len() <= OBSERVED_LIMIT);
        assert!(refusal.observed.ends_with("end"));
    }

    #[test]
    fn a_full_disk_and_a_closed_door_are_told_apart() {
        assert_eq!(kind_of(&io::Error::from_raw_os_error(28)), RefusalKind::NoSpace);
        assert_eq!(kind_of(&io::Error::from_raw_os_error(13)), RefusalKind::Permission);
        assert_eq!(kind_of(&io::Error::from_raw_os_error(1)), RefusalKind::Permission);
        assert_eq!(kind_of(&io::Error::from_raw_os_error(5)), RefusalKind::System);
    }
}
