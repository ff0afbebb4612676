//! Which mirror: `TIUP_MIRRORS`, else `tiup.toml`, else PingCAP's.

use std::io::Read as _;

use camino::Utf8Path;
use serde::Deserialize;

use super::store::MirrorError;

/// TiUP pkg/repository/constant.go.
const OFFICIAL: &str = "https://tiup-mirrors.pingcap.com";
const LONGEST: u64 = 1 << 20;

#[derive(Deserialize)]
struct TiupToml {
    #[serde(default)]
    mirror: String,
}

/// The address of the mirror; `given` is `TIUP_MIRRORS`.
///
/// # Errors
///
/// If `tiup.toml` is there and cannot be read.
pub fn address(given: Option<&str>, tiup_home: &Utf8Path) -> Result<String, MirrorError> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let path = tiup_home.join("tiup.toml");
    let broken = |why: String| MirrorError::Settings { path: path.clone(), why };
    let file = match fs_err::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(OFFICIAL.to_owned());
        }
        Err(error) => return Err(broken(error.to_string())),
    };
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).map_err(|error| broken(error.to_string()))?;
    let settings: TiupToml =
        toml::from_str(&text).map_err(|error| broken(error.message().to_owned()))?;
    Ok(if settings.mirror.is_empty() { OFFICIAL.to_owned() } else { settings.mirror })
}
