//! What a build comes in, and who vouches for it: hotfix packages, TiUP's component packages, and the mirrors that sign them.
//!
//! In: a file that somebody gave us. Out: a [`package::Package`], of which
//! every file has been looked at, and a canonical parcel of it to send to
//! hosts; or a [`package::PackageError`] that says which rule it breaks.
//! [`trust`] does the same for manifests, and [`mirror`] gets packages from
//! where they are. Nothing here decides what is replaced where, and only
//! [`mirror`] goes to a network.

pub mod mirror;
pub mod package;
pub mod trust;
