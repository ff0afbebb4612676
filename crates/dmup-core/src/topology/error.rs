//! What is wrong with a topology, and where.

use super::yaml::{Node, Place, YamlError};

/// A topology that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}{message}", .place.map(|place| format!("line {}, column {}: ", place.line, place.column)).unwrap_or_default())]
pub struct TopologyError {
    /// What is wrong, without the place.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
    /// Where; nothing when the text is not at fault or is not known.
    pub place: Option<Place>,
}

impl TopologyError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, place: None }
    }

    pub(super) fn at(mut self, place: Place) -> Self {
        self.place.get_or_insert(place);
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// A key that no section of that kind has; names the nearest one that it has.
    pub(super) fn unknown_key(key: &Node, section: &str, known: &[&str]) -> Self {
        let given = key.text();
        let nearest = known
            .iter()
            .map(|word| (strsim::damerau_levenshtein(given, word), *word))
            .filter(|(distance, word)| *distance <= 2.max(word.len() / 3))
            .min();
        let help = match nearest {
            Some((_, word)) => format!("did you mean `{word}`?"),
            None => format!("known keys: {}", known.join(", ")),
        };
        Self::new(format!("unknown key `{given}` in {section}")).help(help).at(key.place)
    }
}

impl From<YamlError> for TopologyError {
    fn from(error: YamlError) -> Self {
        Self::new(error.why).at(error.place)
    }
}
