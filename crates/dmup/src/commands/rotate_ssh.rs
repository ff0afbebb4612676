//! `rotatessh`: another key pair for the cluster's hosts.
//!
//! At every moment a key that this machine has opens every host: the new one is added first, must
//! log in everywhere on its own, takes the old one's place here, and only then the hosts forget that.
//! How far it came is told by files ([`dmup_state::Rotation`]), so the command again goes on.

use dmup_core::ids::HostId;
use dmup_core::instance::Instance;
use dmup_exec::ports::EffectError;
use dmup_remote::Fleet;
use dmup_remote::ssh::Reach;
use dmup_state::{KeyPair, Rotation};
use dmup_wire::message::{EnsureUser, ForgetKey};
use futures::future::join_all;

use crate::args::RotatesshArgs;
use crate::ask;
use crate::context::{Context, Known, state_failure};
use crate::failure::{Failure, chain};
use crate::progress::Progress;

pub(crate) async fn run(args: &RotatesshArgs, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(&args.cluster)?;
    let reach = context.reach(known.meta.topology.global.ssh_type.as_str());
    if matches!(reach, Reach::Local { .. }) {
        return Err(Failure::refused(format_args!(
            "{} is reached without SSH: there are no keys to change",
            known.name
        )));
    }
    let instances = known.meta.instances();
    if !context.global.yes {
        ask::confirm(&format!(
            "Will change the SSH key of the user {} on all hosts of the cluster {}.",
            known.meta.user, known.name
        ))?;
    }
    let _lock = known.lock("rotatessh")?;
    let progress = Progress::new(context.global.format, context.surroundings.stderr_is_terminal);
    progress.under_way("connect to the hosts");
    let fleet = reached(&known, &reach, &instances, context).await?;
    let work = new_key_in_use(&fleet, &known, &reach, &instances, &progress, context);
    let former = context.with_lease(&known.name, "rotatessh", &fleet, work).await?;
    progress.under_way("take the old key away from every host");
    let fleet = known.fleet(context, &instances).await?;
    let work = forget(&fleet, &known, &former);
    context.with_lease(&known.name, "rotatessh", &fleet, work).await?;
    known.cluster.end_rotation().map_err(|error| again(Failure::failed(chain(&error)), &known))?;
    progress.end();
    context
        .printer
        .talk(format_args!("Changed the SSH key of cluster `{}` successfully", known.name));
    context
        .printer
        .talk("note: backups made before (`meta backup`) have a key that opens nothing any more");
    Ok(())
}

/// Returns the key that hosts must forget.
async fn new_key_in_use(
    fleet: &Fleet,
    known: &Known,
    reach: &Reach,
    instances: &[Instance],
    progress: &Progress,
    context: &Context,
) -> Result<String, Failure> {
    let next = match known.cluster.rotation().map_err(state_failure)? {
        Rotation::Begun(next) => next,
        Rotation::Promoted { former } => {
            progress.say("  the new key is in use already: going on from there");
            return Ok(former);
        }
    };
    progress.under_way("give the new key to every host");
    teach(fleet, known, &next).await?;
    log_in_with_it_alone(known, reach, instances, context).await?;
    progress.say("  every host lets the new key in");
    known.cluster.promote_keys().map_err(|error| {
        again(Failure::failed(chain(&error)).now("both keys open every host"), known)
    })
}

async fn forget(fleet: &Fleet, known: &Known, former: &str) -> Result<(), Failure> {
    let hosts: Vec<HostId> = fleet.hosts().cloned().collect();
    let forgotten = join_all(hosts.iter().map(|host| {
        let order = ForgetKey { user: known.meta.user.clone(), public_key: former.to_owned() };
        fleet.forget_key(host, order)
    }))
    .await;
    all_did("take the old key away from every host", forgotten).map_err(|failure| {
        let now = "the new key is in use and opens every host; the old one opens these, too";
        again(failure.now(now), known)
    })
}

/// All hosts, by whichever key of ours is let in: a rotation of TiUP's that was cut off leaves hosts that
/// know the next one alone. Nothing is made before every host has answered.
async fn reached(
    known: &Known,
    reach: &Reach,
    instances: &[Instance],
    context: &Context,
) -> Result<Fleet, Failure> {
    let mut keys = vec![known.cluster.private_key_path(), known.cluster.next_private_key_path()];
    keys.retain(|path| path.exists());
    let fleet = known.fleet_by(&keys, reach.clone(), context, instances).await?;
    let silent = fleet.silent().await;
    if silent.is_empty() {
        return Ok(fleet);
    }
    Err(Failure::refused("not every host can be reached").because(silent).hint(
        "every host must learn the new key; `scale-in --force` takes off what is gone for good",
    ))
}

const UNHARMED: &str = "the old key is in use, and opens every host that it opened before";

async fn teach(fleet: &Fleet, known: &Known, next: &KeyPair) -> Result<(), Failure> {
    let hosts: Vec<HostId> = fleet.hosts().cloned().collect();
    let user = &known.meta.user;
    let taught = join_all(hosts.iter().map(|host| {
        let order = EnsureUser {
            user: user.clone(),
            group: user.clone(),
            public_key: next.public.clone(),
            sudo: false,
            linger: false,
        };
        fleet.ensure_user(host, order)
    }))
    .await;
    all_did("give the new key to every host", taught)
        .map_err(|failure| again(failure.now(UNHARMED), known))
}

async fn log_in_with_it_alone(
    known: &Known,
    reach: &Reach,
    instances: &[Instance],
    context: &Context,
) -> Result<(), Failure> {
    let alone = match reach {
        Reach::SystemSsh { program, .. } => {
            Reach::SystemSsh { program: program.clone(), given_keys_only: true }
        }
        Reach::Russh | Reach::Local { .. } => reach.clone(),
    };
    let next = [known.cluster.next_private_key_path()];
    let silent = known.fleet_by(&next, alone, context, instances).await?.silent().await;
    if silent.is_empty() {
        return Ok(());
    }
    let failure = Failure::failed("log in with the new key on every host").because(silent);
    Err(again(failure.now(UNHARMED), known))
}

fn all_did(attempted: &str, answers: Vec<Result<(), EffectError>>) -> Result<(), Failure> {
    let failed: Vec<String> =
        answers.into_iter().filter_map(|it| it.err().map(|error| error.to_string())).collect();
    if failed.is_empty() { Ok(()) } else { Err(Failure::failed(attempted).because(failed)) }
}

fn again(failure: Failure, known: &Known) -> Failure {
    failure.hint(format_args!("`dmup rotatessh {}` again goes on from here", known.name))
}
