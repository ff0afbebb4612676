//! What a plain scalar means: YAML 1.2's core schema with the leftovers of 1.1 that Go's yaml.v3 keeps.

use super::value::Value;

/// What a plain scalar stands for in a free-form section.
pub(crate) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Value::Float(f64::INFINITY);
        }
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY),
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
        return Value::Text(text.to_owned());
    }
    let bare = text.replace('_', "");
    if let Some(number) = whole_number(&bare) {
        return Value::Int(number);
    }
    match bare.parse::<f64>() {
        Ok(number) if looks_like_float(&bare) => Value::Float(number),
        _ => Value::Text(text.to_owned()),
    }
}

/// YAML 1.1's other words for true and false: still booleans where a boolean is
/// expected, and quoted by yaml.v3 when text happens to look like one.
pub(crate) fn old_bool(text: &str) -> Option<bool> {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

/// Whether text would be read back as something other than text, by yaml.v3 or by a YAML 1.1 reader.
pub(super) fn needs_quotes(text: &str) -> bool {
    !matches!(resolve(text), Value::Text(_))
        || old_bool(text).is_some()
        || looks_like_time(text)
        || base_60(text)
        || text == "<<"
}

fn whole_number(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        // Go's ParseInt with base 0: a leading zero means octal.
        [b'0', _, ..] if digits.bytes().all(|c| matches!(c, b'0'..=b'7')) => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    i64::from_str_radix(digits, radix).ok()?.checked_mul(sign)
}

fn looks_like_float(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.contains(|c: char| c.is_ascii_digit())
        && digits.chars().all(|c| c.is_ascii_digit() || ".eE+-".contains(c))
}

/// `2026-01-02` and what may follow it.
fn looks_like_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 8
        && bytes[..4].iter().all(u8::is_ascii_digit)
        && bytes[4] == b'-'
        && text[5..]
            .split(['-', 'T', 't', ' '])
            .take(2)
            .all(|part| (1..=2).contains(&part.len()) && part.bytes().all(|c| c.is_ascii_digit()))
        && text[5..].contains('-')
}

/// `1:30:00`, which YAML 1.1 reads as a number.
fn base_60(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut parts = digits.split(':');
    let first = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    first.starts_with(|c: char| c.is_ascii_digit())
        && first.chars().all(|c| c.is_ascii_digit() || c == '_')
        && !rest.is_empty()
        && rest.iter().enumerate().all(|(at, part)| {
            let whole = match part.split_once('.') {
                Some((whole, fraction)) if at + 1 == rest.len() => {
                    if !fraction.chars().all(|c| c.is_ascii_digit() || c == '_') {
                        return false;
                    }
                    whole
                }
                _ => part,
            };
            matches!(whole.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'5', b'0'..=b'9'])
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_mean_what_go_says_they_mean() {
        assert_eq!(resolve("12"), Value::Int(12));
        assert_eq!(resolve("-0x1f"), Value::Int(-31));
        assert_eq!(resolve("1_000"), Value::Int(1000));
        assert_eq!(resolve("010"), Value::Int(8));
        assert_eq!(resolve("10.0"), Value::Float(10.0));
        assert_eq!(resolve("1e3"), Value::Float(1000.0));
        assert_eq!(resolve("yes"), Value::Text("yes".into()));
        assert_eq!(resolve("10s"), Value::Text("10s".into()));
        assert_eq!(resolve("1.2.3.4"), Value::Text("1.2.3.4".into()));
        assert_eq!(resolve("-"), Value::Text("-".into()));
        assert_eq!(resolve("."), Value::Text(".".into()));
        assert_eq!(resolve("~"), Value::Null);
    }

    #[test]
    fn text_that_reads_as_something_else_needs_quotes() {
        for text in ["", "true", "yes", "off", "12", "1.5", "null", "2026-01-02", "1:30", "<<"] {
            assert!(needs_quotes(text), "{text}");
        }
        for text in ["10s", "v8.1.0", "198.18.0.11", "2026-x", "a", "198.18.0.11:8261", "20,21"] {
            assert!(!needs_quotes(text), "{text}");
        }
    }
}
