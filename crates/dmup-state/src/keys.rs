//! The key pair that opens a cluster's hosts.
//!
//! TiUP makes RSA 4096 in `id_rsa` and `id_rsa.pub`. We read those, and make Ed25519 under the same
//! names in OpenSSH's format, which TiUP (Go's x/crypto/ssh) and `ssh -i` take by content, not by name.
//!
//! A rotation is told by which files there are, so that it goes on after a crash anywhere:
//! `new` and `new.pub` (TiUP's names) are the next pair, which hosts are being taught; once every host
//! has let it in, `former_key.pub` holds what hosts must forget, and the next pair takes its place.

use std::io::ErrorKind;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use ssh_key::private::Ed25519Keypair;
use ssh_key::{LineEnding, PrivateKey};

use crate::StateError;
use crate::files::{make_dir, read_text, sync_dir, write_whole};

const KEY_BYTES: u64 = 64 << 10;

/// The two halves.
#[derive(Clone, Eq, PartialEq)]
pub struct KeyPair {
    /// Opens the hosts; a PEM text.
    pub private: String,
    /// What hosts must let in; one line without its break.
    pub public: String,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair")
            .field("private", &"‹redacted›")
            .field("public", &self.public)
            .finish()
    }
}

pub(crate) fn ensure(
    private_path: &Utf8Path,
    public_path: &Utf8Path,
) -> Result<KeyPair, StateError> {
    match (read_text(private_path, KEY_BYTES)?, read_text(public_path, KEY_BYTES)?) {
        (Some(private), Some(public)) => {
            Ok(KeyPair { private, public: public.trim_end().to_owned() })
        }
        (None, Some(_)) => Err(StateError::BadFile {
            path: private_path.to_owned(),
            why: "is missing, but its public half is there".to_owned(),
        }),
        (Some(_), None) => Err(StateError::BadFile {
            path: public_path.to_owned(),
            why:
                "is missing, but its private half is there: `ssh-keygen -y` makes one of the other"
                    .to_owned(),
        }),
        (None, None) => {
            let pair = generate()
                .map_err(|why| StateError::BadFile { path: private_path.to_owned(), why })?;
            if let Some(dir) = private_path.parent() {
                make_dir(dir, 0o700)?;
            }
            // The private half last: a pair without it is refused above, not taken for whole.
            write_whole(public_path, format!("{}\n", pair.public).as_bytes(), 0o600)?;
            write_whole(private_path, pair.private.as_bytes(), 0o600)?;
            Ok(pair)
        }
    }
}

/// The half that hosts must let in.
pub(crate) fn public(path: &Utf8Path) -> Result<Option<String>, StateError> {
    Ok(read_text(path, KEY_BYTES)?.map(|line| line.trim_end().to_owned()))
}

/// How far the change of a cluster's keys has come.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Rotation {
    /// This pair is to come; the one in use still opens every host.
    Begun(KeyPair),
    /// The new pair is in use; hosts must forget this line.
    Promoted {
        /// A line of `authorized_keys`.
        former: String,
    },
}

/// Where the files of a rotation lie.
pub(crate) struct RotationFiles {
    pub(crate) private: Utf8PathBuf,
    pub(crate) public: Utf8PathBuf,
    pub(crate) next_private: Utf8PathBuf,
    pub(crate) next_public: Utf8PathBuf,
    pub(crate) former: Utf8PathBuf,
}

impl RotationFiles {
    /// Begins a rotation, or finds out how far the one that was begun has come.
    pub(crate) fn rotation(&self) -> Result<Rotation, StateError> {
        if let Some(former) = read_text(&self.former, KEY_BYTES)? {
            self.exchange()?;
            let former = former.trim_end().to_owned();
            if ensure(&self.private, &self.public)?.public != former {
                return Ok(Rotation::Promoted { former });
            }
            // Somebody took the next pair away or brought the old one back: hosts must not forget what is in use.
            self.end()?;
        }
        match (self.next_private.exists(), self.next_public.exists()) {
            // The public half is written first: without the other no host knows it.
            (false, true) => fs::remove_file(&self.next_public)
                .map_err(StateError::system(format!("remove {}", self.next_public)))?,
            (true, false) => {
                return Err(StateError::BadFile {
                    path: self.next_private.clone(),
                    why: format!(
                        "has no public half: a `tiup dm rotatessh` was cut off. If hosts let it in (`ssh -i`), rename it to {}",
                        self.private
                    ),
                });
            }
            (true, true) | (false, false) => {}
        }
        ensure(&self.next_private, &self.next_public).map(Rotation::Begun)
    }

    /// Puts the next pair into use. Every host has let it in; returns what they must forget.
    pub(crate) fn promote(&self) -> Result<String, StateError> {
        let former = ensure(&self.private, &self.public)?.public;
        if let Some(dir) = self.former.parent() {
            make_dir(dir, 0o700)?;
        }
        write_whole(&self.former, format!("{former}\n").as_bytes(), 0o600)?;
        self.exchange()?;
        Ok(former)
    }

