//! How one field of a section is read from a node and written back.

use super::error::TopologyError;
use super::yaml::{Kind, Node, Value, old_bool, resolve};

/// How strictly a text is read: an operator's file must not have unknown keys; `meta.yaml` of
/// another version of TiUP may.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unknown {
    Refuse,
    Ignore,
}

/// A value of a section: read from a node, written as a value, left out when empty.
pub(super) trait Field: Default {
    fn read(node: &Node, unknown: Unknown) -> Result<Self, TopologyError>;
    fn write(&self) -> Value;
    fn is_empty(&self) -> bool;
}

fn expected(node: &Node, what: &str) -> TopologyError {
    let found = match &node.kind {
        Kind::Scalar { text, .. } => format!("`{text}`"),
        Kind::Seq(_) => "a list".to_owned(),
        Kind::Map(_) => "a map".to_owned(),
    };
    TopologyError::new(format!("expected {what}, found {found}")).at(node.place)
}

impl Field for String {
    fn read(node: &Node, _: Unknown) -> Result<Self, TopologyError> {
        match &node.kind {
            // Anything unquoted is taken as its text, as Go does for a field of type string.
            Kind::Scalar { text, .. } => {
                Ok(if node.is_null() { Self::new() } else { text.clone() })
            }
            Kind::Seq(_) | Kind::Map(_) => Err(expected(node, "text")),
        }
    }
    fn write(&self) -> Value {
        Value::Text(self.clone())
    }
    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

impl Field for u16 {
    fn read(node: &Node, _: Unknown) -> Result<Self, TopologyError> {
        if node.is_null() {
            return Ok(0);
        }
        match &node.kind {
            Kind::Scalar { text, plain: true } => match resolve(text) {
                Value::Int(number) => {
                    Self::try_from(number).map_err(|_| expected(node, "a port from 0 to 65535"))
                }
                Value::Null
                | Value::Bool(_)
                | Value::Float(_)
                | Value::Text(_)
                | Value::Seq(_)
                | Value::Map(_) => Err(expected(node, "a port")),
            },
            Kind::Scalar { plain: false, .. } | Kind::Seq(_) | Kind::Map(_) => {
                Err(expected(node, "a port (a number without quotes)"))
            }
        }
    }
    fn write(&self) -> Value {
        Value::Int(i64::from(*self))
    }
    fn is_empty(&self) -> bool {
        *self == 0
    }
}

impl Field for bool {
    fn read(node: &Node, _: Unknown) -> Result<Self, TopologyError> {
        if node.is_null() {
            return Ok(false);
        }
        match &node.kind {
            Kind::Scalar { text, plain: true } => match (resolve(text), old_bool(text)) {
                (Value::Bool(flag), _) | (_, Some(flag)) => Ok(flag),
                (
                    Value::Null
                    | Value::Int(_)
                    | Value::Float(_)
                    | Value::Text(_)
                    | Value::Seq(_)
                    | Value::Map(_),
                    None,
                ) => Err(expected(node, "true or false")),
            },
            Kind::Scalar { plain: false, .. } | Kind::Seq(_) | Kind::Map(_) => {
                Err(expected(node, "true or false (without quotes)"))
            }
        }
    }
    fn write(&self) -> Value {
        Value::Bool(*self)
    }
    fn is_empty(&self) -> bool {
        !self
    }
}

/// Free-form.
impl Field for Value {
    fn read(node: &Node, _: Unknown) -> Result<Self, TopologyError> {
        Ok(Self::from_node(node))
    }
    fn write(&self) -> Value {
        self.clone()
    }
    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

impl<T: Field> Field for Vec<T> {
    fn read(node: &Node, unknown: Unknown) -> Result<Self, TopologyError> {
        match &node.kind {
            Kind::Seq(items) => items.iter().map(|item| T::read(item, unknown)).collect(),
            Kind::Scalar { .. } if node.is_null() => Ok(Self::new()),
            Kind::Scalar { .. } | Kind::Map(_) => Err(expected(node, "a list")),
        }
    }
    fn write(&self) -> Value {
        Value::Seq(self.iter().map(Field::write).collect())
    }
    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

/// A section that may be absent as a whole, which differs from being there with defaults.
impl<T: Field> Field for Option<T> {
    fn read(node: &Node, unknown: Unknown) -> Result<Self, TopologyError> {
        if node.is_null() { Ok(None) } else { T::read(node, unknown).map(Some) }
    }
    fn write(&self) -> Value {
        self.as_ref().map_or(Value::Null, Field::write)
    }
    fn is_empty(&self) -> bool {
        self.is_none()
    }
}

/// A map whose keys the component defines, not TiUP: `config`, `server_configs`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table(pub Vec<(String, Value)>);

impl Field for Table {
    fn read(node: &Node, _: Unknown) -> Result<Self, TopologyError> {
        match Value::from_node(node) {
            Value::Map(entries) => Ok(Self(entries)),
            Value::Null => Ok(Self::default()),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) | Value::Seq(_) => {
                Err(expected(node, "a map"))
            }
        }
    }
    fn write(&self) -> Value {
        Value::Map(self.0.clone())
    }
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A map of texts, as Grafana's settings are (`section.key: value`).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Texts(pub Vec<(String, String)>);

impl Field for Texts {
    fn read(node: &Node, unknown: Unknown) -> Result<Self, TopologyError> {
        if node.is_null() {
            return Ok(Self::default());
        }
        let Kind::Map(entries) = &node.kind else { return Err(expected(node, "a map of texts")) };
        let mut texts = entries
            .iter()
            .map(|(key, value)| Ok((key.text().to_owned(), String::read(value, unknown)?)))
            .collect::<Result<Vec<_>, TopologyError>>()?;
        texts.sort_by(|(a, _), (b, _)| super::yaml::natural_order(a, b));
        Ok(Self(texts))
    }
    fn write(&self) -> Value {
        Value::Map(
            self.0.iter().map(|(key, value)| (key.clone(), Value::Text(value.clone()))).collect(),
        )
    }
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The fields of a section that a map may have, by name, while it is read.
pub(super) fn entries_of<'a>(
    node: &'a Node,
    section: &str,
    known: &[&str],
    unknown: Unknown,
) -> Result<&'a [(Node, Node)], TopologyError> {
    if node.is_null() {
        return Ok(&[]);
    }
    let Kind::Map(entries) = &node.kind else {
        return Err(expected(node, &format!("the fields of {section}")));
    };
    if unknown == Unknown::Refuse {
        for (key, _) in entries {
            if !known.contains(&key.text()) {
                return Err(TopologyError::unknown_key(key, section, known));
            }
        }
    }
    Ok(entries)
}

/// Makes a struct whose fields are the keys of a section, in the order in which TiUP writes them.
/// `always` keys are written even when empty; `omit` ones are then left out.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident, $words:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty, $when:ident;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl $crate::topology::field::Field for $name {
            fn read(
                node: &$crate::topology::yaml::Node,
                unknown: $crate::topology::field::Unknown,
            ) -> Result<Self, $crate::topology::error::TopologyError> {
                let known = [$(stringify!($field)),*];
                let mut section = Self::default();
                for (key, value) in $crate::topology::field::entries_of(node, $words, &known, unknown)? {
                    match key.text() {
                        $(stringify!($field) => {
                            section.$field = $crate::topology::field::Field::read(value, unknown)?;
                        })*
                        _ => {}
                    }
                }
                Ok(section)
            }

            fn write(&self) -> $crate::topology::yaml::Value {
                let mut entries = Vec::new();
                $(if section!(@written $when self.$field) {
                    entries.push((stringify!($field).to_owned(), $crate::topology::field::Field::write(&self.$field)));
                })*
                $crate::topology::yaml::Value::Map(entries)
            }

            fn is_empty(&self) -> bool {
                $($crate::topology::field::Field::is_empty(&self.$field))&&*
            }
        }
    };
    (@written always $value:expr) => { true };
    (@written omit $value:expr) => { !$crate::topology::field::Field::is_empty(&$value) };
}
pub(super) use section;
