//! Which build every node runs, and whether that is the build that is recorded.
//!
//! In: what one host says of one instance, what the node says of itself, and what is recorded of it. Out: a
//! [`BuildSeen`] with its [`Verdict`]. Silence is [`Verdict::Unknown`], never a pass. Nothing here asks anybody anything.

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::InstanceId;
use crate::instance::{Instance, Role};
use crate::inventory::{Inventory, Leftover, LeftoverKind, ProcessSeen, ReportedBuild, UnitActive};
use crate::journal::{Folded, TurnEnd};
use crate::plan::{self, Plan, Turn};
use crate::version::DmVersion;

/// What a run of ours left on an instance, by its journal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecordedBuild {
    /// Which build.
    pub build: Digest,
    /// Whether that was a hotfix.
    pub patched: bool,
}

/// What an instance had before its last hotfix or upgrade.
#[derive(Clone, Debug, PartialEq)]
pub struct Before<'a> {
    /// The build.
    pub recorded: RecordedBuild,
    /// Of the run that brought what it has now.
    pub plan: &'a Plan,
    /// Its turn in it.
    pub turn: &'a Turn,
}

/// The build that an instance ran before its last hotfix, and whether that was a hotfix too, by the journals of `runs`, the
/// newest first.
///
/// Only if what lies on the host is what they say: a tree that somebody else exchanged since is not ours to put
/// back. A host that says nothing (`on_disk` is none) is no reason to pass its node over.
pub fn build_before<'a>(
    runs: impl IntoIterator<Item = (&'a Plan, &'a Folded)>,
    instance: &InstanceId,
    on_disk: Option<&Digest>,
) -> Option<Before<'a>> {
    let mut runs = runs.into_iter().filter_map(|(plan, folded)| {
        // A restart or a reload exchanges nothing, and an upgrade perhaps only files.
        let is_upgrade = plan.kind == plan::Kind::Upgrade;
        let is_exchange = |turn: &&Turn| turn.from != turn.to || is_upgrade && turn.texts.is_some();
        let turn = plan.turns.iter().filter(is_exchange).find(|turn| turn.instance == *instance)?;
        let is_open = folded.open.iter().any(|open| open.instance == *instance);
        let end = folded.ended.get(instance).filter(|_| !is_open);
        let has_it = is_open || matches!(end, Some(TurnEnd::Changed | TurnEnd::Left));
        has_it.then_some((plan, turn, end == Some(&TurnEnd::Changed)))
    });
    let (plan, turn, _) = runs.next()?;
    // The newest word counts: after a rollback there is no further way back.
    if plan.kind == plan::Kind::Rollback || on_disk.is_some_and(|seen| *seen != turn.to) {
        return None;
    }
    // `meta.yaml` as it was then, also if the mark is TiUP's. A turn that did not come to its mark is known here alone.
    let was_marked = plan.instance(instance).is_some_and(|it| it.patched);
    let was_left = runs.next().is_some_and(|(_, before, is_marked)| {
        before.to == turn.from && !is_marked && before.patched
    });
    let recorded = RecordedBuild { build: turn.from.clone(), patched: was_marked || was_left };
    Some(Before { recorded, plan, turn })
}

/// All that is known of the build of one instance.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Which one, as `meta.yaml` has it.
    pub instance: &'a Instance,
    /// `dm_version`.
    pub version: &'a DmVersion,
    /// By the journals of runs; none if no run touched it, or somebody else has since.
    pub recorded: Option<&'a RecordedBuild>,
    /// What the node says of itself.
    pub said: Result<&'a ReportedBuild, &'a str>,
}

/// Whether a node runs what is recorded.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Process, disk, node and records agree.
    AsRecorded,
    /// Host or node did not say enough.
    Unknown,
    /// They do not agree.
    Drifted,
}

impl Verdict {
    /// One word, for a column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AsRecorded => "as-recorded",
            Self::Unknown => "unknown",
            Self::Drifted => "drifted",
        }
    }
}

