//! Processes of the host, by `/proc`.

use camino::Utf8PathBuf;
use fs_err as fs;

/// When a process started, in clock ticks since boot; none if it is gone or only waits to be reaped.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    parse_start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The same, of a line of `/proc/PID/stat`.
pub(crate) fn parse_start_time(stat: &str) -> Option<u64> {
    // The name may hold blanks and brackets: what follows the last bracket is sound. man 5 proc_pid_stat.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The executable that a process runs, readable even if its file was replaced or removed.
pub(crate) fn executable(pid: u32) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("/proc/{pid}/exe"))
}

/// Ports that somebody listens on, by TCP over IPv4 or IPv6.
pub(crate) fn listening() -> Vec<u16> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| parse_listening(&table))
        .collect()
}

/// Lines of `/proc/net/tcp`: number, local `HEX:PORT`, remote, state (`0A` listens).
pub(crate) fn parse_listening(table: &str) -> Vec<u16> {
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (local, state) = (fields.nth(1)?, fields.nth(1)?);
            let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
            (state == "0A").then_some(port)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_ports_are_told_from_connections() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
            0: 00000000:2046 00000000:0000 0A 00000000:00000000\n\
            1: 0100007F:2047 0100007F:A0B0 01 00000000:00000000\n";
        assert_eq!(parse_listening(table), [0x2046]);
        let bound = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(listening().contains(&bound.local_addr().unwrap().port()));
    }

    #[test]
    fn the_own_process_has_a_start_time_and_a_missing_one_has_none() {
        assert!(start_time(std::process::id()).is_some());
        assert_eq!(start_time(4_194_999), None);
    }
}
