//! `deploy`: lays a new cluster out on its hosts. Starts nothing.
//!
//! Everything is looked at first, all findings are shown at once, and nothing is
//! touched while there is one. `meta.yaml` is written last, as TiUP does: a
//! deploy that broke off leaves no cluster, and can be given again.

use camino::Utf8Path;
use dmup_core::instance::Instance;
use dmup_core::layout::Deployment;
use dmup_core::preflight::Owner;
use dmup_core::topology::{Meta, Topology};
use dmup_core::version::DmVersion;
use dmup_remote::ssh::Reach;
use dmup_remote::{AuthMethod, HostAddress, Login};
use dmup_state::Cluster;
use dmup_wire::message::UnitAction;

use super::laying_out::{self, Hotfixes, Obstacles, Site, Traces};
use super::obtaining::Obtaining;
use super::{exporters, units};
use crate::args::DeployArgs;
use crate::context::{Context, checked_name, checked_user, state_failure, unrecorded};
use crate::failure::{Failure, Kind};
use crate::pointing;
use crate::progress::Progress;

/// The first version with masters that lead a cluster (TiUP's limit as well).
const OLDEST: (u32, u32, u32) = (2, 0, 0);

pub(crate) async fn run(args: &DeployArgs, context: &Context) -> Result<(), Failure> {
    let name = checked_name(&args.cluster)?;
    let version: DmVersion = args.version.parse().map_err(|bad| Failure::new(Kind::Usage, bad))?;
    if version.numbers().is_some_and(|numbers| numbers < OLDEST) {
        return Err(Failure::refused(format_args!(
            "deploy {version}: v2.0.0 is the first version of DM that is deployed like this"
        )));
    }
    let cluster = context.profile.cluster(&name);
    cluster.refuse_existing().map_err(state_failure)?;
    let mut topology = read_topology(&args.topology)?;
    if !topology.instances().iter().any(|it| it.role.is_dm()) {
        return Err(Failure::refused(format_args!(
            "{}: there is nothing of DM in it to deploy",
            args.topology
        ))
        .hint("`dmup template` prints a topology to begin with"));
    }
    topology.expand_dirs();
    topology.set_tls_paths();
    laying_out::refuse_conflicts(&topology, &args.topology, None, context)?;
    let user = checked_user(topology.global.user.as_str())?;
    let login = laying_out::login(&args.login, context)?;

    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    progress.under_way("connect to the hosts");
    let instances = topology.instances();
    let hosts = HostAddress::of_instances(&instances);
    let reach = context.reach(topology.global.ssh_type.as_str());
    let keys = cluster.own_dir().join("known_hosts");
    let systemd = topology.systemd_mode();
    let of_login = laying_out::systemd_mode_of(&login.user, &user, &topology);
    let first = context.fleet(login.clone(), reach.clone(), of_login, &keys, hosts.clone()).await;
    // The key of a host in between that lets nobody in may have been kept.
    let first = first.inspect_err(|_| forget(&cluster))?;
    let mut obstacles = Obstacles::default();
    let silent = laying_out::meet(&first, &hosts, &mut topology, &mut obstacles).await;
    let (instances, pairs) = (topology.instances(), topology.exporters());

    progress.under_way("open the packages");
    let scratch = context.scratch()?;
    let packages = laying_out::open_packages(
        &instances,
        &pairs,
        &version,
        scratch.path(),
        &progress,
        Obtaining::new(context),
        &mut obstacles,
    )
    .await;
    progress.under_way("look at the hosts");
    let site = Site {
        owner: Owner { user: &user, systemd },
        is_playground: matches!(&reach, Reach::Local { playground: Some(_) }),
        joins: false,
    };
    let looked = laying_out::look(&first, &instances, &pairs, &packages, &silent, site).await;
    progress.end();
    obstacles.add_findings(looked.findings, context);
    let refused = obstacles.refuse(|count| format!("{count} thing(s) are in the way of {name}"));
    if let Err(failure) = refused {
        forget(&cluster);
        return Err(failure);
    }
    let mut laid =
        laying_out::render(&Deployment::new(&name, &version, &topology), &instances, &pairs)?;
    laying_out::add_monitoring(&mut laid, &packages, &name);
    progress.end();
    laying_out::agree(&name, &version, &topology, &instances, context)?;

    let _lock = cluster.lock("deploy").map_err(state_failure)?;
    let step = |text: &str| {
        progress.say(&format!("+ {text}"));
        progress.under_way(text);
    };
    step("Generate SSH keys");
    let key = cluster.ensure_keys().map_err(state_failure)?;
    if topology.global.enable_tls {
        step("Generate TLS certificates");
        laying_out::add_certificates(&mut laid, &cluster)?;
    }
    // On this very machine, as the user who is logged in already, there is nobody to make.
    if !(matches!(reach, Reach::Local { .. }) && user == login.user) {
        step("Initialize target hosts");
        laying_out::prepare_hosts(&first, &topology, &user, &login.user, &key.public).await?;
    }
    first.disconnect().await;

    let own =
        Login { user: user.clone(), auth: vec![AuthMethod::key_file(cluster.private_key_path())] };
    let fleet = context.fleet(own, reach, systemd, &keys, hosts).await?;
    let traces = Traces::of(&laid, &looked.left);
    let work = async {
        step("Deploy DM instances");
        laying_out::lay_out(&fleet, laid, &packages, &Hotfixes::new(), context).await?;
        step("Enable the services at boot");
        let all: Vec<&Instance> = instances.iter().collect();
        units::order(&fleet, &all, UnitAction::Enable, context).await?;
        exporters::order(&fleet, &pairs, UnitAction::Enable, context).await?;
        let meta = Meta { user, version, topology };
        cluster.save_meta(&meta, &jiff::Zoned::now()).map_err(unrecorded)
    };
    traces.or_take_away(&fleet, work).await?;
    progress.end();
    context.printer.talk(format_args!(
        "Cluster `{name}` deployed successfully, you can start it with command: `dmup start {name}`"
    ));
    Ok(())
}

fn read_topology(path: &Utf8Path) -> Result<Topology, Failure> {
    let text = laying_out::read_text(path)?;
    Topology::parse(&text)
        .map_err(|error| pointing::at(&format!("{path}: {error}"), path.as_str(), &text, &error))
}

/// A refused deploy leaves nothing behind but, at most, an empty folder.
fn forget(cluster: &Cluster) {
    if !cluster.exists() && !cluster.private_key_path().exists() {
        drop(fs_err::remove_dir_all(cluster.dir()));
    }
}