/// Why a node is not called [`Verdict::AsRecorded`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Reason {
    /// Process and disk differ.
    #[error("it runs {running}, but {on_disk} lies on its disk: the next start brings that")]
    RunsOther {
        /// What runs.
        running: Digest,
        /// What lies there.
        on_disk: Digest,
    },
    /// Nothing would be started.
    #[error("no executable lies on its disk: it cannot be started again")]
    NothingOnDisk,
    /// Another build than our last run left there.
    #[error(
        "a run of dmup left {recorded} there, and now it is {found}: somebody else has replaced it"
    )]
    NotAsLeft {
        /// By the journal.
        recorded: Digest,
        /// What runs, or else lies there.
        found: Digest,
    },
    /// The mark does not go with the build.
    #[error("a run of dmup left {recorded} there, {}, and `meta.yaml` says otherwise", if *.patched { "a hotfix" } else { "which is no hotfix" })]
    MarkDiffers {
        /// Which build.
        recorded: Digest,
        /// What the run marked it as.
        patched: bool,
    },
    /// The node says another release than is recorded, and no hotfix is.
    #[error("it says that it is {says}; `meta.yaml` has {version} and no mark of a hotfix")]
    OtherRelease {
        /// In its own words.
        says: String,
        /// `dm_version`.
        version: DmVersion,
    },
    /// TiUP keeps the build before, which is another one, and marked nothing.
    #[error(
        "{saved} holds another build than `bin`, and `meta.yaml` has no mark of a hotfix: a `tiup dm patch` that did not end"
    )]
    PatchedUnmarked {
        /// `bin.old.<version>`.
        saved: Utf8PathBuf,
    },
    /// Nodes that should be the same are not.
    #[error(
        "it runs {running}, {others} other {role} run another build, and none of them is marked as a hotfix"
    )]
    OddOneOut {
        /// What runs.
        running: Digest,
        /// How many run something else.
        others: usize,
        /// Of this role.
        role: Role,
    },
    /// No agent answered.
    #[error("its host cannot be reached: {0}")]
    HostSilent(String),
    /// The host has answered and not said anything of it.
    #[error("its host says nothing of its process")]
    ProcessUnknown,
    /// Nothing runs.
    #[error("it does not run ({0})")]
    NotRunning(String),
    /// Its process does not answer.
    #[error("the node does not say what it is: {0}")]
    NodeSilent(String),
}

impl Reason {
    /// A short name that does not change, for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::RunsOther { .. } => "runs-other",
            Self::NothingOnDisk => "nothing-on-disk",
            Self::NotAsLeft { .. } => "not-as-left",
            Self::MarkDiffers { .. } => "mark-differs",
            Self::OtherRelease { .. } => "other-release",
            Self::PatchedUnmarked { .. } => "patched-unmarked",
            Self::OddOneOut { .. } => "odd-one-out",
            Self::HostSilent(_) => "host-silent",
            Self::ProcessUnknown => "process-unknown",
            Self::NotRunning(_) => "not-running",
            Self::NodeSilent(_) => "node-silent",
        }
    }

    fn verdict(&self) -> Verdict {
        match self {
            Self::RunsOther { .. }
            | Self::NothingOnDisk
            | Self::NotAsLeft { .. }
            | Self::MarkDiffers { .. }
            | Self::OtherRelease { .. }
            | Self::PatchedUnmarked { .. }
            | Self::OddOneOut { .. } => Verdict::Drifted,
            Self::HostSilent(_)
            | Self::ProcessUnknown
            | Self::NotRunning(_)
            | Self::NodeSilent(_) => Verdict::Unknown,
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let mut object = serializer.serialize_struct("Reason", 2)?;
        object.serialize_field("code", self.code())?;
        object.serialize_field("text", &self.to_string())?;
        object.end()
    }
}