    fn exchange(&self) -> Result<(), StateError> {
        for (from, to) in [(&self.next_private, &self.private), (&self.next_public, &self.public)] {
            let attempt = || StateError::system(format!("rename {from} to {to}"));
            match fs::rename(from, to) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(attempt()(error)),
                Ok(()) | Err(_) => {}
            }
            to.parent().map_or(Ok(()), sync_dir).map_err(attempt())?;
        }
        Ok(())
    }

    /// Every host has forgotten the former key.
    pub(crate) fn end(&self) -> Result<(), StateError> {
        fs::remove_file(&self.former).map_err(StateError::system(format!("remove {}", self.former)))
    }
}

fn generate() -> Result<KeyPair, String> {
    let mut seed = [0_u8; 32];
    getrandom::fill(&mut seed).map_err(|error| format!("no randomness for a new key: {error}"))?;
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    let encoded = |error: ssh_key::Error| format!("encode a new key: {error}");
    Ok(KeyPair {
        private: key.to_openssh(LineEnding::LF).map_err(encoded)?.to_string(),
        public: key.public_key().to_openssh().map_err(encoded)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> (tempfile::TempDir, RotationFiles) {
        let keep = tempfile::tempdir().unwrap();
        let dir = Utf8PathBuf::from_path_buf(keep.path().to_owned()).unwrap();
        let ssh = |name: &str| dir.join("ssh").join(name);
        let files = RotationFiles {
            private: ssh("id_rsa"),
            public: ssh("id_rsa.pub"),
            next_private: ssh("new"),
            next_public: ssh("new.pub"),
            former: dir.join("dmup/former_key.pub"),
        };
        (keep, files)
    }

    fn next(files: &RotationFiles) -> KeyPair {
        let Rotation::Begun(next) = files.rotation().unwrap() else { panic!("promoted") };
        next
    }

    #[test]
    fn a_rotation_that_is_cut_off_anywhere_goes_on_with_the_same_keys() {
        // Before which of the three changes of files the process dies.
        for dies_before in 1..=4 {
            let (_keep, files) = files();
            let old = ensure(&files.private, &files.public).unwrap();
            let next = next(&files);
            assert_eq!(files.rotation().unwrap(), Rotation::Begun(next.clone()));
            let former = format!("{}\n", old.public);
            if dies_before > 1 {
                make_dir(files.former.parent().unwrap(), 0o700).unwrap();
                write_whole(&files.former, former.as_bytes(), 0o600).unwrap();
            }
            if dies_before > 2 {
                fs::rename(&files.next_private, &files.private).unwrap();
            }
            if dies_before > 3 {
                fs::rename(&files.next_public, &files.public).unwrap();
            }
            if dies_before == 1 {
                assert_eq!(files.promote().unwrap(), old.public);
            }
            let promoted = Rotation::Promoted { former: old.public.clone() };
            assert_eq!(files.rotation().unwrap(), promoted, "{dies_before}");
            assert_eq!(ensure(&files.private, &files.public).unwrap(), next, "{dies_before}");
            assert!(!files.next_private.exists() && !files.next_public.exists());
            files.end().unwrap();
            assert!(matches!(files.rotation().unwrap(), Rotation::Begun(other) if other != next));
        }
    }

    #[test]
    fn hosts_never_forget_the_key_that_is_in_use() {
        let (_keep, files) = files();
        let old = ensure(&files.private, &files.public).unwrap();
        next(&files);
        files.promote().unwrap();
        write_whole(&files.private, old.private.as_bytes(), 0o600).unwrap();
        write_whole(&files.public, old.public.as_bytes(), 0o600).unwrap();
        next(&files);
        assert!(!files.former.exists());
    }

    #[test]
    fn half_a_next_pair_is_made_anew_or_refused() {
        let (_keep, files) = files();
        ensure(&files.private, &files.public).unwrap();
        let first = next(&files);
        fs::remove_file(&files.next_private).unwrap();
        assert_ne!(next(&files), first);
        fs::remove_file(&files.next_public).unwrap();
        let error = files.rotation().unwrap_err().to_string();
        assert!(error.contains("ssh/new") && error.contains("rename it"), "{error}");
    }

    #[test]
    fn every_file_of_a_rotation_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let (_keep, files) = files();
        ensure(&files.private, &files.public).unwrap();
        let mode = |path: &Utf8Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        next(&files);
        assert_eq!((mode(&files.next_private), mode(&files.next_public)), (0o600, 0o600));
        files.promote().unwrap();
        for path in [&files.private, &files.public, &files.former] {
            assert_eq!(mode(path), 0o600, "{path}");
        }
    }

    #[test]
    fn a_new_pair_is_readable_and_its_halves_belong_together() {
        let pair = generate().unwrap();
        let private = PrivateKey::from_openssh(&pair.private).unwrap();
        assert_eq!(private.public_key().to_openssh().unwrap(), pair.public);
        assert!(pair.public.starts_with("ssh-ed25519 "));
        assert!(!format!("{pair:?}").contains("PRIVATE"));
    }
}
