//! One HTTP request to one instance, within a time and a size.
//!
//! No idle connections: a node that is stopping must not be held up by ours (dm.md 12: a stop that took 90 s), so each
//! request has its own, over HTTP/1.1. What failed is told apart by whether the request was sent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dmup_core::ids::HostId;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::task::AbortOnDropHandle;

use crate::ssh::{Jump, ReachError, Stream, dial};

use super::code::DmCode;

/// No answer of DM may be longer: members and status of a thousand sources are well below.
pub(super) const BODY_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// Longest piece of a foreign body that goes into an error.
const QUOTED_CHARS: usize = 400;

/// Why a request has no usable answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Unanswered {
    /// Nothing was sent.
    #[error("no connection: {0}")]
    Connect(String),
    /// It was sent, perhaps carried out.
    #[error("no answer within {}s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// It was sent, perhaps carried out; the connection broke.
    #[error("the connection broke: {0}")]
    Broke(String),
    /// The server said no.
    #[error("HTTP {status}: {body}")]
    Status {
        /// Not 2xx.
        status: u16,
        /// Its beginning.
        body: String,
    },
    /// An answer that is no answer.
    #[error("an answer that cannot be read ({why}): {body}")]
    Nonsense {
        /// What is wrong with it.
        why: String,
        /// Its beginning.
        body: String,
    },
    /// `result: false`, in DM's own words.
    #[error("{0}")]
    Refused(String),
}

impl Unanswered {
    /// Whether the request may have been carried out all the same.
    pub(super) fn may_have_happened(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Refused(_) => false,
            // 5xx: a handler that failed half way, or a forward whose end it did not see.
            Self::Status { status, .. } => *status >= 500 && *status != 501,
            Self::TimedOut(_) | Self::Broke(_) | Self::Nonsense { .. } => true,
        }
    }
}

/// `host:port` as a URL has it: IPv6 in brackets.
pub(super) fn authority(host: &HostId, port: u16) -> String {
    let host = host.as_str();
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// A path segment or a query value, with everything escaped that is not plain.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push_str(&hex::encode_upper([byte]));
        }
    }
    out
}

/// How requests of one cluster begin.
#[derive(Clone, Debug)]
pub(super) struct Http {
    /// The host in between.
    pub(super) jump: Option<Arc<Jump>>,
    /// For `https`.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// Longest wait for a connection.
    pub(super) connect: Duration,
}

impl Http {
    /// Opens a TCP connection to the host and port of a URL.
    pub(super) async fn dial(&self, url: &Uri) -> Result<Stream, String> {
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = url.port_u16().ok_or_else(|| format!("no port in {url}"))?;
        dial(self.jump.as_deref(), host, port, self.connect).await.map_err(|error| {
            // Whoever tells it names the node; only what went wrong is new.
            if let ReachError::Connect { observed, .. } = error {
                observed
            } else {
                error.to_string()
            }
        })
    }

    /// A connection that can take a request: with TLS if the URL says so.
    async fn open(&self, url: &Uri) -> Result<Stream, String> {
        let stream = self.dial(url).await?;
        if url.scheme_str() != Some("https") {
            return Ok(stream);
        }
        let tls = self.tls.clone().ok_or("the cluster has no certificates")?;
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
        let secured = TlsConnector::from(tls).connect(name, stream).await;
        Ok(Box::new(secured.map_err(|error| root_cause(&error))?))
    }
}

