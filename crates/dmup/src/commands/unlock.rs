//! `unlock`: who has a cluster (the lock here, the lease on every host), and taking it from them.
//!
//! Breaking a lease makes its token rise: the hosts refuse whatever its holder still wants to do, also when
//! it was only frozen and wakes up later.

use dmup_core::ids::HostId;
use dmup_exec::ports::EffectError;
use dmup_remote::HostAddress;
use dmup_wire::lease::LeaseSeen;
use futures::future::join_all;
use serde::Serialize;

use crate::args::{Format, UnlockArgs};
use crate::ask;
use crate::context::{Context, state_failure};
use crate::failure::Failure;

/// What `--format json` prints: how it was found, and what was done.
#[derive(Serialize)]
struct Seen {
    /// Of our own objects, docs/json.md.
    format: u32,
    cluster: String,
    /// What the dmup that has the local lock says of itself.
    local: Option<String>,
    hosts: Vec<HostLease>,
    /// The lock and all leases that somebody had are broken.
    broken: bool,
}

/// The lease on one host.
#[derive(Serialize)]
struct HostLease {
    host: HostId,
    /// Of the lease.
    lease: Option<LeaseSeen>,
    /// Why it is not known.
    error: Option<String>,
}

impl HostLease {
    fn is_held(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.holder.is_some())
    }

    fn words(&self) -> String {
        match (&self.lease, &self.error) {
            (Some(lease), _) => lease_words(lease),
            (None, why) => format!("not known: {}", why.as_deref().unwrap_or("no answer")),
        }
    }
}

pub(crate) async fn run(args: &UnlockArgs, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(&args.cluster)?;
    let all = known.meta.instances();
    let fleet = known.fleet(context, &all).await?;
    let hosts: Vec<HostId> =
        HostAddress::of_instances(&all).into_iter().map(|address| address.id).collect();
    let looks = join_all(hosts.iter().map(|host| fleet.look_at_lease(host, &known.name))).await;
    let local = known.cluster.lock_holder().map_err(state_failure)?;
    let mut seen = Seen {
        format: 1,
        cluster: known.name.to_string(),
        local,
        hosts: hosts.into_iter().zip(looks).map(|(host, look)| of_look(host, look)).collect(),
        broken: false,
    };
    for line in lines(&seen) {
        context.printer.talk(line);
    }
    let held: Vec<HostId> =
        seen.hosts.iter().filter(|it| it.is_held()).map(|it| it.host.clone()).collect();
    if seen.local.is_none() && held.is_empty() {
        print(&seen, context);
        context.printer.talk(format_args!("Nothing to unlock: nobody has {}", known.name));
        return Ok(());
    }
    if !context.global.yes {
        ask::confirm(&format!(
            "Will take {} from whoever has it. A dmup of theirs that still runs is refused from then on; what it \
             began stays as it is then.",
            known.name
        ))?;
    }
    let by = format!("{} (`unlock`)", context.who());
    let broken = join_all(held.iter().map(|host| fleet.break_lease(host, &known.name, &by))).await;
    let failed: Vec<String> =
        broken.into_iter().filter_map(|it| it.err().map(|error| error.to_string())).collect();
    if seen.local.is_some() {
        known.cluster.break_lock().map_err(state_failure)?;
    }
    if !failed.is_empty() {
        return Err(Failure::failed(format_args!("unlock {} on every host", known.name))
            .because(failed)
            .now("everywhere else it is unlocked")
            .hint(format_args!("`dmup unlock {}` again", known.name)));
    }
    seen.broken = true;
    print(&seen, context);
    context.printer.talk(format_args!("Unlocked {}", known.name));
    Ok(())
}

fn of_look(host: HostId, look: Result<LeaseSeen, EffectError>) -> HostLease {
    match look {
        Ok(lease) => HostLease { host, lease: Some(lease), error: None },
        Err(error) => HostLease { host, lease: None, error: Some(error.observed) },
    }
}

fn print(seen: &Seen, context: &Context) {
    if context.global.format == Format::Json {
        context.printer.data(serde_json::to_string_pretty(seen).expect("text and numbers"));
    }
}

fn lines(seen: &Seen) -> Vec<String> {
    let here = seen.local.as_deref().unwrap_or("nobody");
    let mut lines = vec![format!("  here: {here}")];
    lines.extend(seen.hosts.iter().map(|it| format!("  {}: {}", it.host, it.words())));
    lines
}

fn lease_words(lease: &LeaseSeen) -> String {
    let Some(holder) = &lease.holder else { return format!("nobody (lease {})", lease.token) };
    let since = jiff::Timestamp::from_millisecond(lease.since_ms)
        .map_or_else(|_| "?".to_owned(), |at| format!("{at:.0}"));
    let left_s = (lease.until_ms - lease.clock_ms) / 1000;
    let expiry = if left_s > 0 {
        format!("expires in {left_s} s unless renewed")
    } else {
        format!("expired {} s ago", -left_s)
    };
    format!("`{}` of {} since {since} (lease {}, {expiry})", holder.what, holder.who, lease.token)
}

#[cfg(test)]
mod tests {
    use dmup_wire::lease::Holder;

    use super::*;

    #[test]
    fn a_lease_is_told_with_who_what_since_when_and_how_long_still() {
        let mut lease = LeaseSeen {
            mine: false,
            token: 7,
            holder: Some(Holder {
                desk: "d".to_owned(),
                run: "r".to_owned(),
                who: "ada@desk".to_owned(),
                what: "patch".to_owned(),
            }),
            since_ms: 1_000,
            until_ms: 121_000,
            clock_ms: 21_000,
            broken_by: None,
        };
        assert_eq!(
            lease_words(&lease),
            "`patch` of ada@desk since 1970-01-01T00:00:01Z (lease 7, expires in 100 s unless renewed)"
        );
        lease.clock_ms = 131_000;
        assert!(lease_words(&lease).ends_with("(lease 7, expired 10 s ago)"));
        lease.holder = None;
        assert_eq!(lease_words(&lease), "nobody (lease 7)");
    }
}
