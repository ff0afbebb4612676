//! Why a package is not taken.

use std::collections::BTreeSet;
use std::fmt;
use std::io;

use camino::Utf8PathBuf;
use dmup_core::instance::Role;

/// A package that is not taken.
#[derive(Debug, thiserror::Error)]
#[error("package {package}: {refusal}")]
pub struct PackageError {
    /// The file.
    pub package: Utf8PathBuf,
    /// The rule that it breaks.
    pub refusal: Refusal,
}

/// Each rule that a package can break. `entry` is a name within the package, as far as it can be shown.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No such file.
    #[error("no such file")]
    NotFound,
    /// A folder, a device, a socket.
    #[error("not a regular file")]
    NotAFile,
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// Our own scratch folder failed: most often no space.
    #[error("cannot be unpacked for checking: {0}")]
    Scratch(io::Error),
    /// Neither an archive that we know nor an executable.
    #[error(
        "not a package: it looks like {looks_like}, and tar, tar.gz, tar.zst or one executable is needed"
    )]
    NotAnArchive {
        /// What it seems to be.
        looks_like: &'static str,
    },
    /// It ends too early.
    #[error("cut off: it ends in the middle (an upload or download that broke?)")]
    Truncated,
    /// Its check sums or its structure are broken.
    #[error("damaged: {0}")]
    Damaged(String),
    /// There is no file in it.
    #[error("empty: there is no file in it")]
    Empty,
    /// `..` in a name.
    #[error("entry `{entry}` would leave the package's own folder")]
    Traversal {
        /// Which.
        entry: String,
    },
    /// A name that begins with `/`.
    #[error("entry `{entry}` has an absolute path")]
    Absolute {
        /// Which.
        entry: String,
    },
    /// A name that cannot be one.
    #[error("entry `{entry}` has no usable name: {why}")]
    BadName {
        /// Which.
        entry: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// A symbolic or hard link to somewhere outside.
    #[error("link `{entry}` points out of the package, to `{target}`")]
    LinkLeaves {
        /// Which.
        entry: String,
        /// Where to.
        target: String,
    },
    /// A link to nothing in the package.
    #[error("link `{entry}` points to `{target}`, which is no file of the package")]
    LinkToNothing {
        /// Which.
        entry: String,
        /// Where to.
        target: String,
    },
    /// Devices and pipes.
    #[error(
        "entry `{entry}` is {what}; only files, folders and links within the package are taken"
    )]
    Special {
        /// Which.
        entry: String,
        /// What it is.
        what: &'static str,
    },
    /// Beyond a limit of [`super::limits`].
    #[error("too large: {what} exceeds {limit}")]
    TooLarge {
        /// What is.
        what: &'static str,
        /// The limit that counts.
        limit: u64,
    },
    /// Two entries of one name, or an entry below one that is no folder.
    #[error("entry `{entry}` collides with another of the package")]
    Collides {
        /// Which.
        entry: String,
    },
    /// The file where the component's binary belongs is none.
    #[error("`{entry}` is no ELF executable")]
    NotABinary {
        /// Which.
        entry: String,
    },
    /// The executable itself is cut off.
    #[error("`{entry}` is cut off: its own headers speak of {needs} bytes, it has {has}")]
    CutBinary {
        /// Which.
        entry: String,
        /// End of what its headers name.
        needs: u64,
        /// Its size.
        has: u64,
    },
    /// Its mode forbids to run it.
    #[error("`{entry}` is not executable (mode {mode:o}); `chmod 755` it and pack again")]
    NotExecutable {
        /// Which.
        entry: String,
        /// Its permission bits.
        mode: u32,
    },
    /// For another kind of machine.
    #[error("`{entry}` is built for {arch}, but there are targets of {}", Listed(.wanted))]
    OtherArchitecture {
        /// Which.
        entry: String,
        /// `amd64`, `arm64`, or the ELF machine number.
        arch: String,
        /// What the targets are.
        wanted: BTreeSet<String>,
    },
    /// By its own build record it is another component: a dm-worker named dm-master.
    #[error("`{entry}` is not {component}: it was built from {built_from}")]
    OtherComponent {
        /// Which.
        entry: String,
        /// What its name says.
        component: Role,
        /// Go's main package.
        built_from: String,
    },
    /// More than one executable of that name, and none is in the usual place.
    #[error("which one is {role}: {}?", Listed(.entries))]
    Ambiguous {
        /// For which component.
        role: Role,
        /// All of them.
        entries: Vec<String>,
    },
    /// A bare executable that could be anything.
    #[error(
        "a bare executable of no known name: call the file dm-master or dm-worker, or name one role with -R"
    )]
    Nameless,
    /// None of the wanted components is in it.
    #[error("no {} in it; it has {}", Listed(.wanted), Listed(.has))]
    NotInside {
        /// What was wanted.
        wanted: Vec<Role>,
        /// What it has; without a known component, its first entries.
        has: Vec<String>,
    },
}

/// `a, b and c`, or `nothing of use`.
struct Listed<'a, C>(&'a C);

impl<'a, C, T> fmt::Display for Listed<'a, C>
where
    &'a C: IntoIterator<Item = T>,
    T: fmt::Display,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.into_iter().map(|it| it.to_string()).collect();
        match all.split_last() {
            None => f.write_str("nothing of use"),
            Some((last, [])) => f.write_str(last),
            Some((last, others)) => write!(f, "{} and {last}", others.join(", ")),
        }
    }
}
