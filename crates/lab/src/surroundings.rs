//! The environment that this crate depends on, read here and nowhere else.

use std::ffi::OsString;

use camino::Utf8PathBuf;

/// Where tests find the `dmup` binary to send to hosts.
pub const DMUP: &str = "LAB_DMUP";
/// Where tests find the `lookalike` binary to pack.
pub const LOOKALIKE: &str = "LAB_LOOKALIKE";

/// A package with the programs of a real DM, to run scenes with it instead of the stand-in. Absolute.
pub const DM_PACKAGE: &str = "DMUP_DM_PACKAGE";
/// The same for its hotfix; without it, a hotfix is the programs of [`DM_PACKAGE`] with another hash.
pub const DM_HOTFIX: &str = "DMUP_DM_HOTFIX";

/// Where things are kept that are costly to make and cheap to keep: `$XDG_CACHE_HOME/dmup`, else `~/.cache/dmup`, else `/var/cache/dmup`.
pub fn cache_folder() -> Utf8PathBuf {
    let base = path_from("XDG_CACHE_HOME")
        .or_else(|| path_from("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(|| "/var/cache".into());
    base.join("dmup")
}

/// Whether this runs in continuous integration, where a test that cannot run is a failure.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// The `dmup` binary that host tests use, as `cargo xtask test` hands it over.
pub fn dmup_binary() -> Option<Utf8PathBuf> {
    path_from(DMUP)
}

/// The `lookalike` binary that host tests pack, as `cargo xtask test` hands it over.
pub fn lookalike_binary() -> Option<Utf8PathBuf> {
    path_from(LOOKALIKE)
}

/// The packages of a real DM and of its hotfix, if somebody named one.
pub fn dm_packages() -> Option<(Utf8PathBuf, Utf8PathBuf)> {
    let package = path_from(DM_PACKAGE)?;
    let hotfix = path_from(DM_HOTFIX).unwrap_or_else(|| package.clone());
    Some((package, hotfix))
}

fn path_from(name: &str) -> Option<Utf8PathBuf> {
    std::env::var_os(name)
        .map(OsString::into_string)
        .and_then(Result::ok)
        .filter(|value| value.starts_with('/'))
        .map(Utf8PathBuf::from)
}