/// What was found out about one instance, as JSON has it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct BuildSeen {
    /// Which one.
    pub id: InstanceId,
    /// Its role.
    pub role: Role,
    /// `patched` of `meta.yaml`.
    pub patched: bool,
    /// What a run of ours left there.
    pub recorded: Option<Digest>,
    /// SHA-256 of what its process executes.
    pub running: Option<Digest>,
    /// SHA-256 of what the next start would execute.
    pub on_disk: Option<Digest>,
    /// Whether the two are the same; none if one of them is not known.
    pub agree: Option<bool>,
    /// `Release Version` in its own words; none if it does not answer.
    pub release: Option<String>,
    /// Its commit, in its own words.
    pub commit: Option<String>,
    /// All in one word.
    pub verdict: Verdict,
    /// Why it is not as recorded; empty if it is.
    pub reasons: Vec<Reason>,
}

/// Judges all instances of a look.
pub fn judge(all: &[Known<'_>], inventory: &Inventory) -> Vec<BuildSeen> {
    let process = |known: &Known<'_>| inventory.processes.get(&known.instance.id);
    let running = |known: &Known<'_>| process(known).and_then(|it| it.running.as_ref());
    all.iter()
        .map(|known| {
            let instance = known.instance;
            let host = match inventory.hosts.get(&instance.host) {
                Some(Ok(seen)) => Ok(seen.leftovers.as_slice()),
                Some(Err(why)) => Err(why.as_str()),
                None => Err("it was not asked"),
            };
            let mut reasons = match host {
                Ok(leftovers) => of_host(known, process(known), leftovers),
                Err(why) => vec![Reason::HostSilent(why.to_owned())],
            };
            reasons.extend(of_siblings(known, running(known), all, running));
            reasons.extend(of_node(known, process(known)));
            let (running, on_disk) =
                process(known).map_or((None, None), |it| (it.running.clone(), it.on_disk.clone()));
            let say = |text: &String| Some(text.clone()).filter(|it| !it.is_empty());
            BuildSeen {
                id: instance.id.clone(),
                role: instance.role,
                patched: instance.patched,
                recorded: known
                    .recorded
                    .filter(|it| !is_superseded(it, known, process(known)))
                    .map(|it| it.build.clone()),
                agree: running.as_ref().zip(on_disk.as_ref()).map(|(runs, lies)| runs == lies),
                running,
                on_disk,
                release: known.said.ok().and_then(|it| say(&it.release)),
                commit: known.said.ok().and_then(|it| say(&it.commit)),
                verdict: reasons.iter().map(Reason::verdict).max().unwrap_or(Verdict::AsRecorded),
                reasons,
            }
        })
        .collect()
}

/// What process, disk and records say.
fn of_host(
    known: &Known<'_>,
    process: Option<&ProcessSeen>,
    leftovers: &[Leftover],
) -> Vec<Reason> {
    let Some(process) = process else { return vec![Reason::ProcessUnknown] };
    let mut reasons = Vec::new();
    match (&process.running, &process.on_disk) {
        (Some(running), Some(on_disk)) if running != on_disk => {
            reasons.push(Reason::RunsOther { running: running.clone(), on_disk: on_disk.clone() });
        }
        (_, None) => reasons.push(Reason::NothingOnDisk),
        (_, Some(_)) => {}
    }
    if process.running.is_none() {
        reasons.push(Reason::NotRunning(process.sub_state.clone()));
    }
    if let (Some(recorded), Some(found)) = (
        known.recorded.filter(|it| !is_superseded(it, known, Some(process))),
        process.running.as_ref().or(process.on_disk.as_ref()),
    ) {
        let marks_agree = recorded.patched == known.instance.patched;
        if recorded.build != *found && marks_agree {
            let (recorded, found) = (recorded.build.clone(), found.clone());
            reasons.push(Reason::NotAsLeft { recorded, found });
        } else if recorded.build == *found && !marks_agree {
            let (recorded, patched) = (recorded.build.clone(), recorded.patched);
            reasons.push(Reason::MarkDiffers { recorded, patched });
        }
    }
    reasons.extend(
        unmarked_patch(known.instance, known.version, process, leftovers)
            .map(|saved| Reason::PatchedUnmarked { saved }),
    );
    reasons
}

/// Whether TiUP has changed build and mark since: its mark is the newer word then.
fn is_superseded(
    recorded: &RecordedBuild,
    known: &Known<'_>,
    process: Option<&ProcessSeen>,
) -> bool {
    let found = process.and_then(|it| it.running.as_ref().or(it.on_disk.as_ref()));
    recorded.patched != known.instance.patched && found.is_some_and(|it| recorded.build != *it)
}

/// The tree that TiUP saved, if it tells of a patch that did not end: TiUP unpacks over `bin`, restarts, and marks last.
pub(crate) fn unmarked_patch(
    instance: &Instance,
    version: &DmVersion,
    process: &ProcessSeen,
    leftovers: &[Leftover],
) -> Option<Utf8PathBuf> {
    // `upgrade` names the tree by the version before, so this one is of a patch.
    let name = format!("bin.old.{version}");
    let saved = leftovers.iter().find(|it| {
        it.instance == instance.id
            && it.kind == LeftoverKind::TiupBackup
            && it.path.file_name() == Some(&name)
    })?;
    let (was, is) = (saved.build.as_ref()?, process.on_disk.as_ref()?);
    (was != is && !instance.patched).then(|| saved.path.clone())
}

/// Whether an instance whose disk has `build` came to it by a hotfix of which only the mark is missing: a run of ours left
/// it there as a hotfix, or TiUP keeps the other build that was there before.
///
/// `patch` marks what it puts in, as TiUP does. Where it finds the build in place it has put in nothing, and most often that is
/// the official one, there since the deploy: with a mark, `display` would call it a hotfix, and `upgrade` tell that it drops one.
pub fn lacks_its_mark(
    instance: &Instance,
    version: &DmVersion,
    build: &Digest,
    recorded: Option<&RecordedBuild>,
    inventory: &Inventory,
) -> bool {
    if instance.patched {
        return false;
    }
    let Some(process) = inventory.processes.get(&instance.id) else { return false };
    let Some(Ok(host)) = inventory.hosts.get(&instance.host) else { return false };
    process.on_disk.as_ref() == Some(build)
        && (recorded.is_some_and(|it| it.patched && it.build == *build)
            || unmarked_patch(instance, version, process, &host.leftovers).is_some())
}

/// Instances of DM that come from one official package run one build. Monitoring may have been laid out at another time,
/// with another newest version.
fn of_siblings<'a>(
    known: &Known<'_>,
    own: Option<&Digest>,
    all: &'a [Known<'a>],
    running: impl Fn(&Known<'a>) -> Option<&'a Digest>,
) -> Option<Reason> {
    let instance = known.instance;
    let own = own.filter(|_| instance.role.is_dm() && !instance.patched)?;
    let (mut same, mut others) = (0, 0);
    for other in all {
        let is_sibling = other.instance.role == instance.role
            && other.instance.arch == instance.arch
            && !other.instance.patched;
        match running(other).filter(|_| is_sibling) {
            Some(build) if build == own => same += 1,
            Some(_) => others += 1,
            None => {}
        }
    }
    // Half and half: nobody can say which half is right.
    (others >= same && others > 0).then(|| Reason::OddOneOut {
        running: own.clone(),
        others,
        role: instance.role,
    })
}

