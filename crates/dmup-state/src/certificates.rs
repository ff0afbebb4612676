//! The certificate authority of a cluster with `enable_tls`, and what it signs.
//!
//! ```text
//! <cluster>/tls/ca.crt ca.pem          signs every other; RSA 2048, `ca.pem` in PKCS#1
//!              /client.crt client.pem  with which this machine talks to DM
//!              /client.pfx             the same two and `ca.crt` for a browser, with TiUP's password `tiup`
//! ```
//!
//! Names, subjects, uses and terms are TiUP's, and so is the form of `ca.pem`: TiUP parses
//! nothing but PKCS#1 when it signs for new instances. Keys of instances and of the client are
//! ECDSA P-256 in PKCS#8, which Go's TLS takes by content and which are made at once, where two
//! primes for RSA take a while. Private keys are 0600, `client.pfx` with them since its password is
//! no secret; TiUP leaves them readable to all. `client.pfx` is encrypted with AES-256 and checked by
//! HMAC-SHA-256, where TiUP takes RC2 and triple DES, which OpenSSL 3 does not read by default.
//!
//! Facts: TiUP 1.16.5, pkg/crypto/{ca,rsa}.go, pkg/cluster/manager/cacert.go, pkg/cluster/task/tls.go.

use std::fmt;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::{ToSpan, Zoned};
use p12_keystore::{Certificate, KeyStore, KeyStoreEntry, PrivateKey, PrivateKeyChain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _,
};
use rsa::RsaPrivateKey;
use rsa::pkcs1::{DecodeRsaPrivateKey, EncodeRsaPrivateKey, LineEnding};
use rsa::pkcs8::EncodePrivateKey;
use x509_parser::pem::parse_x509_pem;

use crate::StateError;
use crate::files::{make_dir, read_text, write_whole};

const PEM_BYTES: u64 = 256 << 10;
const RSA_BITS: usize = 2048;
const AUTHORITY_YEARS: i16 = 50;
const SIGNED_YEARS: i16 = 10;
/// TiUP's, and told to whoever is to open the file: pkg/crypto/keys.go, `PKCS12Password`.
const PFX_PASSWORD: &str = "tiup";

/// Signs certificates for one cluster.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Credentials {
    /// Shown to the other side.
    pub certificate: String,
    /// Never leaves the machine that it is made for, but for the way there.
    pub key: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("certificate", &self.certificate)
            .field("key", &"‹redacted›")
            .finish()
    }
}

impl Authority {
    /// Its own certificate, PEM: what both sides of a connection trust.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate and key for an instance of `component`, reached as `host` (an address or a name).
    /// It is for both sides of a connection, as DM's programs talk to each other with it.
    ///
    /// # Errors
    ///
    /// A sentence: the host cannot stand in a certificate, or there is no randomness.
    pub fn sign_for_instance(
        &self,
        component: &str,
        host: &str,
        now: &Zoned,
    ) -> Result<Credentials, String> {
        self.sign(component, component, &[host.to_owned()], now)
            .map_err(|why| format!("make a certificate for {component} on {host}: {why}"))
    }