/// Sends and reads the whole answer, whatever its status.
pub(super) async fn exchange(
    http: &Http,
    method: Method,
    url: &str,
    json: Option<&serde_json::Value>,
    within: Duration,
) -> Result<(StatusCode, String), Unanswered> {
    let deadline = tokio::time::Instant::now() + within;
    let unsent = |why: &dyn std::error::Error| Unanswered::Connect(root_cause(why));
    let url: Uri = url.parse().map_err(|error: hyper::http::uri::InvalidUri| unsent(&error))?;
    let request = request(method, &url, json).map_err(|error| unsent(&error))?;

    let connect = http.connect.min(within);
    let (mut sender, connection) = tokio::time::timeout(connect, async {
        let stream = http.open(&url).await?;
        let io = TokioIo::new(stream);
        hyper::client::conn::http1::handshake(io).await.map_err(|error| root_cause(&error))
    })
    .await
    .unwrap_or_else(|_| Err(format!("none within {}s", connect.as_secs_f32())))
    .map_err(Unanswered::Connect)?;

    // It carries the bytes, and is gone with this request, whatever becomes of it.
    let _carrying = AbortOnDropHandle::new(tokio::spawn(connection));
    let talk = async {
        let broke = |error: hyper::Error| Unanswered::Broke(root_cause(&error));
        let answer = sender.send_request(request).await.map_err(broke)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), BODY_LIMIT_BYTES).collect().await;
        let body = body.map_err(|error| match error.downcast::<LengthLimitError>() {
            Ok(_) => Unanswered::Nonsense {
                why: format!("longer than {BODY_LIMIT_BYTES} bytes"),
                body: String::new(),
            },
            Err(error) => Unanswered::Broke(root_cause(&*error)),
        })?;
        Ok((status, body.to_bytes()))
    };
    let (status, body) = tokio::time::timeout_at(deadline, talk)
        .await
        .unwrap_or(Err(Unanswered::TimedOut(within)))?;
    let body = String::from_utf8(body.into()).map_err(|error| Unanswered::Nonsense {
        why: "not UTF-8".into(),
        body: beginning(&String::from_utf8_lossy(error.as_bytes())),
    })?;
    Ok((status, body))
}

fn request(
    method: Method,
    url: &Uri,
    json: Option<&serde_json::Value>,
) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let path = url.path_and_query().map_or("/", |it| it.as_str());
    let authority = url.authority().map_or("", |it| it.as_str());
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, authority)
        .header(USER_AGENT, concat!("dmup/", env!("CARGO_PKG_VERSION")));
    match json {
        Some(json) => {
            request.header(CONTENT_TYPE, "application/json").body(Full::from(json.to_string()))
        }
        None => request.body(Full::default()),
    }
}

/// Sends and reads a 2xx answer as JSON.
pub(super) async fn ask<T: DeserializeOwned>(
    http: &Http,
    method: Method,
    url: &str,
    json: Option<&serde_json::Value>,
    within: Duration,
) -> Result<T, Unanswered> {
    let (status, body) = exchange(http, method, url, json, within).await?;
    if !status.is_success() {
        // An error that DM has numbered was raised before any effect, whatever status it came with.
        if DmCode::of(&body).is_some() {
            return Err(Unanswered::Refused(said(&body)));
        }
        return Err(Unanswered::Status { status: status.as_u16(), body: said(&body) });
    }
    serde_json::from_str(&body)
        .map_err(|error| Unanswered::Nonsense { why: error.to_string(), body: beginning(&body) })
}

/// The `message` of a grpc-gateway error, or the text itself.
pub(super) fn said(body: &str) -> String {
    #[derive(serde::Deserialize)]
    struct Message {
        message: String,
    }
    match serde_json::from_str::<Message>(body) {
        Ok(told) => beginning(&told.message),
        Err(_) => beginning(body),
    }
}

/// One line, no control characters, bounded.
pub(super) fn beginning(text: &str) -> String {
    let mut line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(QUOTED_CHARS)
        .collect::<String>()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    if text.chars().nth(QUOTED_CHARS).is_some() {
        line.push('…');
    }
    line
}

/// The innermost error: `Connection refused (os error 111)`, without the layers around it.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(inner) = at.source() {
        at = inner;
    }
    at.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_a_url() {
        assert_eq!(escaped("t1"), "t1");
        assert_eq!(escaped("a/b?c=d&e #ü"), "a%2Fb%3Fc%3Dd%26e%20%23%C3%BC");
        assert_eq!(authority(&HostId::new("fd00::1").unwrap(), 8261), "[fd00::1]:8261");
        assert_eq!(authority(&HostId::new("10.0.0.1").unwrap(), 8261), "10.0.0.1:8261");
    }

    #[test]
    fn a_foreign_text_stays_on_one_bounded_line() {
        assert_eq!(beginning("a\n b\t\u{1b}[31mc"), "a b [31mc");
        assert_eq!(beginning(&"x".repeat(1000)).chars().count(), QUOTED_CHARS + 1);
    }
}
