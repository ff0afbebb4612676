//! Sets of hosts side by side, so that what mostly waits takes less time.

/// A set of hosts of its own, on which one thing runs at a time.
#[derive(Clone, Debug)]
pub struct Lane {
    /// Name of the set.
    pub set: String,
    /// Its address block.
    pub block: u8,
}
