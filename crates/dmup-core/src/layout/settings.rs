//! Settings of a component: what the topology says for all instances, overlaid with what it says for one.
//!
//! As TiUP does it: keys with dots are tables (`a.b: 1` is `b` of `[a]`), empty tables vanish, a table
//! over a table merges, anything else replaces. Written as TOML with sorted keys.

use std::collections::BTreeMap;

use crate::topology::{Table, Value};

/// Settings that cannot be written in a component's own form.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("settings of {component}: {why}")]
pub struct BadSettings {
    /// Whose they are.
    pub component: String,
    /// What is wrong.
    pub why: String,
}

/// A tree of settings with sorted keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Settings(BTreeMap<String, Setting>);

#[derive(Clone, Debug, PartialEq)]
enum Setting {
    Table(Settings),
    Value(toml::Value),
}

impl Settings {
    /// Reads settings of the topology.
    pub(super) fn of(table: &Table) -> Result<Self, String> {
        let mut settings = Self::default();
        settings.take(&Value::Map(table.0.clone()), &mut Vec::new())?;
        Ok(settings)
    }

    /// Lays other settings over these.
    pub(super) fn overlay(&mut self, over: Self) {
        for (key, setting) in over.0 {
            match (self.0.get_mut(&key), setting) {
                (Some(Setting::Table(below)), Setting::Table(above)) => below.overlay(above),
                (_, setting) => {
                    self.0.insert(key, setting);
                }
            }
        }
    }

    fn take(&mut self, value: &Value, path: &mut Vec<String>) -> Result<(), String> {
        let Value::Map(entries) = value else {
            return self.set(path, to_toml(value)?);
        };
        for (key, value) in entries {
            let depth = path.len();
            path.extend(key.split('.').map(ToOwned::to_owned));
            self.take(value, path)?;
            path.truncate(depth);
        }
        Ok(())
    }

    fn set(&mut self, path: &[String], value: Option<toml::Value>) -> Result<(), String> {
        let Some(value) = value else { return Ok(()) };
        let (key, rest) = path.split_first().ok_or("a value without a key")?;
        if key.is_empty() {
            return Err(format!("a key with an empty part in `{}`", path.join(".")));
        }
        if rest.is_empty() {
            if matches!(self.0.get(key), Some(Setting::Table(_))) {
                return Err(format!("`{key}` is both a value and a table"));
            }
            self.0.insert(key.clone(), Setting::Value(value));
            return Ok(());
        }
        match self.0.entry(key.clone()).or_insert_with(|| Setting::Table(Self::default())) {
            Setting::Table(below) => below.set(rest, Some(value)),
            Setting::Value(_) => Err(format!("`{key}` is both a value and a table")),
        }
    }

    fn into_toml(self) -> toml::Table {
        self.0
            .into_iter()
            .map(|(key, setting)| {
                let value = match setting {
                    Setting::Table(below) => toml::Value::Table(below.into_toml()),
                    Setting::Value(value) => value,
                };
                (key, value)
            })
            .collect()
    }

    /// The text of a TOML file.
    pub(super) fn to_text(&self) -> Result<String, String> {
        toml::to_string(&self.clone().into_toml()).map_err(|error| error.to_string())
    }
}

/// Nothing for null, which TOML cannot say.
fn to_toml(value: &Value) -> Result<Option<toml::Value>, String> {
    Ok(Some(match value {
        Value::Null => return Ok(None),
        Value::Bool(flag) => toml::Value::Boolean(*flag),
        Value::Int(number) => toml::Value::Integer(*number),
        Value::Float(number) => toml::Value::Float(*number),
        Value::Text(text) => toml::Value::String(text.clone()),
        Value::Seq(items) => {
            let items: Vec<Option<toml::Value>> =
                items.iter().map(to_toml).collect::<Result<_, _>>()?;
            toml::Value::Array(items.into_iter().flatten().collect())
        }
        Value::Map(entries) => {
            let mut table = toml::Table::new();
            for (key, value) in entries {
                if let Some(value) = to_toml(value)? {
                    table.insert(key.clone(), value);
                }
            }
            toml::Value::Table(table)
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    fn settings(yaml: &str) -> Result<Settings, String> {
        let text = format!("master_servers: [{{host: h, config: {yaml}}}]");
        Settings::of(&Topology::parse(&text).unwrap().master_servers[0].config)
    }

    #[test]
    fn dots_are_tables_and_the_instance_wins() {
        let mut all =
            settings("{log-level: info, security.ssl: {a: 1, b: 2}, list: [1, x], e: {}, n: null}")
                .unwrap();
        all.overlay(settings("{log-level: debug, security: {ssl.b: 3}, list: [2]}").unwrap());
        insta::assert_snapshot!(all.to_text().unwrap(), @r#"
        list = [2]
        log-level = "debug"

        [security.ssl]
        a = 1
        b = 3
        "#);
    }

    #[test]
    fn a_key_that_is_both_is_refused() {
        assert_eq!(settings("{a: 1, a.b: 2}").unwrap_err(), "`a` is both a value and a table");
        assert!(settings("{a..b: 2}").is_err());
    }
}
