//! Brings a machine to the point where hosts can be booted: Debian packages, the hosts' root, the programs under test.
//!
//! Every change to the machine is said before it is made.

use camino::Utf8PathBuf;
use lab::build::{self, Built};
use lab::{debian, hosts, root_image};

use crate::failure::Failure;
use crate::say;

/// The programs that go to hosts.
pub(crate) struct Programs {
    pub(crate) dmup: Utf8PathBuf,
    pub(crate) lookalike: Utf8PathBuf,
    /// This program, as just built: the file that runs may have been replaced by that.
    pub(crate) xtask: Utf8PathBuf,
}

/// Installs the Debian packages that are missing; without the right to, says which.
pub(crate) fn packages() -> Result<(), Failure> {
    Ok(debian::install_missing(debian::NEEDED, say)?)
}

/// Installs what is missing and makes the hosts' root.
pub(crate) fn machine() -> Result<(), Failure> {
    packages()?;
    hosts::can_boot_hosts()?;
    root_image::ensure(say)?;
    Ok(())
}

/// Builds what goes to hosts, and this program.
pub(crate) fn programs() -> Result<Programs, Failure> {
    say("building the programs");
    among(&build::binaries()?)
}

/// The same, and with them the test programs on hosts.
pub(crate) fn programs_and_tests() -> Result<(Programs, Vec<Built>), Failure> {
    say("building the programs and their tests");
    let mut built = build::with_tests()?;
    let programs = among(&built)?;
    built.retain(|it| it.name.ends_with("_hosts"));
    Ok((programs, built))
}

fn among(built: &[Built]) -> Result<Programs, Failure> {
    let find = |name: &str| {
        built
            .iter()
            .find(|program| program.name == name)
            .map(|program| program.path.clone())
            .ok_or_else(|| Failure::new(format!("cargo built no `{name}`")))
    };
    Ok(Programs { dmup: find("dmup")?, lookalike: find("lookalike")?, xtask: find("xtask")? })
}
