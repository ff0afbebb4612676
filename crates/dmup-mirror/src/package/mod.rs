//! Opens a package, checks it, and packs what is needed of it anew.
//!
//! ```text
//! file ──► gzip │ zstd │ plain ──► tar │ one executable ──► Tree ──► components ──► Package
//!          (told by content, never by name)               (scratch)                  └► parcel
//! ```
//!
//! A package is foreign: no name out of it is ever used as a path on this
//! machine (contents lie in numbered files), and what does not fit the
//! [`limits`] is refused before it is written. The parcel has only plain
//! files and folders, sorted, without dates and owners: the same content gives
//! the same bytes.
//!
//! Layouts: as TiUP's (`dm-master/dm-master`, `bin/grafana-server`, …), with
//! the executable at the top, or either below one folder or more (the release
//! archives: `dm-linux-amd64/bin/dm-master`, `prometheus-2.49.1.linux-amd64/prometheus`).
//! Sources: TiUP pkg/cluster/manager/patch.go, embed/templates/scripts; the
//! manual page of `tiup dm patch`.

mod elf;
mod layout;
pub mod limits;
mod make;
mod open;
mod parcel;
mod refusal;
mod unpack;

#[cfg(test)]
mod tests;

pub use make::{Made, MakeError, Making, Replaced};
pub use open::{
    ComponentPackage, Package, PackagedComponent, Wanted, component_package,
    component_package_path, open,
};
pub use parcel::Parcel;
pub use refusal::{PackageError, Refusal};
