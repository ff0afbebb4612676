//! Sizes beyond which a package is not believed.
//!
//! The largest real ones: dm-master unstripped 185 MB, Grafana about 10 000 files.

/// Files, folders and links.
pub const ENTRIES: usize = 50_000;
/// One file, unpacked.
pub const FILE_BYTES: u64 = 2 << 30;
/// All files, unpacked.
pub const TOTAL_BYTES: u64 = 4 << 30;
/// A path within the package.
pub const PATH_BYTES: usize = 1024;
/// Folders within folders.
pub const PATH_DEPTH: usize = 64;
/// A long name or an extended header; these are held in memory.
pub const EXTENSION_BYTES: u64 = 64 << 10;
/// Links that point to links; Linux follows as many.
pub const LINKS_IN_A_ROW: usize = 40;

/// Largest text that is taken out of a package: what the agent writes as a small file.
pub const TEXT_BYTES: u64 = 512 << 10;
