//! What the operator wants: a DM topology, read from YAML and written back as TiUP writes it.
//!
//! In: the text of a topology file ([`Topology::parse`], strict) or of `meta.yaml` ([`Meta::parse`],
//! lenient about keys of other versions of TiUP). Out: a [`Topology`] with defaults filled in, the
//! [`Instance`](crate::instance::Instance)s that follow from it, and the same text again, byte for
//! byte. Errors are [`TopologyError`]s that know their line and column.
//!
//! Facts: TiUP 1.16.5, components/dm/spec and pkg/cluster/spec.

mod check;
mod edit;
mod error;
mod field;
mod instances;
mod load;
mod meta;
mod server;
mod spec;
mod tls;
mod yaml;

pub use check::Neighbour;
pub use edit::check_edit;
pub use error::TopologyError;
pub use field::{Table, Texts};
pub use meta::Meta;
pub use server::Server;
pub use spec::{
    AlertmanagerSpec, ComponentSources, ExternalAlertmanager, Global, GrafanaSpec, MasterSpec,
    Monitored, PrometheusSpec, RemoteConfig, ResourceControl, ServerConfigs, Topology, WorkerSpec,
};
pub use yaml::{Place, Value, YamlError, to_text as yaml_text};

pub(crate) use load::absolute_dirs;
pub(crate) use server::host_port;
pub(crate) use tls::tls_entries;
