//! The process's own TLS, set once from `ssl-ca`, `ssl-cert` and `ssl-key`.
//!
//! With `ssl-ca`, whoever connects must show a certificate of that authority, and every connection to other members
//! is over TLS and shows ours (tiflow pkg/security and dm/master/config.go: `ClientCertAuth`). Addresses without a
//! scheme get `https` then. `cert-allowed-cn` is not imitated.

use std::sync::{Arc, OnceLock};

use fs_err as fs;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::flags::Flags;

static OURS: OnceLock<Tls> = OnceLock::new();

/// Paths as given, and what was made of them.
struct Tls {
    paths: [String; 3],
    acceptor: TlsAcceptor,
    for_grpc: ClientTlsConfig,
    for_http: reqwest::Client,
}

/// Reads the files that the flags name, if they do. The error is what goes to stderr.
pub(crate) fn open(flags: &Flags) -> Result<(), String> {
    let [ca, cert, key] = ["ssl-ca", "ssl-cert", "ssl-key"].map(|name| flags.value(name));
    let Some(ca) = ca else { return Ok(()) };
    let (Some(cert), Some(key)) = (cert, key) else {
        return Err("ssl-ca without ssl-cert and ssl-key".to_owned());
    };
    let tls = Tls::read([ca, cert, key].map(str::to_owned))?;
    OURS.set(tls).map_err(|_| "TLS is set already".to_owned())
}

impl Tls {
    fn read(paths: [String; 3]) -> Result<Self, String> {
        let file = |path: &str| fs::read(path).map_err(|error| format!("TLS: {error}"));
        let (ca, cert, key) = (file(&paths[0])?, file(&paths[1])?, file(&paths[2])?);
        let told = |error: &dyn std::fmt::Display| format!("TLS: {error}");
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(&ca) {
            roots.add(der.map_err(|error| told(&error))?).map_err(|error| told(&error))?;
        }
        let chain = CertificateDer::pem_slice_iter(&cert)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| told(&error))?;
        let secret = PrivateKeyDer::from_pem_slice(&key).map_err(|error| told(&error))?;
        // Both stacks that bring a provider along are linked: one has to be named.
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| told(&error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| told(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, secret)
            .map_err(|error| told(&error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let identity = [&key[..], b"\n", &cert].concat();
        let client = || -> reqwest::Result<reqwest::Client> {
            reqwest::Client::builder()
                .use_rustls_tls()
                .tls_built_in_root_certs(false)
                .add_root_certificate(reqwest::Certificate::from_pem(&ca)?)
                .identity(reqwest::Identity::from_pem(&identity)?)
                .build()
        };
        Ok(Self {
            for_http: client().map_err(|error| told(&error))?,
            for_grpc: ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(&ca))
                .identity(Identity::from_pem(&cert, &key)),
            acceptor: Arc::new(config).into(),
            paths,
        })
    }
}

/// What addresses without a scheme get.
pub(crate) fn scheme() -> &'static str {
    if OURS.get().is_some() { "https" } else { "http" }
}

/// An address without its scheme.
pub(crate) fn bare(address: &str) -> &str {
    let address = address.trim();
    address.strip_prefix("https://").or_else(|| address.strip_prefix("http://")).unwrap_or(address)
}

/// Wraps connections to our port; none without TLS.
pub(crate) fn acceptor() -> Option<TlsAcceptor> {
    OURS.get().map(|tls| tls.acceptor.clone())
}

/// For gRPC to another member, `host:port`.
pub(crate) fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("{}://{}", scheme(), bare(address)))?;
    match OURS.get() {
        Some(tls) => endpoint.tls_config(tls.for_grpc.clone()),
        None => Ok(endpoint),
    }
}

/// For HTTP to other members.
pub(crate) fn http_client() -> reqwest::Client {
    OURS.get().map_or_else(reqwest::Client::new, |tls| tls.for_http.clone())
}

/// etcd's flags for the same: its clients and its peers need certificates too.
pub(crate) fn etcd_flags() -> Vec<(&'static str, String)> {
    let Some(Tls { paths: [ca, cert, key], .. }) = OURS.get() else { return Vec::new() };
    let mut flags = Vec::new();
    for (trusted, own, secret, auth) in [
        ("trusted-ca-file", "cert-file", "key-file", "client-cert-auth"),
        ("peer-trusted-ca-file", "peer-cert-file", "peer-key-file", "peer-client-cert-auth"),
    ] {
        flags.extend([
            (trusted, ca.clone()),
            (own, cert.clone()),
            (secret, key.clone()),
            (auth, "true".to_owned()),
        ]);
    }
    flags
}
