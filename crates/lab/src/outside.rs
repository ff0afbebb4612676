//! How a scene stands, seen from outside: which builds run, whether everything is in service, whether rows are whole, guards left.
//!
//! Nothing here asks `dmup`: processes and files are read on the hosts, stages from DM, rows from the witness.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Host;
use crate::scene::{Scene, TASK, USER_MODE_HOME};
use crate::waiting::wait_for;

/// Which builds the processes of a cluster run, compared with those from before.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Builds {
    /// All those that were meant run another build, one and the same; all others that from before.
    New,
    /// All run what they ran before.
    Old,
    /// Some this, some that; the text says which.
    Mixed(String),
    /// Some do not run.
    Down(String),
}

impl fmt::Display for Builds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("new"),
            Self::Old => f.write_str("old"),
            Self::Mixed(which) => write!(f, "mixed ({which})"),
            Self::Down(which) => write!(f, "down ({which})"),
        }
    }
}

/// Which processes are meant by a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Meant {
    /// All.
    All,
    /// The workers.
    Workers,
    /// The masters.
    Masters,
}

impl Meant {
    /// The flag of `patch` that selects them.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Self::All => &[],
            Self::Workers => &["-R", "dm-worker"],
            Self::Masters => &["-R", "dm-master"],
        }
    }

    fn has(self, place: &str) -> bool {
        match self {
            Self::All => true,
            Self::Workers => place.contains("dm-worker"),
            Self::Masters => place.contains("dm-master"),
        }
    }
}

/// Compares what runs (of [`Scene::running_hashes`]) with what ran before.
pub fn compare(before: &[(String, String)], now: &[(String, String)], meant: Meant) -> Builds {
    let all: Vec<Compared<'_>> = before
        .iter()
        .zip(now)
        .map(|((place, old), (_, new))| Compared {
            place: place.strip_suffix(".service").unwrap_or(place),
            new,
            is_changed: old != new,
        })
        .collect();
    let places = |wanted: fn(&Compared<'_>) -> bool| {
        let of: Vec<&str> = all.iter().filter(|it| wanted(it)).map(|it| it.place).collect();
        of.join(", ")
    };
    if all.iter().any(|it| it.new == "down") {
        return Builds::Down(places(|it| it.new == "down"));
    }
    let builds: BTreeSet<&str> = all.iter().filter(|it| it.is_changed).map(|it| it.new).collect();
    if builds.is_empty() {
        Builds::Old
    } else if builds.len() == 1 && all.iter().all(|it| it.is_changed == meant.has(it.place)) {
        Builds::New
    } else {
        Builds::Mixed(format!("new on {}", places(|it| it.is_changed)))
    }
}

/// One process.
struct Compared<'h> {
    place: &'h str,
    new: &'h str,
    is_changed: bool,
}

impl Scene {
    /// The host that an instance (`address:port`) or a member's name (with the address in it) belongs to.
    pub fn host_of(&self, name: &str) -> Option<&Host> {
        let hosts = self.hosts.hosts();
        hosts.iter().find(|host| {
            let address = host.address.to_string();
            name.match_indices(&address).any(|(at, _)| {
                !name[at + address.len()..].starts_with(|next: char| next.is_ascii_digit())
            })
        })
    }

    /// Builds, once no process is down, or as they are after `within`.
    pub fn builds(&self, before: &[(String, String)], meant: Meant, within: Duration) -> Builds {
        let mut last = Builds::Old;
        wait_for(within, || {
            last = compare(before, &self.running_hashes(), meant);
            (!matches!(last, Builds::Down(_))).then_some(())
        });
        last
    }

    /// Guards that would still act: `h2 198.18.0.12_3A8262.json`, and their timers.
    pub fn armed_guards(&self) -> Vec<String> {
        let mut all = Vec::new();
        for host in self.hosts.hosts() {
            let folders = match self.shape.user_mode {
                false => ["/var/lib/dmup/guards", "/etc/systemd/system"].map(str::to_owned),
                true => [".dmup/guards", ".config/systemd/user"]
                    .map(|folder| format!("{USER_MODE_HOME}/{folder}")),
            };
            for folder in &folders {
                // A folder that is not there has none.
                let listed = host.must_run(&["ls", folder]).unwrap_or_default();
                let of_guard = |file: &&str| {
                    file.ends_with(".json")
                        || file.starts_with("dmup-guard-") && file.ends_with(".timer")
                };
                all.extend(listed.lines().filter(of_guard).map(|it| format!("{} {it}", host.name)));
            }
        }
        all
    }

