//! The log in DM's text format: `[time] [LEVEL] [file:line] ["message"] [key=value]`.
//!
//! Lines go to the file of `--log-file`, else to stderr. A line that cannot be written is dropped: a full disk must
//! not end the process.

use std::io::Write;
use std::sync::{Mutex, OnceLock};

use fs_err as fs;

static FILE: OnceLock<Mutex<fs::File>> = OnceLock::new();

/// Opens the log; without a path it stays on stderr.
pub(crate) fn open(path: Option<&str>) -> Result<(), String> {
    let Some(path) = path else { return Ok(()) };
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|error| format!("open log file: {error}"))?;
    FILE.set(Mutex::new(file)).map_err(|_| "the log is open already".to_owned())
}

/// Writes one line.
pub(crate) fn write(level: &str, module: &str, message: &str) {
    let now = jiff::Timestamp::now().strftime("%Y/%m/%d %H:%M:%S%.3f +00:00");
    let line = format!("[{now}] [{level}] [{module}] [{message:?}]\n");
    let written = match FILE.get() {
        Some(file) => file.lock().expect("no panic while logging").write_all(line.as_bytes()),
        None => std::io::stderr().write_all(line.as_bytes()),
    };
    drop(written);
}

macro_rules! info {
    ($($arg:tt)*) => { crate::log::write("INFO", module_path!(), &format!($($arg)*)) };
}
macro_rules! warning {
    ($($arg:tt)*) => { crate::log::write("WARN", module_path!(), &format!($($arg)*)) };
}
macro_rules! error {
    ($($arg:tt)*) => { crate::log::write("ERROR", module_path!(), &format!($($arg)*)) };
}
pub(crate) use {error, info, warning};
