//! How a command ends when it does not end well: what was tried, why, how things are now, what to type.

use std::fmt;
use std::process::ExitCode;

/// Kinds of bad ends; each has its exit code (architecture section 6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Something failed; the text says how the cluster is.
    Failed,
    /// The command line makes no sense.
    Usage,
    /// Refused before anything was touched.
    Refused,
    /// A bad build was taken back: the cluster is as before.
    RolledBack,
    /// Some instances run the old build, some the new.
    Mixed,
    /// Nobody knows how a node is.
    Unknown,
    /// Stopped by the operator; can be resumed.
    Interrupted,
}

impl Kind {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::RolledBack => 5,
            Self::Mixed => 6,
            Self::Unknown => 7,
            Self::Interrupted => 130,
        }
    }
}

/// A bad end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// Which kind.
    pub kind: Kind,
    /// What was tried, where, what was seen; fits after `error: `.
    pub error: String,
    /// Further lines: causes, one per host or obstacle.
    pub causes: Vec<String>,
    /// How things are now; nothing when nothing was touched.
    pub now: Option<String>,
    /// What to type next.
    pub hints: Vec<String>,
}

impl Failure {
    /// A bad end with a text.
    pub fn new(kind: Kind, error: impl fmt::Display) -> Self {
        Self { kind, error: error.to_string(), causes: Vec::new(), now: None, hints: Vec::new() }
    }

    /// Refused: nothing was touched.
    pub fn refused(error: impl fmt::Display) -> Self {
        Self::new(Kind::Refused, error)
    }

    /// Failed half-way or while looking.
    pub fn failed(error: impl fmt::Display) -> Self {
        Self::new(Kind::Failed, error)
    }

    /// Adds causes, one a line.
    #[must_use]
    pub fn because(mut self, causes: impl IntoIterator<Item = String>) -> Self {
        self.causes.extend(causes);
        self
    }

    /// Says how things are.
    #[must_use]
    pub fn now(mut self, state: impl fmt::Display) -> Self {
        self.now = Some(state.to_string());
        self
    }

    /// Says what to type.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hints.push(hint.to_string());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.error)?;
        for cause in &self.causes {
            write!(f, "\n  why: {}", cause.replace('\n', "\n       "))?;
        }
        let now = match (&self.now, self.kind) {
            (Some(now), _) => Some(now.as_str()),
            (None, Kind::Refused | Kind::Usage) => Some("nothing was touched"),
            (None, _) => None,
        };
        if let Some(now) = now {
            write!(f, "\n  now: {}", now.replace('\n', "\n       "))?;
        }
        for hint in &self.hints {
            write!(f, "\n hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> Self {
        Self::from(failure.kind.code())
    }
}

/// The text of an error and of what caused it, outermost first.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_why_how_things_are_and_what_to_type() {
        let failure = Failure::refused("cannot patch prod")
            .because(["10.0.1.2:8261 is down".to_owned()])
            .hint("`dmup display prod` shows every node");
        insta::assert_snapshot!(failure, @r"
        error: cannot patch prod
          why: 10.0.1.2:8261 is down
          now: nothing was touched
         hint: `dmup display prod` shows every node
        ");
    }
}