    fn sign(
        &self,
        name: &str,
        unit: &str,
        hosts: &[String],
        now: &Zoned,
    ) -> Result<Credentials, String> {
        let told = |error: rcgen::Error| error.to_string();
        let mut params = CertificateParams::new(hosts).map_err(told)?;
        params.distinguished_name = subject(Some((unit, name)));
        params.use_authority_key_identifier_extension = true;
        set_term(&mut params, now, SIGNED_YEARS)?;
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = both_sides();
        let key = KeyPair::generate().map_err(told)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(told)?;
        Ok(Credentials { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// Reads the authority of the folder, or makes one. The client's certificate is made with it.
pub(crate) fn ensure(dir: &Utf8Path, cluster: &str, now: &Zoned) -> Result<Authority, StateError> {
    let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.pem"));
    let authority = match (read_text(&certificate, PEM_BYTES)?, read_text(&key, PEM_BYTES)?) {
        (Some(text), Some(secret)) => read(&certificate, text, &key, &secret, now)?,
        (None, None) => make(dir, &certificate, &key, now)?,
        (Some(_), None) => return Err(half(key, &certificate)),
        (None, Some(_)) => return Err(half(certificate, &key)),
    };
    let (certificate, key) = (dir.join("client.crt"), dir.join("client.pem"));
    if !(certificate.exists() && key.exists()) {
        let name = format!("{cluster}-client");
        let client = authority
            .sign(&name, "tiup-cluster-client", &[], now)
            .map_err(|why| bad(&certificate, why))?;
        let for_browsers = dir.join("client.pfx");
        let packed = for_a_browser(&name, &client, authority.certificate())
            .map_err(|why| bad(&for_browsers, why))?;
        // The certificate last: until it is there, all three are made anew.
        write_whole(&key, client.key.as_bytes(), 0o600)?;
        write_whole(&for_browsers, &packed, 0o600)?;
        write_whole(&certificate, client.certificate.as_bytes(), 0o644)?;
    }
    Ok(authority)
}

/// PKCS#12: the key, its certificate and the authority's, all shown as `name`.
fn for_a_browser(name: &str, client: &Credentials, authority: &str) -> Result<Vec<u8>, String> {
    let der = |pem: &str| {
        parse_x509_pem(pem.as_bytes())
            .map(|(_, pem)| pem.contents)
            .map_err(|error| format!("is not PEM: {error}"))
    };
    let told = |error: p12_keystore::error::Error| format!("make it for browsers: {error}");
    let certificates = [&client.certificate, authority]
        .into_iter()
        .map(|pem| Certificate::from_der(&der(pem)?).map_err(told))
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKey::from_der(&der(&client.key)?).map_err(told)?;
    let mut store = KeyStore::new();
    // The id ties the key to its certificate; there is only one pair in the file.
    let chain = PrivateKeyChain::new("client", key, certificates);
    store.add_entry(name, KeyStoreEntry::PrivateKeyChain(chain));
    store.writer(PFX_PASSWORD).write().map_err(told)
}

fn make(
    dir: &Utf8Path,
    certificate_path: &Utf8Path,
    key_path: &Utf8Path,
    now: &Zoned,
) -> Result<Authority, StateError> {
    let made = || -> Result<(String, String), String> {
        // What follows can only panic where there is no randomness: asked for here before.
        getrandom::fill(&mut [0; 32])
            .map_err(|error| format!("no randomness for a new key: {error}"))?;
        let secret = RsaPrivateKey::new(&mut rand_core::UnwrapErr(getrandom::SysRng), RSA_BITS)
            .map_err(|error| format!("make a key: {error}"))?;
        let told = |error: rcgen::Error| format!("sign a new authority: {error}");
        let mut params = CertificateParams::new([]).map_err(told)?;
        params.distinguished_name = subject(None);
        set_term(&mut params, now, AUTHORITY_YEARS)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = both_sides();
        let certificate = params.self_signed(&signing(&secret)?).map_err(told)?.pem();
        let secret = secret
            .to_pkcs1_pem(LineEnding::LF)
            .map_err(|error| format!("encode a new key: {error}"))?;
        Ok((certificate, secret.to_string()))
    };
    let (certificate, secret) = made().map_err(|why| bad(key_path, why))?;
    make_dir(dir, 0o755)?;
    // The key last: a certificate alone is refused above, not taken for whole.
    write_whole(certificate_path, certificate.as_bytes(), 0o644)?;
    write_whole(key_path, secret.as_bytes(), 0o600)?;
    read(certificate_path, certificate, key_path, &secret, now)
}

fn read(
    certificate_path: &Utf8Path,
    certificate: String,
    key_path: &Utf8Path,
    secret: &str,
    now: &Zoned,
) -> Result<Authority, StateError> {
    let secret = RsaPrivateKey::from_pkcs1_pem(secret)
        .map_err(|error| error.to_string())
        .and_then(|secret| signing(&secret))
        .map_err(|why| bad(key_path, format!("is no RSA key in PKCS#1 PEM: {why}")))?;
    fits(&certificate, &secret, now).map_err(|why| bad(certificate_path, why))?;
    let issuer = Issuer::from_ca_cert_pem(&certificate, secret)
        .map_err(|error| bad(certificate_path, format!("cannot sign: {error}")))?;
    Ok(Authority { certificate, issuer })
}

/// What it signs would be refused otherwise, after hosts were changed.
fn fits(certificate: &str, secret: &KeyPair, now: &Zoned) -> Result<(), String> {
    let no_certificate = |why: String| format!("is no certificate in PEM: {why}");
    let (_, pem) = parse_x509_pem(certificate.as_bytes())
        .map_err(|error| no_certificate(error.to_string()))?;
    let parsed = pem.parse_x509().map_err(|error| no_certificate(error.to_string()))?;
    if parsed.public_key().raw != secret.subject_public_key_info() {
        return Err("is of another key than the ca.pem beside it".to_owned());
    }
    let ends = parsed.validity().not_after;
    if ends.timestamp() <= now.timestamp().as_second() {
        return Err(format!("was valid until {ends}: the cluster needs a new authority"));
    }
    Ok(())
}

fn signing(secret: &RsaPrivateKey) -> Result<KeyPair, String> {
    let pem = secret.to_pkcs8_pem(LineEnding::LF).map_err(|error| error.to_string())?;
    KeyPair::from_pkcs8_pem_and_sign_algo(&pem, &rcgen::PKCS_RSA_SHA256)
        .map_err(|error| error.to_string())
}

/// Beginning a day ago, since the clocks of hosts may be behind ours.
fn set_term(params: &mut CertificateParams, now: &Zoned, years: i16) -> Result<(), String> {
    let told = |error: jiff::Error| format!("the clock says {now}: {error}");
    let day = |at: &Zoned| {
        let (month, day) = (at.month().cast_unsigned(), at.day().cast_unsigned());
        rcgen::date_time_ymd(i32::from(at.year()), month, day)
    };
    let begins = now.with_time_zone(jiff::tz::TimeZone::UTC).checked_sub(1.day()).map_err(told)?;
    params.not_before = day(&begins);
    params.not_after = day(&begins.checked_add(years.years()).map_err(told)?);
    Ok(())
}

fn both_sides() -> Vec<ExtendedKeyUsagePurpose> {
    vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]
}

fn subject(of: Option<(&str, &str)>) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "PingCAP");
    subject.push(DnType::OrganizationalUnitName, "TiUP");
    if let Some((unit, name)) = of {
        // A second organizational unit (RFC 4519, 2.20), which a type of its own can hold only once.
        subject.push(DnType::CustomDnType(vec![2, 5, 4, 11]), unit);
        subject.push(DnType::CommonName, name);
    }
    subject
}

fn half(missing: Utf8PathBuf, there: &Utf8Path) -> StateError {
    bad(&missing, format!("is missing, but {there} is there: put it back from a backup"))
}

fn bad(path: &Utf8Path, why: String) -> StateError {
    StateError::BadFile { path: path.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;
    use std::time::Duration;

    use p12_keystore::Pkcs12ImportPolicy;
    use tokio_rustls::rustls::RootCertStore;
    use tokio_rustls::rustls::client::WebPkiServerVerifier;
    use tokio_rustls::rustls::client::danger::ServerCertVerifier as _;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use tokio_rustls::rustls::server::WebPkiClientVerifier;

    use super::*;

    fn now() -> Zoned {
        "2026-11-26T09:08:07+08:00[+08:00]".parse().unwrap()
    }

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("tls")).unwrap();
        (folder, path)
    }

