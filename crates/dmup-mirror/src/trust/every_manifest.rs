//! All readers of manifests at once, for tests with hostile input (`fuzz/`).

use dmup_core::version::DmVersion;
use serde_json::value::RawValue;

use super::chain::{Index, Root, Snapshot, TimestampManifest};
use super::component::{ComponentFile, ComponentManifest};
use super::document::{Document, limits};
use super::names::ComponentId;

/// Reads bytes as manifests, one after another, of every kind, and asks them what a download asks. A panic is what is
/// looked for.
///
/// Signatures are checked, but what they say is ignored: input that is changed at random is signed by nobody, and what
/// lies behind a signature is a mirror's text all the same.
pub fn read_as_every_manifest(bytes: &[u8]) {
    let (mut root, mut snapshot) = (None::<Root>, None::<Snapshot>);
    let documents = serde_json::Deserializer::from_slice(bytes).into_iter::<&RawValue>();
    for text in documents.map_while(Result::ok).map(RawValue::get) {
        let Ok(document) = Document::parse(text.as_bytes(), limits::MANIFEST_BYTES) else {
            continue;
        };
        if let Ok(read) = document.content("root").and_then(Root::from_file) {
            read.next_file();
            root = Some(read);
        }
        if let Some(root) = &root {
            drop(root.next(text.as_bytes()));
            drop(root.known_timestamp(text.as_bytes()));
        }
        if let Ok(read) = document.content("timestamp").and_then(TimestampManifest::from_file) {
            read.snapshot_bytes();
        }
        if let Ok(read) = document.content("snapshot").and_then(Snapshot::from_file) {
            drop(read.index_file());
            snapshot = Some(read);
        }
        if let Ok(index) = document.content("index").and_then(Index::from_file) {
            index.ask_for_everything(snapshot.as_ref());
        }
        if let Ok(file) = document.content::<ComponentFile>("component")
            && let Ok(id) = ComponentId::new(file.id())
            && let Ok(component) = ComponentManifest::from_file(&id, file)
        {
            drop(component.newest("linux", "amd64"));
            for version in ["v8.1.0", "nightly"].map(str::parse::<DmVersion>).into_iter().flatten()
            {
                drop(component.package(&version, "linux", "amd64"));
                drop(component.package(&version, "linux", "s390x"));
            }
        }
    }
}
