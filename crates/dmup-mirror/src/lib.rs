//! What a build comes in: hotfix packages and TiUP's component packages.
//!
//! In: a file that somebody gave us. Out: a [`package::Package`], of which
//! every file has been looked at, and a canonical parcel of it to send to
//! hosts; or a [`package::PackageError`] that says which rule it breaks.
//! Nothing here decides what is replaced where, and nothing goes to a network.

pub mod package;
