//! A signed mirror as TiUP's clients know it, made in memory, with keys that everybody may see.
//!
//! In: packages. Out: the files of the mirror's flat folder. Every [`MadeMirror`] is consistent; what is wrong in a test is
//! made wrong there: a file of another edition put in, or a manifest changed and signed anew with [`sign`].
//! The keys in `keys.pem` were made for this with `openssl genpkey` and guard nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, LazyLock, Mutex};

use camino::Utf8Path;
use fs_err as fs;
use rsa::RsaPrivateKey;
use rsa::pkcs8::{DecodePrivateKey, EncodePublicKey, LineEnding};
use rsa::pss::SigningKey;
use rsa::rand_core::{TryCryptoRng, TryRng};
use rsa::sha2::Sha256;
use rsa::signature::{RandomizedSigner, SignatureEncoding};
use serde_json::{Value, json};
use sha2::Digest;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Who signs: each has one key of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Signer {
    /// Of the root, from the first edition on; not of roots after a rotation.
    Root1,
    /// Of every root.
    Root2,
    /// Of every root.
    Root3,
    /// Of roots after a rotation, in the place of `Root1`.
    NewRoot,
    /// Of the index.
    Index,
    /// Of the snapshot.
    Snapshot,
    /// Of the timestamp.
    Timestamp,
    /// Of all components.
    Owner,
}

struct Key {
    id: String,
    public: Value,
    signing: SigningKey<Sha256>,
}

static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| {
    include_str!("keys.pem")
        .split_inclusive("-----END PRIVATE KEY-----\n")
        .map(|pem| {
            let key = RsaPrivateKey::from_pkcs8_pem(pem).expect("made by openssl");
            let pem = key.to_public_key().to_public_key_pem(LineEnding::LF).expect("it is a key");
            let public =
                json!({"keytype": "rsa", "keyval": {"public": pem}, "scheme": "rsassa-pss-sha256"});
            let id = hex::encode(sha2::Sha256::digest(public.to_string()));
            // TiUP's signatures: as much salt as 2048 bits have room for.
            let signing = SigningKey::new_with_salt_len(key, 222);
            Key { id, public, signing }
        })
        .collect()
});

fn key(signer: Signer) -> &'static Key {
    &KEYS[signer as usize]
}

/// Keys as `keys` of a role or an owner.
pub fn public_keys(of: &[Signer]) -> Value {
    of.iter().map(|signer| (key(*signer).id.clone(), key(*signer).public.clone())).collect()
}

/// A manifest file: these bytes of `signed`, signed by those.
pub fn sign(signed: &Value, by: &[Signer]) -> Vec<u8> {
    let bytes = signed.to_string();
    let signatures: Vec<Value> = by
        .iter()
        .map(|signer| json!({"keyid": key(*signer).id, "sig": signature(*signer, &bytes)}))
        .collect();
    // By hand: the bytes that were signed must stay as they are.
    format!(r#"{{"signatures":{},"signed":{bytes}}}"#, Value::from(signatures)).into_bytes()
}

/// Kept, for without optimisation a signature takes longer than most tests.
fn signature(signer: Signer, bytes: &str) -> String {
    static MADE: Mutex<BTreeMap<(usize, String), String>> = Mutex::new(BTreeMap::new());
    let name = (signer as usize, bytes.to_owned());
    if let Some(made) = MADE.lock().expect("nobody panics with it").get(&name) {
        return made.clone();
    }
    let made = key(signer).signing.sign_with_rng(&mut Salt(1), bytes.as_bytes()).to_bytes();
    let made = base64(&made);
    MADE.lock().expect("nobody panics with it").insert(name, made.clone());
    made
}

/// The content of a manifest file.
///
/// # Panics
/// If it is none.
pub fn signed(file: &[u8]) -> Value {
    serde_json::from_slice::<Value>(file).expect("a manifest")["signed"].clone()
}

/// Serves files over HTTP until the process ends; the address.
///
/// # Errors
/// If there is no port.
pub fn serve(files: BTreeMap<String, Vec<u8>>) -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away is its own affair.
            drop(answer(stream, &files));
        }
    });
    Ok(address)
}

/// The same over HTTPS, with a certificate for 127.0.0.1 and its key (PEM).
///
/// # Errors
/// If they are none, or there is no port.
pub fn serve_over_tls(
    files: BTreeMap<String, Vec<u8>>,
    certificate: &str,
    key: &str,
) -> io::Result<String> {
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(io::Error::other)?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(io::Error::other)?;
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("https://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(Arc::clone(&config)).expect("it was built");
            // As above; also one that does not trust us.
            drop(answer(StreamOwned::new(connection, stream), &files));
        }
    });
    Ok(address)
}

