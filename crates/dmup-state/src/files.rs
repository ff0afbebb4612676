//! Reading with a bound, and writing that is whole or not at all.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

use camino::Utf8Path;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;

use crate::StateError;

/// Reads a text of at most `limit` bytes; none if there is no such file.
pub(crate) fn read_text(path: &Utf8Path, limit: u64) -> Result<Option<String>, StateError> {
    let file = match fs::File::open(path.as_std_path()) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StateError::system(format!("read {path}"))(error)),
    };
    let mut text = String::new();
    file.take(limit + 1)
        .read_to_string(&mut text)
        .map_err(StateError::system(format!("read {path}")))?;
    if text.len() as u64 > limit {
        return Err(StateError::BadFile {
            path: path.to_owned(),
            why: format!("is larger than {limit} bytes"),
        });
    }
    Ok(Some(text))
}

/// Writes a file so that its name shows either the old or the whole new content, also after a power cut.
pub(crate) fn write_whole(path: &Utf8Path, content: &[u8], mode: u32) -> Result<(), StateError> {
    let attempt = || StateError::system(format!("write {path}"));
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(StateError::BadFile { path: path.to_owned(), why: "has no folder".to_owned() });
    };
    let temporary = dir.join(format!(".{name}.{}.new", std::process::id()));
    match fs::remove_file(temporary.as_std_path()) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(attempt()(error)),
        Ok(()) | Err(_) => {}
    }
    let written = (|| {
        let mut file = fs_err::OpenOptions::new();
        file.write(true).create_new(true);
        file.mode(mode);
        let mut file = file.open(temporary.as_std_path())?;
        file.write_all(content)?;
        // The creation mask of the process must not decide who can read it.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(temporary.as_std_path(), path.as_std_path())?;
        sync_dir(dir)
    })();
    written.map_err(|error| {
        drop(fs::remove_file(temporary.as_std_path()));
        attempt()(error)
    })
}

/// Makes the names in a folder survive a power cut.
pub(crate) fn sync_dir(dir: &Utf8Path) -> std::io::Result<()> {
    fs::File::open(dir.as_std_path())?.sync_all()
}

/// Makes a folder and its parents.
pub(crate) fn make_dir(dir: &Utf8Path, mode: u32) -> Result<(), StateError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .map_err(StateError::system(format!("make folder {dir}")))
}
