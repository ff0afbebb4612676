//! Which worker has which source.
//!
//! Rules: tiflow dm/master/scheduler/scheduler.go, without relay and load affinity. A worker whose lease is gone
//! loses its source; a source without a worker goes to a free worker that had it last, else to any free worker, DM
//! choosing at random among those.

use crate::etcd::{EtcdError, Write};
use crate::keys::{Snapshot, bound_key, bound_value, last_bound_key};
use crate::log;

use super::Master;

impl Master {
    /// Brings bindings in line with who is alive. Does nothing unless this master leads.
    pub(super) async fn schedule(&self) -> Result<(), EtcdError> {
        let _one_at_a_time = self.scheduling.lock().await;
        let snapshot = Snapshot::read(&self.etcd).await?;
        let writes = plan_bindings(&snapshot);
        if !writes.is_empty() {
            log::info!("change bindings: {writes:?}");
            self.write_as_leader(writes).await?;
        }
        Ok(())
    }

    /// Writes if this master still leads; `Ok(false)` if it does not.
    pub(super) async fn write_as_leader(&self, writes: Vec<Write>) -> Result<bool, EtcdError> {
        let key = self.view.borrow().own_key.clone();
        match key {
            Some(key) => self.etcd.write(Some(&key), writes).await,
            None => Ok(false),
        }
    }
}

/// Binds `source` to `worker`.
pub(super) fn bind(source: &str, worker: &str) -> [Write; 2] {
    let value = bound_value(source, worker);
    [Write::Put(bound_key(worker), value.clone()), Write::Put(last_bound_key(worker), value)]
}

fn plan_bindings(snapshot: &Snapshot) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut bound = snapshot.bound.clone();
    bound.retain(|worker, source| {
        let stays = snapshot.is_alive(worker) && snapshot.sources.contains_key(source);
        if !stays {
            writes.push(Write::Delete(bound_key(worker)));
        }
        stays
    });
    let mut free: Vec<&str> = snapshot
        .workers
        .keys()
        .map(String::as_str)
        .filter(|worker| snapshot.is_alive(worker) && !bound.contains_key(*worker))
        .collect();
    let taken = |source: &&String| bound.values().any(|bound| bound == *source);
    let mut unbound: Vec<&String> =
        snapshot.sources.keys().filter(|source| !taken(source)).collect();
    // Those that a free worker had last go first, so that nobody else takes that worker.
    let had_last = |source: &str, worker: &str| {
        snapshot.last_bound.get(worker).is_some_and(|last| last == source)
    };
    unbound.sort_by_key(|source| !free.iter().any(|worker| had_last(source, worker)));
    for source in unbound {
        if free.is_empty() {
            break;
        }
        let same = free.iter().position(|worker| had_last(source, worker));
        let any = usize::try_from(snapshot.revision.unsigned_abs()).unwrap_or(0) % free.len();
        let worker = free.remove(same.unwrap_or(any));
        writes.extend(bind(source, worker));
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Source;

    fn snapshot(
        alive: &[&str],
        bound: &[(&str, &str)],
        last: &[(&str, &str)],
        sources: &[&str],
    ) -> Snapshot {
        let pairs = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(worker, source)| ((*worker).to_owned(), (*source).to_owned()))
                .collect()
        };
        let source =
            |id: &&str| ((*id).to_owned(), Source { id: (*id).to_owned(), log: String::new() });
        Snapshot {
            workers: ["w1", "w2", "w3"].map(|name| (name.to_owned(), String::new())).into(),
            alive: alive.iter().map(|&name| name.to_owned()).collect(),
            bound: pairs(bound),
            last_bound: pairs(last),
            sources: sources.iter().map(source).collect(),
            ..Snapshot::default()
        }
    }

    fn bindings(snapshot: &Snapshot) -> Vec<(String, String)> {
        let mut bindings = Vec::new();
        for write in plan_bindings(snapshot) {
            match write {
                Write::Put(key, value) if key.starts_with("/dm-master/bound-worker/") => {
                    bindings.push((key, value));
                }
                Write::Delete(key) => bindings.push((key, "deleted".to_owned())),
                Write::Put(..) => {}
            }
        }
        bindings
    }

    #[test]
    fn a_source_of_a_dead_worker_goes_to_the_free_worker_that_had_it_last() {
        let snapshot =
            snapshot(&["w2", "w3"], &[("w1", "s1")], &[("w1", "s1"), ("w3", "s1")], &["s1"]);
        assert_eq!(
            bindings(&snapshot),
            [(bound_key("w1"), "deleted".to_owned()), (bound_key("w3"), bound_value("s1", "w3")),]
        );
    }

    #[test]
    fn a_worker_that_comes_back_gets_its_own_source_before_others_do() {
        let snapshot =
            snapshot(&["w1", "w2"], &[("w2", "s0")], &[("w1", "s2")], &["s0", "s1", "s2"]);
        assert_eq!(bindings(&snapshot), [(bound_key("w1"), bound_value("s2", "w1"))]);
    }

    #[test]
    fn nothing_changes_while_all_is_well() {
        assert!(plan_bindings(&snapshot(&["w1", "w2"], &[("w1", "s1")], &[], &["s1"])).is_empty());
        assert!(plan_bindings(&snapshot(&["w1"], &[("w1", "s1")], &[], &["s1", "s2"])).is_empty());
    }
}
