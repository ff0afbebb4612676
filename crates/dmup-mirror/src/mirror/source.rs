//! Bytes from a mirror, bounded in number and in time. Nothing is believed here.

use std::fmt;
use std::io::{self, Read, Write};
use std::time::Duration;

use camino::Utf8PathBuf;
use tokio_rustls::rustls::{self, CertificateError};

use crate::trust::FileName;

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Between two pieces of an answer.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// Before any piece of a package, and for a whole manifest.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Slower than this and a package is given up.
const SLOWEST_BYTES_A_SECOND: u64 = 8 << 10;
/// Of one request, with pauses between them.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// A mirror that can be read.
#[derive(Clone, Debug)]
pub enum Source {
    /// A folder of this machine.
    Directory(Utf8PathBuf),
    /// Over HTTP or HTTPS.
    Http {
        /// Its address; may hold a password, so it is never shown as it is.
        base: reqwest::Url,
        /// Keeps connections.
        client: reqwest::Client,
    },
}

/// A file of a mirror that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("fetch {file} from {mirror}: {problem}")]
pub struct SourceError {
    /// Where from.
    pub mirror: String,
    /// Which file.
    pub file: String,
    /// What happened.
    pub problem: SourceProblem,
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceProblem {
    /// The mirror has none of this name.
    #[error("there is no such file")]
    NotFound,
    /// It goes on after the last byte that it may have.
    #[error("it is longer than the {limit} bytes that it may have")]
    TooLarge {
        /// Bytes.
        limit: u64,
    },
    /// It is not a file.
    #[error("it is no regular file")]
    NotAFile,
    /// An answer that is not the file.
    #[error("the answer is HTTP {0}")]
    Status(u16),
    /// Its certificate is of an authority that this machine does not trust.
    #[error("this machine does not trust the authority of its certificate")]
    Untrusted,
    /// No answer, or not a whole one.
    #[error("{0}")]
    Http(String),
    /// The folder cannot be read.
    #[error("{0}")]
    Read(io::Error),
    /// What was fetched cannot be kept.
    #[error("cannot be written here: {0}")]
    Write(io::Error),
    /// No address at all.
    #[error("the address is none: {0}")]
    BadAddress(String),
}

impl SourceProblem {
    /// Whether another attempt could help.
    fn may_pass(&self) -> bool {
        match self {
            Self::Http(_) => true,
            Self::Status(status) => *status >= 500,
            Self::NotFound
            | Self::TooLarge { .. }
            | Self::NotAFile
            | Self::Untrusted
            | Self::Read(_)
            | Self::Write(_)
            | Self::BadAddress(_) => false,
        }
    }
}

impl Source {
    /// An address that begins with `http://` or `https://`, else a folder (TiUP's rule).
    ///
    /// # Errors
    ///
    /// If it is no address.
    pub fn at(address: &str) -> Result<Self, SourceError> {
        if !address.starts_with("http://") && !address.starts_with("https://") {
            return Ok(Self::Directory(Utf8PathBuf::from(address)));
        }
        let bad = |why: String| SourceError {
            // As given it could hold a password.
            mirror: "the mirror".to_owned(),
            file: "anything".to_owned(),
            problem: SourceProblem::BadAddress(why),
        };
        let mut base = reqwest::Url::parse(address).map_err(|error| bad(error.to_string()))?;
        if !base.path().ends_with('/') {
            let path = format!("{}/", base.path());
            base.set_path(&path);
        }
        let client = reqwest::Client::builder()
            .user_agent(concat!("dmup/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_WITHIN)
            .read_timeout(READ_WITHIN)
            .redirect(reqwest::redirect::Policy::limited(5))
            .build()
            .map_err(|error| bad(causes(error)))?;
        Ok(Self::Http { base, client })
    }

    /// A small file, whole.
    ///
    /// # Errors
    ///
    /// If it is not there, cannot be read, or is longer than `limit`.
    pub async fn fetch(&self, file: &FileName, limit: u64) -> Result<Vec<u8>, SourceError> {
        let mut bytes = Vec::new();
        self.attempt(file, limit, ANSWER_WITHIN, &mut bytes, Vec::clear, &mut |_| {}).await?;
        Ok(bytes)
    }

    /// A large file into one that is empty; `received` is told how many bytes there are by now.
    ///
    /// # Errors
    ///
    /// As above; if it cannot be written.
    pub async fn download(
        &self,
        file: &FileName,
        limit: u64,
        to: &mut fs_err::File,
        received: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), SourceError> {
        let within = ANSWER_WITHIN + Duration::from_secs(limit / SLOWEST_BYTES_A_SECOND);
        let restart = |to: &mut Rewound<'_>| {
            to.failed = io::Seek::rewind(to.file).and_then(|()| to.file.set_len(0)).err();
        };
        let mut to = Rewound { file: to, failed: None };
        self.attempt(file, limit, within, &mut to, restart, received).await
    }

    /// Once more from the beginning if it could help.
    async fn attempt<W: Write + Send>(
        &self,
        file: &FileName,
        limit: u64,
        within: Duration,
        to: &mut W,
        restart: impl Fn(&mut W) + Send,
        received: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), SourceError> {
        let mut attempt = 1;
        loop {
            let outcome = match self {
                Self::Directory(folder) => copy(folder, file, limit, to, received),
                Self::Http { base, client } => {
                    get(base, client, file, limit, within, to, received).await
                }
            };
            match outcome {
                Ok(()) => return Ok(()),
                Err(problem) if problem.may_pass() && attempt < ATTEMPTS => {
                    attempt += 1;
                    restart(to);
                    tokio::time::sleep(PAUSE).await;
                }
                Err(problem) => {
                    return Err(SourceError {
                        mirror: self.to_string(),
                        file: file.to_string(),
                        problem,
                    });
                }
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(folder) => f.pad(folder.as_str()),
            Self::Http { base, .. } => {
                let mut shown = base.clone();
                // Fails only for addresses that cannot have any.
                let _ = (shown.set_username(""), shown.set_password(None));
                shown.set_query(None);
                f.pad(shown.as_str().trim_end_matches('/'))
            }
        }
    }
}

/// A file that is written from the beginning with each attempt.
struct Rewound<'a> {
    file: &'a mut fs_err::File,
    failed: Option<io::Error>,
}

impl Write for Rewound<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => self.file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn copy(
    folder: &Utf8PathBuf,
    file: &FileName,
    limit: u64,
    to: &mut impl Write,
    received: &mut (dyn FnMut(u64) + Send),
) -> Result<(), SourceProblem> {
    let path = folder.join(file.as_str());
    let told = |error: io::Error| {
        // Without the folder nothing is known about what the mirror has.
        if error.kind() == io::ErrorKind::NotFound && folder.is_dir() {
            SourceProblem::NotFound
        } else {
            SourceProblem::Read(error)
        }
    };
    // Asked before opening: to open a pipe would wait for a writer.
    if !fs_err::metadata(&path).map_err(told)?.is_file() {
        return Err(SourceProblem::NotAFile);
    }
    let mut from = fs_err::File::open(&path).map_err(told)?.take(limit.saturating_add(1));
    let mut buffer = vec![0; 1 << 18];
    let mut count = 0;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(SourceProblem::Read(error)),
        };
        keep(&buffer[..read], &mut count, limit, to)?;
        received(count);
    }
}

