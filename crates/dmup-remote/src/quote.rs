//! Quoting of one word for a remote shell.
//!
//! The only place where text from outside meets a shell at all: the deploy
//! folder as an argument of the fixed bootstrap line. sshd hands the line to
//! the user's login shell, which need not be POSIX, so the quoted form uses
//! what sh, csh and fish read alike: single quotes around everything but
//! the characters that one of them would still see inside (`'`, `\`, `!`, newline), and for
//! those there is no form that all agree on: they are refused.

/// A word with characters that shells do not agree on.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "`{word}` contains {character:?}, which no quoting brings safely through every login shell"
)]
pub struct Unquotable {
    /// The word.
    pub word: String,
    /// Its first such character.
    pub character: char,
}

/// The word as every login shell reads it back unchanged.
///
/// # Errors
///
/// [`Unquotable`] for control characters, `'`, `\` and `!`.
pub fn quote(word: &str) -> Result<String, Unquotable> {
    match word.chars().find(|c| c.is_control() || matches!(c, '\'' | '\\' | '!')) {
        Some(character) => Err(Unquotable { word: word.to_owned(), character }),
        None => Ok(format!("'{word}'")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn a_shell_reads_back_exactly_what_was_quoted(word in "\\PC{0,40}") {
            if let Ok(quoted) = quote(&word) {
                let out = std::process::Command::new("sh")
                    .arg("-c").arg(format!("printf %s {quoted}")).output().unwrap();
                prop_assert!(out.stderr.is_empty());
                prop_assert_eq!(out.stdout, word.as_bytes());
            }
        }

        #[test]
        fn nothing_is_refused_but_what_shells_disagree_on(word in "[ -&(-\\[\\]-~]{0,40}") {
            prop_assert_eq!(quote(&word).is_ok(), !word.contains('!'));
        }
    }

    #[test]
    fn words_that_would_end_the_quotes_are_refused() {
        for bad in ["a'b", "a\\b", "a\nb", "a!b", "\u{7f}"] {
            assert!(quote(bad).is_err(), "{bad:?}");
        }
        assert_eq!(quote("/data/my dm; $(x) `y`").unwrap(), "'/data/my dm; $(x) `y`'");
    }
}
