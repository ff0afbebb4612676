//! One port for HTTP/1.1 and gRPC, told apart by the content type, as DM's programs have it.
//!
//! Answers carry the headers that DM's gateway was recorded with.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Version;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use prost::Message;
use serde::Serialize;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::{log, tls};

pub(crate) type Request = hyper::Request<Incoming>;
pub(crate) type Response = hyper::Response<tonic::body::Body>;

const LONGEST_BODY_BYTES: usize = 4 << 20;

/// A procedure of one of DM's services.
pub(crate) trait Rpc: Message + Default + Clone + Send + 'static {
    type Reply: Message + Default + Send + 'static;
    const PATH: &'static str;
}

/// Opens the port; also right after another process has left it.
pub(crate) fn listen(address: &str) -> std::io::Result<TcpListener> {
    let address: SocketAddr = address.parse().map_err(|_| {
        std::io::Error::other(format!("listen address {address:?}: want a numeric host and a port"))
    })?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(256)
}

/// What a port takes by HTTP/2.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Http2 {
    /// Every request, as dm-master's.
    Everything,
    /// gRPC: at any other request the connection ends, as dm-worker's does (seen with v8.1.0).
    GrpcAlone,
}

/// Serves until `closed`; then open connections end too.
pub(crate) async fn serve<H, F>(
    listener: TcpListener,
    http2: Http2,
    closed: CancellationToken,
    handle: H,
) where
    H: Fn(Request) -> F + Clone + Send + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    loop {
        let accepted = tokio::select! {
            () = closed.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: they come back as connections end.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let (handle, closed) = (handle.clone(), closed.clone());
        tokio::spawn(async move {
            let unwanted = CancellationToken::new();
            let ends = unwanted.clone();
            let service = hyper::service::service_fn(move |request: Request| {
                let is_unwanted = http2 == Http2::GrpcAlone
                    && request.version() == Version::HTTP_2
                    && !is_grpc(&request);
                if is_unwanted {
                    ends.cancel();
                }
                let answer = handle(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            let connection = async {
                match tls::acceptor() {
                    None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
                    Some(acceptor) => match acceptor.accept(stream).await {
                        Ok(stream) => {
                            drop(builder.serve_connection(TokioIo::new(stream), service).await);
                        }
                        Err(error) => log::warning!("rejected connection: {error}"),
                    },
                }
            };
            tokio::select! {
                biased;
                () = closed.cancelled() => {}
                () = unwanted.cancelled() => {}
                () = connection => {}
            }
        });
    }
}

/// Whether a request is gRPC.
pub(crate) fn is_grpc(request: &Request) -> bool {
    request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Answers a gRPC request with `run`.
pub(crate) async fn answer_grpc<R, F, Fut>(request: Request, run: F) -> Response
where
    R: Rpc,
    F: FnOnce(R) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<R::Reply, Status>> + Send + 'static,
{
    let service = tower::service_fn(move |request: tonic::Request<R>| {
        let answer = run.clone()(request.into_inner());
        async move { answer.await.map(tonic::Response::new) }
    });
    tonic::server::Grpc::new(ProstCodec::<R::Reply, R>::default()).unary(service, request).await
}

/// Answers that there is no such procedure.
pub(crate) fn unimplemented_grpc() -> Response {
    Status::unimplemented("unknown service or method").into_http()
}

/// Reads a body within bounds.
pub(crate) async fn body(request: Request) -> Result<Bytes, Status> {
    let limited = Limited::new(request.into_body(), LONGEST_BODY_BYTES);
    match limited.collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => Err(Status::invalid_argument(format!("read body: {error}"))),
    }
}

/// A plain answer.
pub(crate) fn plain(code: u16, kind: &'static str, text: impl Into<Bytes>) -> Response {
    let mut response = hyper::Response::new(tonic::body::Body::new(Full::new(text.into())));
    *response.status_mut() = hyper::StatusCode::from_u16(code).expect("a literal status");
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The answer of Go's mux to an unknown path.
pub(crate) fn not_found() -> Response {
    let mut response = plain(404, "text/plain; charset=utf-8", "404 page not found\n");
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// An answer of the gateway.
pub(crate) fn gateway(value: &impl Serialize) -> Response {
    let mut response = plain(200, "application/json", indented(value));
    response
        .headers_mut()
        .insert("grpc-metadata-content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// An error of the gateway.
pub(crate) fn gateway_error(status: &Status) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        code: i32,
        message: &'a str,
        details: [(); 0],
    }
    let http = match status.code() {
        Code::InvalidArgument => 400,
        Code::Unimplemented => 501,
        Code::NotFound => 404,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => 500,
    };
    let body = Body { code: status.code() as i32, message: status.message(), details: [] };
    plain(http, "application/json", indented(&body))
}

fn indented(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("plain data")
}

/// Adds what a dm-master puts on every answer.
pub(crate) fn with_cors(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        ("access-control-allow-headers", "accept, content-type, authorization"),
        ("access-control-allow-methods", "POST, GET, OPTIONS, PUT, DELETE"),
        ("access-control-allow-origin", "*"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// `%41` and `+` of a query or path.
pub(crate) fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%').then(|| text.get(i + 1..i + 3)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(if bytes[i] == b'+' { b' ' } else { bytes[i] });
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_and_bad_escapes_stay() {
        assert_eq!(percent_decoded("dm%2D1+a%"), "dm-1 a%");
        assert_eq!(percent_decoded("100%zz"), "100%zz");
    }
}