    /// What is not in service now: units, the leader, subtasks.
    pub fn out_of_service(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (number, host) in (1..).zip(self.hosts.hosts()) {
            let mut units = Vec::new();
            if number <= self.shape.masters {
                units.push("dm-master-8261.service");
            }
            if number <= self.shape.workers {
                units.push("dm-worker-8262.service");
            }
            let argv = self.systemctl(&[&["is-active"], &units[..]].concat());
            let said = host
                .run(&argv)
                .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
                .unwrap_or_default();
            let mut states = said.lines();
            for unit in units {
                let state = states.next().unwrap_or("unknown");
                if state != "active" {
                    all.push(format!("{} {unit} is {state}", host.name));
                }
            }
        }
        let dm = self.dm.clone().impatient();
        if dm.leader().is_none() {
            all.push("there is no leader".to_owned());
        }
        let stages = dm.stages(TASK);
        let sources = self.source_count();
        if stages.len() != sources {
            all.push(format!("{} of {sources} subtasks are known", stages.len()));
        }
        all.extend(
            stages
                .into_iter()
                .filter(|(_, stage)| stage != "Running")
                .map(|(source, stage)| format!("{source} is {stage}")),
        );
        all
    }

    /// Waits until everything is in service.
    ///
    /// # Errors
    ///
    /// What was not, after `within`.
    pub fn in_service(&self, within: Duration) -> Result<(), String> {
        let mut last = Vec::new();
        wait_for(within, || {
            last = self.out_of_service();
            last.is_empty().then_some(())
        })
        .ok_or_else(|| last.join("; "))
    }
}

/// Looks at a scene over and over and remembers for how long at a stretch something was out of service.
#[derive(Debug, Default)]
pub struct Watch {
    ended: AtomicBool,
}

impl Watch {
    /// Looks until [`Watch::end`]; returns the longest stretch.
    pub fn look(&self, scene: &Scene) -> Duration {
        let mut since: Option<Instant> = None;
        let mut longest = Duration::ZERO;
        while !self.ended.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let is_fine = scene.out_of_service().is_empty();
            match (is_fine, since) {
                (true, Some(from)) => {
                    longest = longest.max(from.elapsed());
                    since = None;
                }
                (true, None) => {}
                (false, _) => {
                    since.get_or_insert(begun);
                }
            }
            thread::sleep(Duration::from_millis(300));
        }
        since.map_or(longest, |from| longest.max(from.elapsed()))
    }

    /// No more looks.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(of: [&str; 3]) -> Vec<(String, String)> {
        ["h1 dm-master-8261.service", "h1 dm-worker-8262.service", "h2 dm-worker-8262.service"]
            .into_iter()
            .zip(of)
            .map(|(place, hash)| (place.to_owned(), hash.to_owned()))
            .collect()
    }

    #[test]
    fn builds_are_new_only_where_they_are_meant_to_be() {
        let old = hashes(["a", "a", "a"]);
        let compared = |now, meant| compare(&old, &hashes(now), meant).to_string();
        assert_eq!(compared(["a", "a", "a"], Meant::All), "old");
        assert_eq!(compared(["b", "b", "b"], Meant::All), "new");
        assert_eq!(compared(["a", "b", "b"], Meant::Workers), "new");
        assert_eq!(
            compared(["b", "b", "b"], Meant::Workers),
            "mixed (new on h1 dm-master-8261, h1 dm-worker-8262, h2 dm-worker-8262)"
        );
        assert_eq!(compared(["a", "b", "a"], Meant::Workers), "mixed (new on h1 dm-worker-8262)");
        assert!(compared(["a", "b", "c"], Meant::Workers).starts_with("mixed"));
        assert_eq!(compared(["a", "down", "b"], Meant::Workers), "down (h1 dm-worker-8262)");
    }
}
