//! `list`: the clusters of this `TIUP_HOME`.

use dmup_core::display::{ClusterLine, list_json, list_text};

use crate::args::Format;
use crate::context::Context;
use crate::failure::{Failure, chain};

pub(crate) fn run(context: &Context) -> Result<(), Failure> {
    let mut lines = Vec::new();
    let mut unreadable = Vec::new();
    for listed in context.profile.clusters().map_err(|error| Failure::failed(chain(&error)))? {
        match listed.meta {
            Ok(meta) => lines.push(ClusterLine {
                name: listed.cluster.name().to_string(),
                user: meta.user.to_string(),
                version: meta.version.to_string(),
                path: listed.cluster.dir().to_string(),
                private_key: listed.cluster.private_key_path().to_string(),
            }),
            Err(error) => unreadable.push(chain(&error)),
        }
    }
    let text = match context.global.format {
        Format::Default => list_text(&lines),
        Format::Json => list_json(&lines),
    };
    context.printer.data(text.trim_end_matches('\n'));
    if unreadable.is_empty() {
        Ok(())
    } else {
        Err(Failure::failed("not every cluster can be read").because(unreadable))
    }
}