/// What the node itself says.
fn of_node(known: &Known<'_>, process: Option<&ProcessSeen>) -> Option<Reason> {
    let is_down = process.is_some_and(|it| match it.active {
        UnitActive::Inactive | UnitActive::Failed | UnitActive::Missing => true,
        UnitActive::Active | UnitActive::Activating | UnitActive::Deactivating => false,
    });
    match known.said {
        Err(_) if is_down => None, // that it does not run is said already
        Err(why) => Some(Reason::NodeSilent(why.to_owned())),
        Ok(said) => {
            let instance = known.instance;
            let is_other = instance.role.is_dm()
                && !instance.patched
                && known.version.numbers().is_some()
                && said.release != known.version.as_str();
            is_other.then(|| Reason::OtherRelease {
                says: said.release.clone(),
                version: known.version.clone(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::HostId;
    use crate::inventory::HostSeen;
    use crate::topology::Topology;

    struct Scene {
        instances: Vec<Instance>,
        said: Vec<Result<ReportedBuild, String>>,
        recorded: Vec<Option<RecordedBuild>>,
        inventory: Inventory,
    }

    fn digest(letter: char) -> Digest {
        Digest::new(letter.to_string().repeat(64)).unwrap()
    }

    /// One master and three workers that all run `a`, and say so.
    fn scene() -> Scene {
        let text = "master_servers:\n  - host: h1\nworker_servers:\n  - host: h1\n  - host: h2\n  - host: h3\n";
        let mut topology = Topology::parse(text).unwrap();
        topology.expand_dirs();
        let instances = topology.instances();
        let host = HostSeen {
            machine_id: String::new(),
            boot_id: String::new(),
            clock_skew_ms: 0,
            arch: "x86_64".into(),
            free_bytes: [].into(),
            leftovers: Vec::new(),
        };
        let process = ProcessSeen {
            active: UnitActive::Active,
            sub_state: "running".into(),
            enabled: true,
            pid: Some(1),
            restarts: 0,
            active_since_ms: None,
            running: Some(digest('a')),
            on_disk: Some(digest('a')),
        };
        let said = ReportedBuild { release: "v8.1.0".into(), commit: "c".into() };
        Scene {
            said: vec![Ok(said); instances.len()],
            recorded: vec![None; instances.len()],
            inventory: Inventory {
                at: jiff::Timestamp::UNIX_EPOCH,
                hosts: instances.iter().map(|it| (it.host.clone(), Ok(host.clone()))).collect(),
                processes: instances.iter().map(|it| (it.id.clone(), process.clone())).collect(),
                dm: Err("DM was not asked".into()),
            },
            instances,
        }
    }

    impl Scene {
        fn process(&mut self, number: usize) -> &mut ProcessSeen {
            self.inventory.processes.get_mut(&self.instances[number].id).unwrap()
        }

        fn builds(&self) -> Vec<BuildSeen> {
            let version = "v8.1.0".parse().unwrap();
            let known: Vec<Known<'_>> = self
                .instances
                .iter()
                .zip(&self.said)
                .zip(&self.recorded)
                .map(|((instance, said), recorded)| Known {
                    instance,
                    version: &version,
                    recorded: recorded.as_ref(),
                    said: said.as_ref().map_err(String::as_str),
                })
                .collect();
            judge(&known, &self.inventory)
        }

        /// Those that are not as recorded: `2 drifted runs-other`.
        fn odd(&self) -> Vec<String> {
            let builds = self.builds();
            let odd = builds.iter().enumerate().filter(|(_, it)| it.verdict != Verdict::AsRecorded);
            odd.map(|(number, it)| {
                let codes: Vec<&str> = it.reasons.iter().map(Reason::code).collect();
                format!("{number} {} {}", it.verdict.as_str(), codes.join(" "))
            })
            .collect()
        }
    }

    #[test]
    fn a_cluster_of_one_build_is_as_recorded() {
        let mut scene = scene();
        assert_eq!(scene.odd(), Vec::<String>::new());
        assert!(scene.builds().iter().all(|it| it.agree == Some(true) && it.reasons.is_empty()));
        // So is a hotfix that we put there and marked, whatever it calls itself.
        scene.instances[1].patched = true;
        scene.recorded[1] = Some(RecordedBuild { build: digest('b'), patched: true });
        scene.said[1] = Ok(ReportedBuild { release: "v8.1.0-fix".into(), commit: "d".into() });
        let process = scene.process(1);
        (process.running, process.on_disk) = (Some(digest('b')), Some(digest('b')));
        assert_eq!(scene.odd(), Vec::<String>::new());
    }

    #[test]
    fn a_binary_that_was_replaced_under_its_process_has_drifted() {
        let mut scene = scene();
        scene.process(2).on_disk = Some(digest('b'));
        assert_eq!(scene.odd(), ["2 drifted runs-other"]);
        assert_eq!(scene.builds()[2].agree, Some(false));
        insta::assert_snapshot!(scene.builds()[2].reasons[0], @"it runs aaaaaaaaaaaa, but bbbbbbbbbbbb lies on its disk: the next start brings that");
        scene.process(2).on_disk = None;
        assert_eq!(scene.odd(), ["2 drifted nothing-on-disk"]);
    }

    #[test]
    fn a_binary_that_was_replaced_and_started_is_found_by_records_release_and_siblings() {
        let mut scene = scene();
        let process = scene.process(2);
        (process.running, process.on_disk) = (Some(digest('b')), Some(digest('b')));
        assert_eq!(scene.odd(), ["2 drifted odd-one-out"]);
        scene.said[2] = Ok(ReportedBuild { release: "v8.1.0-fix".into(), commit: "d".into() });
        assert_eq!(scene.odd(), ["2 drifted odd-one-out other-release"]);
        scene.recorded[2] = Some(RecordedBuild { build: digest('a'), patched: false });
        assert_eq!(scene.odd(), ["2 drifted not-as-left odd-one-out other-release"]);
        // TiUP put it there and marked it: its mark is newer than our record.
        scene.instances[2].patched = true;
        assert_eq!(scene.odd(), Vec::<String>::new());
    }

    #[test]
    fn half_and_half_drifts_on_both_sides() {
        let mut scene = scene();
        scene.instances.remove(3);
        let process = scene.process(2);
        (process.running, process.on_disk) = (Some(digest('b')), Some(digest('b')));
        assert_eq!(scene.odd(), ["1 drifted odd-one-out", "2 drifted odd-one-out"]);
    }

    #[test]
    fn a_patch_of_tiup_that_marked_nothing_is_told_by_the_tree_that_it_saved() {
        let mut scene = scene();
        for number in 1..=3 {
            let process = scene.process(number);
            (process.running, process.on_disk) = (Some(digest('b')), Some(digest('b')));
        }
        assert_eq!(scene.odd(), Vec::<String>::new(), "nothing else tells it");
        let saved = |name: &str, build| Leftover {
            instance: scene.instances[1].id.clone(),
            kind: LeftoverKind::TiupBackup,
            path: format!("/d/{name}").into(),
            build: Some(digest(build)),
        };
        let (older, other) = (saved("bin.old.v7.5.0", 'c'), saved("bin.old.v8.1.0", 'a'));
        let same = saved("bin.old.v8.1.0", 'b');
        let h1 = HostId::new("h1").unwrap();
        let leave = |scene: &mut Scene, left: &Leftover| {
            let host = scene.inventory.hosts.get_mut(&h1).unwrap().as_mut().unwrap();
            host.leftovers = vec![left.clone()];
        };
        leave(&mut scene, &older);
        assert_eq!(scene.odd(), Vec::<String>::new(), "an upgrade leaves that");
        leave(&mut scene, &same);
        assert_eq!(scene.odd(), Vec::<String>::new());
        leave(&mut scene, &other);
        assert_eq!(scene.odd(), ["1 drifted patched-unmarked"]);
        scene.instances[1].patched = true;
        assert_eq!(scene.odd(), Vec::<String>::new(), "that is how a patch ends");
    }

    #[test]
    fn a_mark_is_missing_only_where_a_hotfix_was_put_in() {
        let mut scene = scene();
        let version = "v8.1.0".parse().unwrap();
        let left = |patched| RecordedBuild { build: digest('a'), patched };
        let lacks = |scene: &Scene, build, recorded: Option<RecordedBuild>| {
            let (one, build) = (&scene.instances[1], digest(build));
            lacks_its_mark(one, &version, &build, recorded.as_ref(), &scene.inventory)
        };
        assert!(!lacks(&scene, 'a', None), "since its deploy");
        assert!(!lacks(&scene, 'a', Some(left(false))), "an upgrade or a rollback left it");
        assert!(
            lacks(&scene, 'a', Some(left(true))),
            "a hotfix of ours; the mark went with a backup of meta.yaml"
        );
        assert!(!lacks(&scene, 'b', Some(left(true))), "it has another build");
        let saved = |build| Leftover {
            instance: scene.instances[1].id.clone(),
            kind: LeftoverKind::TiupBackup,
            path: "/d/bin.old.v8.1.0".into(),
            build: Some(digest(build)),
        };
        let (same, other) = (saved('a'), saved('0'));
        for (left, expected) in [(same, false), (other, true)] {
            let host = scene.inventory.hosts.get_mut(&scene.instances[1].host).unwrap();
            host.as_mut().unwrap().leftovers = vec![left];
            assert_eq!(lacks(&scene, 'a', None), expected);
        }
        scene.instances[1].patched = true;
        assert!(!lacks(&scene, 'a', None), "it has one");
    }

    #[test]
    fn a_mark_without_its_build_and_a_build_without_its_mark_are_told_apart() {
        let mut scene = scene();
        // `tiup dm upgrade` to the same version: both are gone.
        scene.recorded[1] = Some(RecordedBuild { build: digest('b'), patched: true });
        assert_eq!(scene.odd(), Vec::<String>::new());
        let process = scene.process(1);
        (process.running, process.on_disk) = (Some(digest('b')), Some(digest('b')));
        assert_eq!(scene.odd(), ["1 drifted mark-differs odd-one-out"]);
    }

    #[test]
    fn silence_is_never_called_fine() {
        let mut scene = scene();
        scene.said[0] = Err("connection refused".into());
        assert_eq!(scene.odd(), ["0 unknown node-silent"]);
        let host = scene.inventory.hosts.get_mut(&HostId::new("h2").unwrap()).unwrap();
        *host = Err("timed out".into());
        let id = scene.instances[2].id.clone();
        scene.inventory.processes.remove(&id);
        assert_eq!(scene.odd(), ["0 unknown node-silent", "2 unknown host-silent"]);
        let process = scene.process(3);
        (process.active, process.running) = (UnitActive::Inactive, None);
        process.sub_state = "dead".into();
        scene.said[3] = Err("connection refused".into());
        assert_eq!(scene.odd()[2], "3 unknown not-running");
        // What is known all the same counts for more.
        scene.recorded[3] = Some(RecordedBuild { build: digest('c'), patched: false });
        assert_eq!(scene.odd()[2], "3 drifted not-running not-as-left");
        let id = scene.instances[1].id.clone();
        scene.inventory.processes.remove(&id);
        assert_eq!(scene.odd()[1], "1 unknown process-unknown");
    }

    #[test]
    fn a_nightly_may_call_itself_anything_and_so_may_monitoring() {
        let mut scene = scene();
        scene.said[0] = Ok(ReportedBuild { release: "v9.0.0-alpha".into(), commit: String::new() });
        assert_eq!(scene.odd(), ["0 drifted other-release"]);
        let known = Known {
            instance: &scene.instances[0],
            version: &"nightly".parse().unwrap(),
            recorded: None,
            said: Ok(scene.said[0].as_ref().unwrap()),
        };
        assert_eq!(judge(&[known], &scene.inventory)[0].verdict, Verdict::AsRecorded);
        let mut prometheus = scene.instances[0].clone();
        prometheus.role = Role::Prometheus;
        let known = Known { instance: &prometheus, version: &"v8.1.0".parse().unwrap(), ..known };
        assert_eq!(judge(&[known], &scene.inventory)[0].verdict, Verdict::AsRecorded);
    }

    /// A run that put `to` in the place of `from` on the first instance of a cluster that was marked so.
    fn run(
        kind: plan::Kind,
        from: char,
        to: char,
        was_marked: bool,
        end: TurnEnd,
    ) -> (Plan, Folded) {
        let text = include_str!("../tests/fixtures/plan-format-1.json");
        let mut plan: Plan = serde_json::from_str(text).unwrap();
        let turn = &mut plan.turns[0];
        (turn.from, turn.to, turn.patched) = (digest(from), digest(to), kind == plan::Kind::Hotfix);
        let id = turn.instance.clone();
        for instance in plan.instances.iter_mut().filter(|it| it.id == id) {
            instance.patched = was_marked;
        }
        plan.kind = kind;
        let folded = Folded {
            state: crate::journal::RunState::Ready,
            plan: None,
            prepared: Vec::new(),
            ended: [(id, end)].into(),
            open: Vec::new(),
            failed: Vec::new(),
            unprepared: Vec::new(),
            paused: [].into(),
            evicted: [].into(),
            way_back: None,
            has_paused: false,
            away: [].into(),
        };
        (plan, folded)
    }

    /// The build before and whether it was a hotfix, by runs of which the newest is the last.
    fn before(runs: &[(Plan, Folded)]) -> Option<(Digest, bool)> {
        let (last, _) = runs.last().unwrap();
        let runs = runs.iter().rev().map(|(plan, folded)| (plan, folded));
        let turn = &last.turns[0];
        build_before(runs, &turn.instance, Some(&turn.to))
            .map(|it| (it.recorded.build, it.recorded.patched))
    }

    #[test]
    fn the_way_back_of_a_hotfix_over_a_hotfix_is_a_hotfix_whoever_put_it_there() {
        use plan::Kind::{Hotfix, Rollback};
        let changed = TurnEnd::Changed;
        let official = run(Hotfix, 'a', 'b', false, changed);
        assert_eq!(before(std::slice::from_ref(&official)), Some((digest('a'), false)));
        // A restart since says nothing of builds.
        let restart = run(plan::Kind::Restart, 'b', 'b', true, changed);
        assert_eq!(before(&[official.clone(), restart]), Some((digest('a'), false)));
        // TiUP's patch is in no journal of ours, only in `meta.yaml` (seen on hosts: the way back took its mark away).
        let over_tiup = run(Hotfix, 'b', 'c', true, changed);
        assert_eq!(before(&[over_tiup]), Some((digest('b'), true)));
        // A way back to a hotfix, and a hotfix over that.
        let back = run(Rollback, 'c', 'b', true, changed);
        let again = run(Hotfix, 'b', 'd', true, changed);
        assert_eq!(before(&[official.clone(), back.clone(), again]), Some((digest('b'), true)));
        assert_eq!(before(&[official, back]), None, "there is no further way back");
        // `--on-failure stop` left a hotfix without its mark.
        let left = run(Hotfix, 'a', 'b', false, TurnEnd::Left);
        let over_it = run(Hotfix, 'b', 'c', false, changed);
        assert_eq!(before(&[left, over_it]), Some((digest('b'), true)));
        // An upgrade goes through the same engine and takes the marks away at its end.
        let upgrade = run(Hotfix, 'a', 'e', true, changed);
        let on_top = run(Hotfix, 'e', 'f', false, changed);
        assert_eq!(before(&[upgrade, on_top]), Some((digest('e'), false)));
    }
}
