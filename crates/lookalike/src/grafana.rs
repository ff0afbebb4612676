//! As much of Grafana's server as a rollout looks at: the port of `grafana.ini`, `/api/health`, `/login`, `-v`, SIGTERM.
//!
//! Debian has no Grafana. Flags as TiUP's run script gives them: `--homepath=DIR --config=FILE`.

use std::process::ExitCode;

use fs_err as fs;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::{CANNOT_START, fail};
use crate::flags::Known;
use crate::http::{self, Http2};
use crate::stamp::{Fault, Stamp};

// Not `config`: that would be read as TOML. `-config` is renamed before parsing.
const FLAGS: Known = Known {
    program: "grafana-server",
    values: &["homepath", "ini", "pidfile", "packaging"],
    switches: &["v", "V"],
    only_in_file: &[],
};

pub(crate) fn run(args: &[String], stamp: &Stamp) -> ExitCode {
    use std::io::Write as _;

    let args: Vec<String> = args
        .iter()
        .filter(|arg| !arg.starts_with("cfg:"))
        .map(|arg| arg.replacen("-config", "-ini", 1))
        .collect();
    let flags = match FLAGS.parse(&args) {
        Ok(flags) => flags,
        Err(error) => return fail(CANNOT_START, &error),
    };
    if flags.is_on("v") || flags.is_on("V") {
        let line =
            format!("Version {} (commit: {}, branch: HEAD)", stamp.release_version, stamp.git_hash);
        return match writeln!(std::io::stdout(), "{line}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(1, &format!("print the version: {error}")),
        };
    }
    if stamp.faults.contains(&Fault::ExitAtStart) {
        return fail(1, "this build is bad: it exits at start");
    }
    let ini = flags.value("ini").map(fs::read_to_string).transpose();
    let ini = match ini {
        Ok(ini) => ini.unwrap_or_default(),
        Err(error) => return fail(1, &format!("read the configuration: {error}")),
    };
    let port = http_port(&ini);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("start the runtime: {error}")),
    };
    let version = stamp.release_version.clone();
    runtime.block_on(async move {
        let listener = match http::listen(&format!("0.0.0.0:{port}")) {
            Ok(listener) => listener,
            Err(error) => return fail(1, &format!("listen on port {port}: {error}")),
        };
        let mut ended = match signal(SignalKind::terminate()) {
            Ok(signals) => signals,
            Err(error) => return fail(1, &format!("listen for signals: {error}")),
        };
        let handle = move |request: http::Request| {
            let version = version.clone();
            async move {
                match request.uri().path() {
                    "/api/health" => {
                        let body = serde_json::json!({ "database": "ok", "version": version });
                        http::plain(200, "application/json; charset=UTF-8", body.to_string())
                    }
                    // What TiUP and dmup ask to see whether it is up.
                    "/login" => {
                        http::plain(200, "text/html; charset=UTF-8", "<!doctype html>\n".to_owned())
                    }
                    _ => http::not_found(),
                }
            }
        };
        tokio::select! {
            _ = ended.recv() => ExitCode::SUCCESS,
            () = http::serve(listener, Http2::Everything, CancellationToken::new(), handle) => ExitCode::FAILURE,
        }
    })
}

/// `http_port` wherever it stands in the file, else Grafana's default.
fn http_port(ini: &str) -> u16 {
    ini.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| key.trim() == "http_port")
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(3000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_that_of_the_file() {
        assert_eq!(http_port("[server]\nhttp_port = 3001\n"), 3001);
        assert_eq!(http_port("# http_port\n"), 3000);
    }
}
