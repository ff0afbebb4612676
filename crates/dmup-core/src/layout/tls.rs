//! Certificate and key of an instance of a cluster with `enable_tls`.

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
    let role = instance.role;
    let named = format!("{role}-{}-{}", instance.host, instance.port);
    [
        ("ca.crt".to_owned(), 0o644, authority, "ca.crt".to_owned()),
        (format!("{role}.crt"), 0o644, certificate, format!("{named}.crt")),
        (format!("{role}.pem"), 0o600, key, format!("{named}.pem")),
    ]
    .into_iter()
    .map(|(name, mode, content, cache_name)| PlacedFile {
        path: instance.deploy_dir.join("tls").join(name),
        mode,
        root: false,
        content: content.to_owned(),
        cache_name,
    })
    .collect()
}
