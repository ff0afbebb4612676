//! Files that a window writes beside what it exchanges: unit, run script, configuration of one instance.
//!
//! They go by the digest of all of them together: a plan, its journal and its steps name them so, and what is in
//! them (a password, perhaps) stays in the controller's own state and on the host.

use std::fmt;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::layout::PlacedFile;

/// A small file of an instance. Its content is not part of its debug text.
#[derive(Clone, Eq, PartialEq, Deserialize, Serialize)]
pub struct Text {
    /// Absolute, on the host.
    pub path: Utf8PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Root's; else the deploy user's.
    pub root: bool,
    /// Whole content.
    pub content: String,
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Text").field("path", &self.path).finish_non_exhaustive()
    }
}

impl From<PlacedFile> for Text {
    fn from(file: PlacedFile) -> Self {
        Self { path: file.path, mode: file.mode, root: file.root, content: file.content }
    }
}

/// Some files of an instance, in the order in which they are written.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Texts(pub Vec<Text>);

impl Texts {
    /// Of paths, modes and contents.
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).expect("texts are text and numbers"))
    }
}

/// What becomes of an instance's files.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct TextsChange {
    /// Those of `paths` that were there before.
    pub before: Digest,
    /// What is written.
    pub after: Digest,
    /// Which files differ, for people.
    pub paths: Vec<Utf8PathBuf>,
}

impl TextsChange {
    /// The way back.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self { before: self.after.clone(), after: self.before.clone(), paths: self.paths.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_file_is_part_of_the_digest_and_no_content_is_printed() {
        let text = Text {
            path: "/home/tidb/deploy/x/conf/grafana.ini".into(),
            mode: 0o644,
            root: false,
            content: "admin_password = s3cret".to_owned(),
        };
        let digest = |text: Text| Texts(vec![text]).digest();
        let whole = digest(text.clone());
        assert_eq!(whole, digest(text.clone()));
        assert_ne!(whole, digest(Text { mode: 0o600, ..text.clone() }));
        assert_ne!(whole, digest(Text { root: true, ..text.clone() }));
        assert_ne!(whole, digest(Text { path: "/x".into(), ..text.clone() }));
        assert_ne!(whole, digest(Text { content: String::new(), ..text.clone() }));
        assert!(!format!("{:?}", Texts(vec![text])).contains("s3cret"));
    }
}
