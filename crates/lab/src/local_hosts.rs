//! Hosts for machines that cannot boot hosts: a folder and a loopback address each.
//!
//! Unprivileged containers have no mounts, no namespaces and no systemd; there, tests run programs under `folder` and let them
//! listen on `address`. Linux answers on all of 127.0.0.0/8 without set-up.

use std::net::Ipv4Addr;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

/// A folder and an address that stand for a host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LocalHost {
    /// h1, h2, …
    pub name: String,
    /// 127.0.1.1, 127.0.1.2, …
    pub address: Ipv4Addr,
    /// Where its files go.
    pub folder: Utf8PathBuf,
}

/// Makes `count` local hosts under `under`.
///
/// # Errors
///
/// What making the folders says, or that `count` is not in 1..=200.
pub fn make(under: &Utf8Path, count: u8) -> std::io::Result<Vec<LocalHost>> {
    if !(1..=200).contains(&count) {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            format!("local hosts: 1 to 200 are possible, not {count}"),
        ));
    }
    (1..=count)
        .map(|number| {
            let name = format!("h{number}");
            let folder = under.join(&name);
            fs::create_dir_all(&folder)?;
            Ok(LocalHost { name, address: Ipv4Addr::new(127, 0, 1, number), folder })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn local_hosts_have_folders_and_addresses_of_their_own() {
        let temp = tempfile::tempdir().unwrap();
        let under = Utf8Path::from_path(temp.path()).unwrap();
        let hosts = make(under, 3).unwrap();
        assert_eq!(hosts[2].name, "h3");
        for host in &hosts {
            assert!(host.folder.is_dir());
            TcpListener::bind((host.address, 0)).unwrap();
        }
        assert!(make(under, 0).is_err());
    }
}
