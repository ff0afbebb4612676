//! `meta backup`, `meta restore`: what this machine knows of a cluster, in one file, and back.
//!
//! Hosts are not touched: a record that is put back must be that of the cluster as it is out there.

use camino::{Utf8Path, Utf8PathBuf};
use dmup_state::Cluster;

use crate::args::{MetaArgs, MetaCommand};
use crate::ask;
use crate::context::{Context, checked_name, state_failure};
use crate::failure::{Failure, Kind};

/// TiUP's sentence, its doubled word included: scripts type it.
const SENTENCE: &str = "Yes, I know my cluster meta will be be overridden.";

pub(crate) fn run(args: &MetaArgs, context: &Context) -> Result<(), Failure> {
    match &args.command {
        MetaCommand::Backup { cluster, file } => back_up(cluster, file.as_deref(), context),
        MetaCommand::Restore { cluster, file } => restore(cluster, file, context),
    }
}

fn back_up(name: &str, file: Option<&Utf8Path>, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(name)?;
    known.refuse_unfinished_scale_out(false)?;
    let _lock = known.lock("meta backup")?;
    let to = file.map_or_else(
        // TiUP's name, `cluster` in it is no mistake of ours.
        || {
            let now = jiff::Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%:z");
            Utf8PathBuf::from(format!("tiup-cluster_{}_metabackup_{now}.tar.gz", known.name))
        },
        Utf8Path::to_owned,
    );
    known.cluster.back_up(&to).map_err(state_failure)?;
    context.printer.talk(format_args!(
        "Backed up {} to {to}. It has the key that opens its hosts: keep it safe",
        known.name
    ));
    Ok(())
}

fn restore(name: &str, file: &Utf8Path, context: &Context) -> Result<(), Failure> {
    let name = checked_name(name)?;
    let cluster = context.profile.cluster(&name);
    let scratch = context.scratch()?;
    let backup = Cluster::read_backup(file, scratch.path()).map_err(state_failure)?;
    let instances = backup.meta.instances();
    let what = format!(
        "{file} has a cluster of DM {} with {} instance(s) on {} host(s)",
        backup.meta.version,
        instances.len(),
        instances.iter().map(|it| &it.host).collect::<std::collections::BTreeSet<_>>().len()
    );
    // A record that cannot be read is a reason to restore, so only the folder counts.
    let _lock = if cluster.dir().exists() {
        if !context.global.yes {
            ask::confirm_by_typing(
                &format!(
                    "{what}.\nIt takes the place of all that is known of {name} here: {}",
                    cluster.dir()
                ),
                SENTENCE,
            )?;
        }
        let holder = format!("`meta restore`, process {}", std::process::id());
        Some(cluster.lock(&holder).map_err(state_failure)?)
    } else {
        context.printer.talk(&what);
        None
    };
    cluster.restore(&backup, scratch.path()).map_err(|error| {
        let failure = state_failure(error);
        Failure { kind: Kind::Failed, ..failure }.now(format_args!("{name} is known as before"))
    })?;
    context.printer.talk(format_args!("Restored {name}; `dmup display {name}` shows how it is"));
    Ok(())
}