async fn get(
    base: &reqwest::Url,
    client: &reqwest::Client,
    file: &FileName,
    limit: u64,
    within: Duration,
    to: &mut (impl Write + Send),
    received: &mut (dyn FnMut(u64) + Send),
) -> Result<(), SourceProblem> {
    let failed = |error: reqwest::Error| SourceProblem::Http(causes(error));
    let url = base
        .join(&format!("./{file}"))
        .map_err(|error| SourceProblem::BadAddress(error.to_string()))?;
    let mut answer = client.get(url).timeout(within).send().await.map_err(|error| {
        if is_of_unknown_authority(&error) { SourceProblem::Untrusted } else { failed(error) }
    })?;
    match answer.status().as_u16() {
        200 => {}
        404 | 410 => return Err(SourceProblem::NotFound),
        other => return Err(SourceProblem::Status(other)),
    }
    if answer.content_length().is_some_and(|told| told > limit) {
        return Err(SourceProblem::TooLarge { limit });
    }
    let mut count = 0;
    while let Some(bytes) = answer.chunk().await.map_err(failed)? {
        keep(&bytes, &mut count, limit, to)?;
        received(count);
    }
    Ok(())
}

fn keep(
    bytes: &[u8],
    count: &mut u64,
    limit: u64,
    to: &mut impl Write,
) -> Result<(), SourceProblem> {
    *count += bytes.len() as u64;
    if *count > limit {
        return Err(SourceProblem::TooLarge { limit });
    }
    to.write_all(bytes).map_err(SourceProblem::Write)
}

fn is_of_unknown_authority(error: &reqwest::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        if let Some(rustls::Error::InvalidCertificate(why)) = next.downcast_ref() {
            return *why == CertificateError::UnknownIssuer;
        }
        // An I/O error names the source of the error in it, and not that error.
        cause = match next.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(within) => Some(within),
            None => next.source(),
        };
    }
    false
}

/// reqwest says what failed, and only its causes say why. Without the address, which may hold a password.
fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
