//! YAML as TiUP reads and writes it: text in, a tree with places out; values in, TiUP's bytes out.

mod read;
mod scalar;
mod value;
mod write;

pub(crate) use read::{Kind, Node, parse};
pub use read::{Place, YamlError};
pub use value::Value;
pub use write::to_text;

pub(crate) use scalar::{old_bool, resolve};
pub(crate) use value::natural_order;
