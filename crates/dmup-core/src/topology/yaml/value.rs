//! A YAML value without places: what a free-form section keeps, and what is written.

use std::cmp::Ordering;

use super::read::{Kind, Node};
use super::scalar::resolve;

/// A value. Maps keep the order in which they are written.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// Nothing: `null`.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a point or an exponent.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    Seq(Vec<Self>),
    /// Keys and values.
    Map(Vec<(String, Self)>),
}

impl Value {
    /// Takes a tree as free-form: scalars by the rules of YAML, maps sorted as TiUP writes them.
    pub(crate) fn from_node(node: &Node) -> Self {
        match &node.kind {
            Kind::Scalar { text, plain: true } => resolve(text),
            Kind::Scalar { text, plain: false } => Self::Text(text.clone()),
            Kind::Seq(items) => Self::Seq(items.iter().map(Self::from_node).collect()),
            Kind::Map(entries) => {
                let mut map: Vec<(String, Self)> = entries
                    .iter()
                    .map(|(key, value)| (key.text().to_owned(), Self::from_node(value)))
                    .collect();
                map.sort_by(|(a, _), (b, _)| natural_order(a, b));
                Self::Map(map)
            }
        }
    }

    /// Whether there is nothing in it; what `omitempty` leaves out.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Text(text) => text.is_empty(),
            Self::Seq(items) => items.is_empty(),
            Self::Map(entries) => entries.is_empty(),
            Self::Int(number) => *number == 0,
            Self::Bool(flag) => !flag,
            Self::Float(number) => *number == 0.0,
        }
    }

    /// The value under a key of a map.
    pub fn entry(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => {
                entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
            }
            Self::Null
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Float(_)
            | Self::Text(_)
            | Self::Seq(_) => None,
        }
    }
}

/// The order in which Go's yaml.v3 writes the keys of a map: numbers inside of names count as
/// numbers (`a2` before `a10`), and letters come after everything else unless a number precedes them.
pub(crate) fn natural_order(a: &str, b: &str) -> Ordering {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let Some(at) = a.iter().zip(&b).position(|(x, y)| x != y) else {
        return a.len().cmp(&b.len());
    };
    let (x, y) = (a[at], b[at]);
    match (x.is_alphabetic(), y.is_alphabetic()) {
        (true, true) => return x.cmp(&y),
        (false, false) => {}
        (x_is_letter, _) => {
            let after_digit = at > 0 && a[at - 1].is_ascii_digit();
            return if x_is_letter == after_digit { Ordering::Less } else { Ordering::Greater };
        }
    }
    // A zero after other digits belongs to their number; alone it only pads.
    let inside_number = (x == '0' || y == '0')
        && a[..at].iter().rev().take_while(|c| c.is_ascii_digit()).any(|c| *c != '0');
    let number = |text: &[char]| {
        let digits: Vec<u32> = text[at..].iter().map_while(|c| c.to_digit(10)).collect();
        let start = i64::from(inside_number);
        let value = digits
            .iter()
            .fold(start, |sum, digit| sum.wrapping_mul(10).wrapping_add(i64::from(*digit)));
        (value, digits.len())
    };
    number(&a).cmp(&number(&b)).then(x.cmp(&y))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_as_go_does_it() {
        let mut keys = ["b", "a10", "a2", "a-b", "a", "ab", "_x", "a01", "B", "a1b"];
        keys.sort_by(|a, b| natural_order(a, b));
        assert_eq!(keys, ["_x", "B", "a", "a-b", "a1b", "a01", "a2", "a10", "ab", "b"]);
    }
}