fn answer(stream: impl Read + Write, files: &BTreeMap<String, Vec<u8>>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    while !request.ends_with("\r\n\r\n") && reader.read_line(&mut request)? > 0 {}
    let name = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
    let (status, body) = match files.get(name) {
        Some(body) => ("200 OK", body.as_slice()),
        None => ("404 Not Found", &b"no such file"[..]),
    };
    let mut stream = reader.into_inner();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    stream.flush()
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Salts that are the same every time: the same mirror has the same bytes.
struct Salt(u64);

impl TryRng for Salt {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|wide| (wide >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        Ok(self.0)
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Infallible> {
        for byte in to {
            *byte = (self.try_next_u64()? >> 56) as u8;
        }
        Ok(())
    }
}

impl TryCryptoRng for Salt {}

/// One edition of a mirror.
#[derive(Clone, Debug)]
pub struct MadeMirror {
    /// The number of index, snapshot, timestamp and component manifests.
    pub edition: u64,
    /// How many roots there are. From the second on `NewRoot` stands where `Root1` stood.
    pub roots: u64,
    /// Until when everything counts.
    pub expires: String,
    /// What it has.
    pub packages: Vec<MadePackage>,
}

/// One package of a mirror.
#[derive(Clone, Debug)]
pub struct MadePackage {
    /// E.g. `dm-master`.
    pub component: String,
    /// E.g. `v8.1.0`.
    pub version: String,
    /// E.g. `linux/amd64`.
    pub platform: String,
    /// The file.
    pub bytes: Vec<u8>,
}

impl Default for MadeMirror {
    fn default() -> Self {
        Self { edition: 1, roots: 1, expires: "2100-01-01T00:00:00Z".to_owned(), packages: vec![] }
    }
}

impl MadeMirror {
    /// Adds a package; `platform` is e.g. `linux/amd64`.
    #[must_use]
    pub fn with(mut self, component: &str, version: &str, platform: &str, bytes: &[u8]) -> Self {
        self.packages.push(MadePackage {
            component: component.to_owned(),
            version: version.to_owned(),
            platform: platform.to_owned(),
            bytes: bytes.to_owned(),
        });
        self
    }

    /// All files of the mirror's folder, by name.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let edition = self.edition;
        let mut files = BTreeMap::new();
        for version in 1..=self.roots {
            files.insert(format!("{version}.root.json"), self.root(version));
        }
        files.insert("root.json".to_owned(), files["1.root.json"].clone());
        let mut listed = serde_json::Map::new();
        let mut manifests = vec![("index".to_owned(), self.index())];
        manifests.extend(self.components().into_iter().map(|it| (it.clone(), self.component(&it))));
        for (name, bytes) in manifests {
            let entry = json!({"length": bytes.len(), "version": edition});
            listed.insert(format!("/{name}.json"), entry);
            files.insert(format!("{edition}.{name}.json"), bytes);
        }
        let root = json!({"length": files["root.json"].len(), "version": self.roots});
        listed.insert("/root.json".to_owned(), root);
        let snapshot =
            sign(&self.manifest("snapshot", &json!({"meta": listed})), &[Signer::Snapshot]);
        files.insert("timestamp.json".to_owned(), self.timestamp(&snapshot));
        files.insert("snapshot.json".to_owned(), snapshot);
        files.extend(self.packages.iter().map(|it| (it.file(), it.bytes.clone())));
        files
    }

    /// Writes them.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_to(&self, folder: &Utf8Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        for (name, bytes) in self.files() {
            fs::write(folder.join(name), bytes)?;
        }
        Ok(())
    }

    /// The timestamp for that snapshot.
    pub fn timestamp(&self, snapshot: &[u8]) -> Vec<u8> {
        let hash = hex::encode(sha2::Sha256::digest(snapshot));
        let entry = json!({"hashes": {"sha256": hash}, "length": snapshot.len()});
        let meta = json!({"meta": {"/snapshot.json": entry}});
        sign(&self.manifest("timestamp", &meta), &[Signer::Timestamp])
    }

    fn manifest(&self, kind: &str, content: &Value) -> Value {
        let mut all = content.clone();
        all["_type"] = kind.into();
        all["expires"] = self.expires.as_str().into();
        all["spec_version"] = "0.1.0".into();
        all["version"] = self.edition.into();
        all
    }

    fn root(&self, version: u64) -> Vec<u8> {
        let first = if version == 1 { Signer::Root1 } else { Signer::NewRoot };
        let role = |name: &str, keys: &[Signer], threshold: u64| json!({"keys": public_keys(keys), "threshold": threshold, "url": format!("/{name}.json")});
        let mut content = self.manifest(
            "root",
            &json!({"roles": {
                "index": role("index", &[Signer::Index], 1),
                "root": role("root", &[first, Signer::Root2, Signer::Root3], 2),
                "snapshot": role("snapshot", &[Signer::Snapshot], 1),
                "timestamp": role("timestamp", &[Signer::Timestamp], 1),
            }}),
        );
        content["version"] = version.into();
        sign(&content, &[first, Signer::Root2, Signer::Root3])
    }

    fn components(&self) -> Vec<String> {
        let mut names: Vec<String> = self.packages.iter().map(|it| it.component.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    fn index(&self) -> Vec<u8> {
        let components: Value = self
            .components()
            .into_iter()
            .map(|id| {
                let url = format!("/{id}.json");
                let entry = json!({"hidden": false, "owner": "lab", "standalone": false, "url": url, "yanked": false});
                (id, entry)
            })
            .collect();
        let owner = json!({"keys": public_keys(&[Signer::Owner]), "name": "lab", "threshold": 1});
        let content =
            json!({"components": components, "default_components": [], "owners": {"lab": owner}});
        sign(&self.manifest("index", &content), &[Signer::Index])
    }

    fn component(&self, id: &str) -> Vec<u8> {
        let mut platforms = json!({});
        for package in self.packages.iter().filter(|it| it.component == id) {
            let hash = hex::encode(sha2::Sha256::digest(&package.bytes));
            platforms[&package.platform][&package.version] = json!({
                "dependencies": null, "entry": format!("{id}/{id}"), "hashes": {"sha256": hash},
                "length": package.bytes.len(), "released": "2024-01-01T00:00:00Z",
                "url": format!("/{}", package.file()), "yanked": false,
            });
        }
        let content = json!({"description": "", "id": id, "nightly": "", "platforms": platforms});
        sign(&self.manifest("component", &content), &[Signer::Owner])
    }
}

impl MadePackage {
    /// Its name on the mirror.
    pub fn file(&self) -> String {
        format!("{}-{}-{}.tar.gz", self.component, self.version, self.platform.replace('/', "-"))
    }
}
