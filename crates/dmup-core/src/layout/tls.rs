//! Certificate and key of an instance of a cluster with `enable_tls`.

use camino::Utf8Path;

use super::PlacedFile;
use crate::instance::Instance;

/// Where an instance finds them: `<deploy dir>/tls/ca.crt`, `<role>.crt` and `<role>.pem`, all PEM. The key is for
/// its owner's eyes only.
pub fn tls_files(
    instance: &Instance,
    authority: &str,
    certificate: &str,
    key: &str,
) -> Vec<PlacedFile> {
    let role = instance.role.as_str();
    let named = format!("{role}-{}-{}", instance.host, instance.port);
    placed(&instance.deploy_dir, role, &named, authority, certificate, key)
}

/// `component` is the stem of the names on the host, `named` that of TiUP's copies.
pub(super) fn placed(
    deploy_dir: &Utf8Path,
    component: &str,
    named: &str,
    authority: &str,
    certificate: &str,
    key: &str,
) -> Vec<PlacedFile> {
    [
        ("ca.crt".to_owned(), 0o644, authority, "ca.crt".to_owned()),
        (format!("{component}.crt"), 0o644, certificate, format!("{named}.crt")),
        (format!("{component}.pem"), 0o600, key, format!("{named}.pem")),
    ]
    .into_iter()
    .map(|(name, mode, content, cache_name)| PlacedFile {
        path: deploy_dir.join("tls").join(name),
        mode,
        root: false,
        content: content.to_owned(),
        cache_name,
    })
    .collect()
}