    /// Refuses what is not signed by the authority, for its use, with its name, at this time.
    fn verify(authority: &str, certificate: &str, server: Option<&str>) {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
        let (roots, provider) = (Arc::new(roots), Arc::new(ring::default_provider()));
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let seconds = now().timestamp().as_second().cast_unsigned();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        clients.build().unwrap().verify_client_cert(&certificate, &[], at).unwrap();
        if let Some(name) = server {
            let servers = WebPkiServerVerifier::builder_with_provider(roots, provider);
            let name = ServerName::try_from(name).unwrap();
            servers.build().unwrap().verify_server_cert(&certificate, &[], &name, &[], at).unwrap();
        }
    }

    /// Subject, issuer and term.
    fn told(certificate: &str) -> String {
        let (_, pem) = parse_x509_pem(certificate.as_bytes()).unwrap();
        let parsed = pem.parse_x509().unwrap();
        let term = parsed.validity();
        format!(
            "{} by {} from {} to {}",
            parsed.subject(),
            parsed.issuer(),
            term.not_before,
            term.not_after
        )
    }

    #[test]
    fn an_authority_is_made_once_and_what_it_signs_is_valid_with_the_subjects_of_tiup() {
        let (_keep, dir) = folder();
        let made = ensure(&dir, "prod", &now()).unwrap();
        let read = ensure(&dir, "prod", &now()).unwrap();
        assert_eq!(made.certificate(), read.certificate(), "made once");
        let text = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        let (authority, client) = (text("ca.crt"), text("client.crt"));
        let instance = read.sign_for_instance("dm-master", "10.0.1.1", &now()).unwrap();
        verify(&authority, &instance.certificate, Some("10.0.1.1"));
        verify(&authority, &client, None);
        let issued = "by O=PingCAP, OU=TiUP from Nov 25 00:00:00 2026 +00:00 to Nov 25 00:00:00";
        for (certificate, subject, until) in [
            (&authority, "O=PingCAP, OU=TiUP", 2076),
            (&client, "O=PingCAP, OU=TiUP, OU=tiup-cluster-client, CN=prod-client", 2036),
            (&instance.certificate, "O=PingCAP, OU=TiUP, OU=dm-master, CN=dm-master", 2036),
        ] {
            assert_eq!(told(certificate), format!("{subject} {issued} {until} +00:00"));
        }
        assert!(
            text("ca.pem").starts_with("-----BEGIN RSA PRIVATE KEY-----\n"),
            "TiUP parses PKCS#1"
        );
        for key in ["ca.pem", "client.pem", "client.pfx"] {
            let mode = std::fs::metadata(dir.join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        assert!(!format!("{instance:?}{made:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_browser_is_given_the_same_key_and_certificates_under_the_password_of_tiup() {
        let (_keep, dir) = folder();
        ensure(&dir, "prod", &now()).unwrap();
        let packed = || std::fs::read(dir.join("client.pfx")).unwrap();
        let der = |name: &str| {
            let text = std::fs::read(dir.join(name)).unwrap();
            parse_x509_pem(&text).unwrap().1.contents
        };
        let open =
            |password| KeyStore::from_pkcs12(&packed(), password, Pkcs12ImportPolicy::Strict);
        assert!(open("tidb").is_err());
        let store = open("tiup").unwrap();
        let (name, chain) = store.private_key_chain().unwrap();
        assert_eq!((name, store.entries_len()), ("prod-client", 1));
        assert_eq!(chain.key().as_der(), der("client.pem"));
        let certificates: Vec<&[u8]> = chain.certs().iter().map(Certificate::as_der).collect();
        assert_eq!(certificates, [der("client.crt"), der("ca.crt")]);

        // One that broke off before its certificate was there is made anew, as a whole.
        let before = packed();
        std::fs::remove_file(dir.join("client.crt")).unwrap();
        ensure(&dir, "prod", &now()).unwrap();
        assert_ne!(packed(), before);
        assert_eq!(
            open("tiup").unwrap().private_key_chain().unwrap().1.key().as_der(),
            der("client.pem")
        );
    }

    #[test]
    fn an_authority_of_tiup_signs_and_one_that_is_not_whole_or_not_valid_is_refused() {
        let (_keep, dir) = folder();
        std::fs::create_dir(&dir).unwrap();
        // As Go's crypto/x509 encodes it: text of plain letters is a PrintableString.
        let theirs = include_str!("../tests/fixtures/tls/ca.crt");
        std::fs::write(dir.join("ca.crt"), theirs).unwrap();
        std::fs::write(dir.join("ca.pem"), include_str!("../tests/fixtures/tls/ca.pem")).unwrap();
        let authority = ensure(&dir, "prod", &now()).unwrap();
        let instance = authority.sign_for_instance("dm-worker", "db-7", &now()).unwrap();
        verify(theirs, &instance.certificate, Some("db-7"));

        let refused = |now: &Zoned| ensure(&dir, "prod", now).unwrap_err().to_string();
        let late = refused(&now().checked_add(60.years()).unwrap());
        assert!(late.contains("ca.crt: was valid until Nov 12"), "{late}");
        let (_keep, other) = folder();
        ensure(&other, "prod", &now()).unwrap();
        std::fs::copy(other.join("ca.crt"), dir.join("ca.crt")).unwrap();
        let strange = refused(&now());
        assert!(strange.contains("ca.crt: is of another key"), "{strange}");
        std::fs::remove_file(dir.join("ca.pem")).unwrap();
        let half = refused(&now());
        assert!(half.contains("ca.pem: is missing, but"), "{half}");
    }
}
