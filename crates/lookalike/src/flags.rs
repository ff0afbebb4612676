//! Flags as DM's programs take them (Go's `flag` package), and the TOML file that they win over.
//!
//! In: arguments after the program's name. Out: one value per name. `-name v`, `--name v` and `--name=v` are one;
//! a switch may be `-name` or `-name=false`. Written by hand because clap knows no long names after a single dash.
//! Facts: dm/master/config.go and dm/worker/config.go (flags, then file, then flags again; an unknown key of the
//! file, an unknown flag and a positional argument are fatal, exit code 2).

use std::collections::BTreeMap;

use fs_err as fs;

/// Names of flags: those with a value, and switches.
pub(crate) struct Known {
    /// What the usage text calls the program: `master`, `worker`.
    pub(crate) program: &'static str,
    /// Flags with a value; also keys of the file.
    pub(crate) values: &'static [&'static str],
    /// Flags without.
    pub(crate) switches: &'static [&'static str],
    /// Keys that only the file has.
    pub(crate) only_in_file: &'static [&'static str],
}

/// What was given, defaults left out.
#[derive(Debug, Default)]
pub(crate) struct Flags(BTreeMap<String, String>);

impl Flags {
    /// The value of a flag, if one was given that is not empty.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a switch is on.
    pub(crate) fn is_on(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| value == "true")
    }
}

impl Known {
    /// Parses arguments and the file that `-config` names. The error is what goes to stderr.
    pub(crate) fn parse(&self, args: &[String]) -> Result<Flags, String> {
        let mut flags = Flags::default();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let Some(name) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                return Err(format!("'{arg}' is an invalid flag"));
            };
            let (name, inline) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            let value = if self.switches.contains(&name) {
                inline.unwrap_or_else(|| "true".to_owned())
            } else if self.values.contains(&name) {
                match inline.or_else(|| rest.next().cloned()) {
                    Some(value) => value,
                    None => return Err(format!("flag needs an argument: -{name}")),
                }
            } else {
                return Err(self.unknown(name));
            };
            flags.0.insert(name.to_owned(), value);
        }
        if let Some(path) = flags.value("config").map(str::to_owned) {
            self.read_file(&path, &mut flags)?;
        }
        Ok(flags)
    }

    fn unknown(&self, name: &str) -> String {
        use std::fmt::Write as _;

        let mut text =
            format!("flag provided but not defined: -{name}\nUsage of {}:\n", self.program);
        for flag in self.values {
            writeln!(text, "  -{flag} string").expect("writing to a string");
        }
        for flag in self.switches {
            writeln!(text, "  -{flag}").expect("writing to a string");
        }
        text.push_str("parse cmd flags err");
        text
    }

    fn read_file(&self, path: &str, flags: &mut Flags) -> Result<(), String> {
        let text =
            fs::read_to_string(path).map_err(|error| format!("open config file: {error}"))?;
        let table: toml::Table =
            text.parse().map_err(|error| format!("parse config file {path}: {error}"))?;
        for (key, value) in table {
            let known = self.values.contains(&key.as_str())
                || self.switches.contains(&key.as_str())
                || self.only_in_file.contains(&key.as_str());
            if !known {
                return Err(format!(
                    "config file {path} contained unknown configuration options: {key}"
                ));
            }
            let text = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(_)
                | toml::Value::Float(_)
                | toml::Value::Boolean(_)
                | toml::Value::Datetime(_)
                | toml::Value::Array(_)
                | toml::Value::Table(_) => value.to_string(),
            };
            flags.0.entry(key).or_insert(text);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Known = Known {
        program: "x",
        values: &["name", "config"],
        switches: &["V"],
        only_in_file: &["relay-dir"],
    };

    fn parse(args: &[&str]) -> Result<Flags, String> {
        KNOWN.parse(&args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn one_dash_or_two_and_three_ways_to_give_a_value() {
        for args in [&["-name", "a"][..], &["--name", "a"], &["--name=a"], &["-name=a", "-V"]] {
            assert_eq!(parse(args).unwrap().value("name"), Some("a"));
        }
        assert!(parse(&["-V"]).unwrap().is_on("V"));
        assert!(
            parse(&["--nope"]).unwrap_err().starts_with("flag provided but not defined: -nope\n")
        );
        assert!(parse(&["positional"]).is_err());
        assert!(parse(&["-name"]).is_err());
    }

    #[test]
    fn flags_win_over_the_file_and_an_unknown_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        fs::write(&path, "name = \"file\"\nrelay-dir = \"r\"\n").unwrap();
        let config = format!("--config={}", path.display());
        assert_eq!(parse(&[&config]).unwrap().value("name"), Some("file"));
        assert_eq!(parse(&["--name=flag", &config]).unwrap().value("name"), Some("flag"));
        fs::write(&path, "nope = 1\n").unwrap();
        assert!(parse(&[&config]).unwrap_err().contains("nope"));
    }
}
