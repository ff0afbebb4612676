//! Values to the bytes that Go's yaml.v3 writes with an indent of 4, which is what TiUP does.
//!
//! Facts: measured on files of TiUP 1.16.5 (tests/fixtures); the rules of quoting are libyaml's.

use super::scalar::needs_quotes;
use super::value::Value;

const STEP: usize = 4;

/// A whole document; ends in a line break.
pub fn to_text(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Map(entries) if !entries.is_empty() => write_map(&mut out, entries, 0, false),
        Value::Seq(items) if !items.is_empty() => write_seq(&mut out, items, 0, false),
        Value::Map(_)
        | Value::Seq(_)
        | Value::Null
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Float(_)
        | Value::Text(_) => {
            write_scalar(&mut out, value, 0);
            out.push('\n');
        }
    }
    out
}

/// The next column that a child of a map stands in: the next multiple of 4.
fn deeper(indent: usize) -> usize {
    STEP * ((indent + STEP) / STEP)
}

/// `inline`: the first key goes on the line that is already begun (after `- `).
fn write_map(out: &mut String, entries: &[(String, Value)], indent: usize, inline: bool) {
    for (at, (key, value)) in entries.iter().enumerate() {
        if at > 0 || !inline {
            out.extend(std::iter::repeat_n(' ', indent));
        }
        write_text(out, key, deeper(indent), true);
        out.push(':');
        match value {
            Value::Map(inner) if !inner.is_empty() => {
                out.push('\n');
                write_map(out, inner, deeper(indent), false);
            }
            Value::Seq(items) if !items.is_empty() => {
                out.push('\n');
                write_seq(out, items, deeper(indent), false);
            }
            Value::Map(_)
            | Value::Seq(_)
            | Value::Null
            | Value::Bool(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::Text(_) => {
                out.push(' ');
                write_scalar(out, value, deeper(indent));
                out.push('\n');
            }
        }
    }
}

fn write_seq(out: &mut String, items: &[Value], indent: usize, inline: bool) {
    for (at, item) in items.iter().enumerate() {
        if at > 0 || !inline {
            out.extend(std::iter::repeat_n(' ', indent));
        }
        out.push_str("- ");
        match item {
            Value::Map(inner) if !inner.is_empty() => write_map(out, inner, indent + 2, true),
            Value::Seq(inner) if !inner.is_empty() => write_seq(out, inner, indent + 2, true),
            Value::Map(_)
            | Value::Seq(_)
            | Value::Null
            | Value::Bool(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::Text(_) => {
                write_scalar(out, item, indent + 2);
                out.push('\n');
            }
        }
    }
}

fn write_scalar(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(flag) => out.push_str(&flag.to_string()),
        Value::Int(number) => out.push_str(&number.to_string()),
        Value::Float(number) => out.push_str(&float_text(*number)),
        Value::Text(text) => write_text(out, text, indent, false),
        Value::Seq(_) => out.push_str("[]"),
        Value::Map(_) => out.push_str("{}"),
    }
}

/// As Go's `%g`, but a point is kept: TiUP's fork of yaml.v3 exists for that.
fn float_text(number: f64) -> String {
    if number.is_nan() {
        return ".nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..21).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{number}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

/// How a text is written.
enum Style {
    Plain,
    Single,
    Double,
    Literal,
}

fn write_text(out: &mut String, text: &str, indent: usize, key: bool) {
    match style_of(text, key) {
        Style::Plain => out.push_str(text),
        Style::Single => out.push_str(&format!("'{}'", text.replace('\'', "''"))),
        Style::Double => write_double(out, text),
        Style::Literal => {
            out.push('|');
            if !text.ends_with('\n') {
                out.push('-');
            } else if text.ends_with("\n\n") || text == "\n" {
                out.push('+');
            }
            let body = text.strip_suffix('\n').unwrap_or(text);
            for line in body.split('\n') {
                out.push('\n');
                if !line.is_empty() {
                    out.extend(std::iter::repeat_n(' ', indent));
                    out.push_str(line);
                }
            }
        }
    }
}

fn style_of(text: &str, key: bool) -> Style {
    let printable = text.chars().all(|c| c == '\n' || (is_printable(c) && c != '\t'));
    if text.contains('\n') {
        let blocky = printable
            && !key
            && !text.starts_with([' ', '\n'])
            && !text.split('\n').any(|line| line.ends_with(' '));
        return if blocky { Style::Literal } else { Style::Double };
    }
    if needs_quotes(text) || !printable {
        return Style::Double;
    }
    if plain_is_safe(text) { Style::Plain } else { Style::Single }
}

/// libyaml's rule for a plain scalar in block context, which is the only one that we write.
fn plain_is_safe(text: &str) -> bool {
    let mut chars = text.chars().peekable();
    let mut before: Option<char> = None;
    if text.starts_with("---")
        || text.starts_with("...")
        || text.starts_with(' ')
        || text.ends_with(' ')
    {
        return false;
    }
    while let Some(c) = chars.next() {
        let space_follows = chars.peek().is_none_or(|next| *next == ' ');
        let safe = match (before, c) {
            (
                None,
                '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%'
                | '@' | '`',
            ) => false,
            (None, '?' | '-') | (_, ':') => !space_follows,
            (Some(' '), '#') => false,
            (_, _) => true,
        };
        if !safe {
            return false;
        }
        before = Some(c);
    }
    true
}

fn is_printable(c: char) -> bool {
    matches!(c, '\u{20}'..='\u{7e}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..='\u{10ffff}')
        && c != '\u{feff}'
        && !matches!(c, '\u{2028}' | '\u{2029}')
}

fn write_double(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\0' => out.push_str("\\0"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            '\x1b' => out.push_str("\\e"),
            '\u{85}' => out.push_str("\\N"),
            '\u{2028}' => out.push_str("\\L"),
            '\u{2029}' => out.push_str("\\P"),
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                out.push_str(&match code {
                    0..=0xff => format!("\\x{code:02X}"),
                    0x100..=0xffff => format!("\\u{code:04X}"),
                    _ => format!("\\U{code:08X}"),
                });
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::read::parse;
    use super::*;

    fn text(value: &str) -> Value {
        Value::Text(value.to_owned())
    }

    #[test]
    fn the_layout_is_tiups() {
        let inner = Value::Map(vec![
            ("host".into(), text("a")),
            (
                "list".into(),
                Value::Seq(vec![Value::Int(1), Value::Seq(vec![text("x"), text("y")])]),
            ),
            (
                "config".into(),
                Value::Map(vec![
                    ("k".into(), text("l1\nl2")),
                    ("e".into(), Value::Map(Vec::new())),
                ]),
            ),
            ("none".into(), Value::Seq(Vec::new())),
        ]);
        let document = Value::Map(vec![("servers".into(), Value::Seq(vec![inner]))]);
        insta::assert_snapshot!(to_text(&document), @r#"
        servers:
            - host: a
              list:
                - 1
                - - x
                  - "y"
              config:
                k: |-
                    l1
                    l2
                e: {}
              none: []
        "#);
    }

    #[test]
    fn quotes_appear_where_go_puts_them() {
        for (given, written) in [
            ("", "\"\""),
            ("true", "\"true\""),
            ("yes", "\"yes\""),
            ("12", "\"12\""),
            ("a: b", "'a: b'"),
            ("a:b", "a:b"),
            ("- a", "'- a'"),
            ("-a", "-a"),
            ("a #b", "'a #b'"),
            ("*a", "'*a'"),
            ("it's", "it's"),
            ("'a", "'''a'"),
            (" a", "' a'"),
            ("a\tb", "\"a\\tb\""),
            ("ä", "ä"),
            ("a:", "'a:'"),
            ("a\n b \n", "\"a\\n b \\n\""),
        ] {
            let mut out = String::new();
            write_text(&mut out, given, 0, false);
            assert_eq!(out, written, "{given:?}");
        }
        assert_eq!(float_text(10.0), "10.0");
        assert_eq!(float_text(0.5), "0.5");
        assert_eq!(float_text(1e30), "1e+30");
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (-1.0e9..1.0e9).prop_map(Value::Float),
            "[ -~äπ\n\t]{0,12}".prop_map(Value::Text),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Seq),
                prop::collection::btree_map("[a-z :#-]{1,6}", inner, 0..5)
                    .prop_map(|map| Value::Map(map.into_iter().collect())),
            ]
        })
    }

    fn sorted(value: Value) -> Value {
        match value {
            Value::Map(mut entries) => {
                entries.sort_by(|(a, _), (b, _)| super::super::value::natural_order(a, b));
                Value::Map(entries.into_iter().map(|(key, value)| (key, sorted(value))).collect())
            }
            Value::Seq(items) => Value::Seq(items.into_iter().map(sorted).collect()),
            other @ (Value::Null
            | Value::Bool(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::Text(_)) => other,
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(value in any_value()) {
            let value = sorted(value);
            let text = to_text(&value);
            let read = Value::from_node(&parse(&text).unwrap());
            prop_assert_eq!(read, value, "{}", text);
        }
    }
}
