//! The command line: TiUP's commands and flags, and ours.
//!
//! Facts: tiup components/dm/command (1.16.5). Flags keep TiUP's names, short
//! forms and defaults, `--identity_file` with its underscore among them.

use std::collections::BTreeSet;
use std::ffi::OsString;

use camino::Utf8PathBuf;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use dmup_core::policy::BatchSize;

const EXAMPLES: &str = "\
Examples:
  dmup deploy prod v8.1.0 topology.yaml -u root -i ~/.ssh/id_ed25519
  dmup start prod
  dmup display prod
  dmup patch prod dm-worker-hotfix-linux-amd64.tar.gz -R dm-worker --plan
  dmup patch prod dm-worker-hotfix-linux-amd64.tar.gz -R dm-worker
  dmup rollback prod

Exit codes: 0 done, 1 failed (cluster as described), 2 usage, 3 refused (nothing touched),
5 rolled back, 6 mixed builds, 7 unknown (look), 130 interrupted (resumable).";

/// Manages DM clusters: deploys them, and replaces the binaries of a running one with a hotfix, online.
#[derive(Clone, Debug, Parser)]
#[command(name = "dmup", version, disable_version_flag = true, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// Print version
    #[arg(short = 'V', short_alias = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
}

impl Cli {
    /// Reads a command line, the program's name first.
    ///
    /// # Errors
    ///
    /// clap's, which are help as well as mistakes.
    pub fn of_words(words: &[OsString]) -> Result<Self, clap::Error> {
        Self::try_parse_from(plain_switches(words)).map_err(|error| with_a_tip(error, words))
    }
}

/// `--wait` may stand alone, so its value cannot be the next word: who writes it so gets a surplus word somewhere.
fn with_a_tip(mut error: clap::Error, words: &[OsString]) -> clap::Error {
    let seconds = words.windows(2).find_map(|pair| {
        let next = pair[1].to_str().filter(|next| next.parse::<u32>().is_ok())?;
        (pair[0] == "--wait").then_some(next)
    });
    if let (ErrorKind::UnknownArgument, Some(seconds)) = (error.kind(), seconds) {
        let tip = format!("the value of '--wait' comes after an equals sign: '--wait={seconds}'");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// TiUP's manual lets switches have a value, `--overwrite=true`: clap does not.
fn plain_switches(words: &[OsString]) -> Vec<OsString> {
    fn collect(command: &clap::Command, names: &mut BTreeSet<String>) {
        let switches =
            command.get_arguments().filter(|it| matches!(it.get_action(), ArgAction::SetTrue));
        names.extend(switches.filter_map(clap::Arg::get_long).map(ToOwned::to_owned));
        command.get_subcommands().for_each(|below| collect(below, names));
    }
    let mut names = BTreeSet::new();
    collect(&Cli::command(), &mut names);
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let mut plain = Vec::with_capacity(words.len());
    for (at, word) in words.iter().enumerate() {
        let switch = word
            .to_str()
            .filter(|_| at < end)
            .and_then(|text| text.strip_prefix("--")?.split_once('='))
            .filter(|(name, _)| names.contains(*name));
        // The words of Go's `strconv.ParseBool`.
        match switch {
            Some((name, "1" | "t" | "T" | "true" | "TRUE" | "True")) => {
                plain.push(format!("--{name}").into());
            }
            Some((_, "0" | "f" | "F" | "false" | "FALSE" | "False")) => {}
            _ => plain.push(word.clone()),
        }
    }
    plain
}

/// Flags of every command.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Skip all confirmations and assume 'yes'
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// How many hosts to work on at once
    #[arg(short, long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=256), value_name = "N")]
    pub concurrency: u16,
    /// Way to the hosts; the cluster's own `ssh_type` if not given
    #[arg(long, global = true, value_name = "KIND")]
    pub ssh: Option<SshKind>,
    /// Seconds to wait for a connection by SSH
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600), value_name = "SECONDS")]
    pub ssh_timeout: u64,
    /// Seconds to wait for an operation to complete
    #[arg(long, global = true, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86400), value_name = "SECONDS")]
    pub wait_timeout: u64,
    /// Form of the output
    #[arg(long, global = true, default_value = "default", value_name = "FORMAT")]
    pub format: Format,
    /// Same as `--ssh system` (TiUP's older word)
    #[arg(long, global = true, hide = true)]
    pub native_ssh: bool,
    /// A way through another host
    #[command(flatten)]
    pub proxy: ProxyArgs,
    /// Trust the key of a host that is met for the first time (a changed key is refused all the same)
    #[arg(long, global = true)]
    pub accept_new_host_keys: bool,
}

/// TiUP's flags for a way through another host, and its defaults.
#[derive(Args, Clone, Debug)]
pub struct ProxyArgs {
    /// Reach hosts and DM through this host (also --ssh-proxy-user, -port, -identity-file, -use-password, -timeout)
    #[arg(long, global = true, value_name = "HOST")]
    pub ssh_proxy_host: Option<String>,
    /// Who to log in there as; yourself if not given
    #[arg(long, global = true, hide = true, value_name = "USER")]
    pub ssh_proxy_user: Option<String>,
    /// Port of its sshd
    #[arg(long, global = true, hide = true, default_value_t = 22, value_parser = clap::value_parser!(u16).range(1..), value_name = "PORT")]
    pub ssh_proxy_port: u16,
    /// Private key to log in there with; ~/.ssh/id_rsa if not given
    #[arg(long, global = true, hide = true, value_name = "FILE")]
    pub ssh_proxy_identity_file: Option<Utf8PathBuf>,
    /// Ask for the password to log in there with
    #[arg(long, global = true, hide = true)]
    pub ssh_proxy_use_password: bool,
    /// Seconds to wait for a connection to it
    #[arg(long, global = true, hide = true, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600), value_name = "SECONDS")]
    pub ssh_proxy_timeout: u64,
}

/// Ways to reach hosts, TiUP's words.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum SshKind {
    /// dmup's own SSH
    Builtin,
    /// The system's `ssh`, with everything of your ssh_config
    System,
    /// No SSH: the hosts are this machine
    None,
}

/// Forms of the output.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Format {
    /// Tables and sentences
    #[value(alias = "plain", alias = "text")]
    Default,
    /// JSON
    Json,
}

/// Which instances are meant.
#[derive(Args, Clone, Debug, Default)]
pub struct Selection {
    /// Only these nodes: first column of `display`, comma separated or repeated
    #[arg(short = 'N', long = "node", value_delimiter = ',', value_name = "HOST:PORT")]
    pub nodes: Vec<String>,
    /// Only these roles: second column of `display`, comma separated or repeated
    #[arg(short = 'R', long = "role", value_delimiter = ',', value_name = "ROLE")]
    pub roles: Vec<String>,
}

/// What dmup can do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Deploy a DM cluster
    Deploy(DeployArgs),
    /// Add instances to a DM cluster
    ScaleOut(ScaleOutArgs),
    /// Take instances off a DM cluster, data included
    ScaleIn(ScaleInArgs),
    /// Take members off DM's list that are not part of the cluster any more
    Prune(PruneArgs),
    /// Start a DM cluster
    #[command(after_help = "Examples:\n  dmup start prod\n  dmup start prod -R dm-worker")]
    Start(SelectedArgs),
    /// Stop a DM cluster
    #[command(after_help = "Examples:\n  dmup stop prod\n  dmup stop prod -N 10.0.1.11:8262")]
    Stop(SelectedArgs),
    /// Restart a DM cluster, node by node, while it serves
    Restart(RestartArgs),
    /// Bring units, run scripts and configurations to what the topology says, node by node
    Reload(ReloadArgs),
    /// Enable a DM cluster at boot
    #[command(after_help = "Examples:\n  dmup enable prod")]
    Enable(SelectedArgs),
    /// Disable a DM cluster at boot
    #[command(after_help = "Examples:\n  dmup disable prod -N 10.0.1.14:9090")]
    Disable(SelectedArgs),
    /// List all clusters
    #[command(after_help = "Examples:\n  dmup list\n  dmup list --format json")]
    List,
    /// Change the settings of a DM cluster
    EditConfig(EditConfigArgs),
    /// Destroy a DM cluster
    Destroy(DestroyArgs),
    /// Show what was done with dmup and tiup dm
    Audit(AuditArgs),
    /// Display a DM cluster
    Display(DisplayArgs),
    /// Show which build every node really runs, and whether that is what is recorded
    Versions(VersionsArgs),
    /// Replace the binaries of a running cluster with those of a package, online
    Patch(PatchArgs),
    /// Bring the cluster to another version of DM, node by node, while it serves
    Upgrade(UpgradeArgs),
    /// Run a command of your own on the hosts of a DM cluster
    Exec(ExecArgs),
    /// Give a recorded command once more
    Replay(ReplayArgs),
    /// Go on with a run that was interrupted
    Resume(ResumeArgs),
    /// Take a hotfix back: every patched node to the build that it ran before
    Rollback(RollbackArgs),
    /// Show who has a cluster, and take it from them
    Unlock(UnlockArgs),
    /// List the runs of a cluster, or show one
    Runs(RunsArgs),
    /// Make hotfix packages, and look into them
    Package(PackageArgs),
    /// Print a topology to begin with
    Template(TemplateArgs),
    /// Keep what this machine knows of a cluster in a file, or bring it back
    Meta(MetaArgs),
    /// Change the key that opens the hosts of a DM cluster
    Rotatessh(RotatesshArgs),
    /// Print a completion script for a shell
    #[command(
        after_help = "Examples:\n  dmup completion bash > /etc/bash_completion.d/dmup\n  source <(dmup completion bash)"
    )]
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Serve a controller over standard input and output; started by dmup itself on hosts
    #[command(hide = true)]
    Agent(AgentArgs),
}

/// Arguments of `unlock`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dmup unlock prod          shows the lock here and the lease on every host, and asks
  dmup unlock prod --yes

For a dmup that hangs, or a control machine that is gone. Whatever that dmup still wants to do is refused by the
hosts from then on. A lease that nobody renews expires by itself after two minutes.")]
pub struct UnlockArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
}

/// Arguments of `deploy`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  dmup deploy prod v8.1.0 topology.yaml -u root -i ~/.ssh/id_ed25519\n  dmup deploy prod v8.1.0 topology.yaml -u admin -p"
)]
pub struct DeployArgs {
    /// How to call the cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// Version of DM, e.g. v8.1.0
    pub version: String,
    /// The topology file
    #[arg(value_name = "TOPOLOGY.YAML")]
    pub topology: Utf8PathBuf,
    /// How to log in
    #[command(flatten)]
    pub login: LoginArgs,
}

/// Arguments of `scale-out`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dmup scale-out prod new-workers.yaml -u root -i ~/.ssh/id_ed25519
  dmup scale-out prod new-workers.yaml        all of it on hosts that the cluster has already

The file has the new servers only, in the form of `deploy`:
  worker_servers:
    - host: 10.0.1.14")]
pub struct ScaleOutArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// The topology file with the new servers
    #[arg(value_name = "TOPOLOGY.YAML")]
    pub topology: Utf8PathBuf,
    /// How to log in on hosts that are new to the cluster
    #[command(flatten)]
    pub login: LoginArgs,
}

/// Arguments of `scale-in`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  dmup scale-in prod -N 10.0.1.14:8262\n  dmup scale-in prod -N 10.0.1.14:8262 --force    its host is gone for good"
)]
pub struct ScaleInArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// These nodes: first column of `display`, comma separated or repeated
    #[arg(
        short = 'N',
        long = "node",
        value_delimiter = ',',
        value_name = "HOST:PORT",
        required = true
    )]
    pub nodes: Vec<String>,
    /// Go on when hosts or DM do not answer, or a source has nowhere to go
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `prune`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  dmup prune prod        after a scale-in with --force")]
pub struct PruneArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
}

/// How to log in on hosts that do not know the cluster's own key yet.
#[derive(Args, Clone, Debug)]
pub struct LoginArgs {
    /// Who to log in as (root, or somebody who may use sudo); you if not given
    #[arg(short, long)]
    pub user: Option<String>,
    /// Private key to log in with; ~/.ssh/id_rsa if not given
    #[arg(short, long = "identity_file", alias = "identity-file", value_name = "FILE")]
    pub identity_file: Option<Utf8PathBuf>,
    /// Log in with a password; it is asked for
    #[arg(short, long)]
    pub password: bool,
}

/// Arguments of commands that act on a selection.
#[derive(Args, Clone, Debug)]
pub struct SelectedArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// Which instances of it
    #[command(flatten)]
    pub selection: Selection,
}

/// Arguments of `edit-config`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dmup edit-config prod                                opens $EDITOR, or vi on a terminal
  dmup edit-config prod --topology-file edited.yaml --yes

Names, addresses, ports and dirs stay as they were deployed. Hosts are not touched.")]
pub struct EditConfigArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// Take the edited topology from this file instead of an editor
    #[arg(long, value_name = "FILE")]
    pub topology_file: Option<Utf8PathBuf>,
}

/// Arguments of `destroy`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  dmup destroy prod\n  dmup destroy prod --retain-role-data prometheus\n  dmup destroy prod --force    some hosts are gone for good"
)]
pub struct DestroyArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// Go on when hosts cannot be reached
    #[arg(long)]
    pub force: bool,
    /// Keep the data of this node or host; repeatable
    #[arg(long, value_name = "NODE")]
    pub retain_node_data: Vec<String>,
    /// Keep the data of this role; repeatable
    #[arg(long, value_name = "ROLE")]
    pub retain_role_data: Vec<String>,
}

/// Arguments of `audit`.
#[derive(Args, Clone, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  dmup audit\n  dmup audit h49wkF5WXHb\n  dmup audit cleanup --retain-days 30"
)]
pub struct AuditArgs {
    /// Show this one; list all if not given
    #[arg(value_name = "AUDIT-ID")]
    pub id: Option<String>,
    /// Or do something with all of them
    #[command(subcommand)]
    pub command: Option<AuditCommand>,
}

/// What can be done with the log of commands.
#[derive(Clone, Debug, Subcommand)]
pub enum AuditCommand {
    /// Remove old entries
    #[command(after_help = "Examples:\n  dmup audit cleanup --retain-days 30")]
    Cleanup {
        /// Keep those of this many days
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(0..=36500), value_name = "DAYS")]
        retain_days: u32,
    },
}

/// Arguments of `display`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  dmup display prod\n  dmup display prod -R dm-worker --uptime\n  dmup display prod --verify\n  dmup display prod --format json"
)]
pub struct DisplayArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// Which instances of it
    #[command(flatten)]
    pub selection: Selection,
    /// Only print the version of the cluster
    #[arg(long = "version")]
    pub only_version: bool,
    /// Since when each instance runs
    #[arg(long)]
    pub uptime: bool,
    /// Read from every host which build its processes really run: two more columns, and an end with 6 or 7 if one
    /// has another build than is recorded, or does not say
    #[arg(long)]
    pub verify: bool,
    /// Seconds to wait for the status of an instance
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600), value_name = "SECONDS")]
    pub status_timeout: u64,
}

/// Arguments of `versions`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dmup versions prod
  dmup versions prod -R dm-worker --format json

Of every node: the hash of the executable that its process runs and of the one on its disk, what the node says of
itself, and what is recorded (`meta.yaml`, and the last run of dmup). Verdicts: as-recorded; drifted: they do not agree;
unknown: its host or it does not say. Ends with 0 if all are as recorded, with 6 if one has drifted, else with 7.")]
pub struct VersionsArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// Which instances of it
    #[command(flatten)]
    pub selection: Selection,
}

/// Arguments of `patch`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dmup patch prod dm-worker-hotfix-linux-amd64.tar.gz -R dm-worker
  dmup patch prod dm-hotfix.tar.gz                        every instance that the package has a binary for
  dmup patch prod dm-master-hotfix.tar.gz -N 10.0.1.1:8261 --plan
  dmup patch prod dm-hotfix.tar.gz --overwrite --soak 30
  dmup patch prod dm-hotfix.tar.gz --quiet-timeout 600    for large transactions
  dmup patch prod dm-hotfix.tar.gz --batch 1,50% --batch-soak 300
  dmup patch prod dm-hotfix.tar.gz --pause-after 1        one node first; `dmup resume prod` for the rest
  dmup patch prod dm-hotfix.tar.gz --wait=3600 --defer    tasks in their full load are waited for, then left out

Neither -N nor -R: all instances of the components in the package. Both: their intersection.")]
pub struct PatchArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// The package: tar.gz, tar.zst, tar or a bare binary
    #[arg(value_name = "PACKAGE")]
    pub package: Utf8PathBuf,
    /// Which instances of the cluster
    #[command(flatten)]
    pub selection: Selection,
    /// Use this package for instances that are added later, too
    #[arg(long)]
    pub overwrite: bool,
    /// The cluster is stopped: replace files only, restart nothing
    #[arg(long)]
    pub offline: bool,
    /// Print what would be done, and end
    #[arg(long)]
    pub plan: bool,
    /// Carry out this plan, printed earlier with `--plan --format json`; refused if the cluster has changed since
    #[arg(long, value_name = "FILE", conflicts_with = "plan")]
    pub apply_plan: Option<Utf8PathBuf>,
    /// How
    #[command(flatten)]
    pub rollout: Rollout,
}

/// How new builds are brought to nodes that serve.
#[derive(Args, Clone, Debug)]
pub struct Rollout {
    /// How nodes have their turns
    #[command(flatten)]
    pub rolling: Rolling,
    /// What to do when a node is not healthy on the new build
    #[arg(long, default_value = "rollback-node", value_name = "POLICY")]
    pub on_failure: OnFailureArg,
    /// Seconds in which the host goes back by itself when dmup is gone; while a node is being stopped and started they do
    /// not run
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(10..=86400), value_name = "SECONDS")]
    pub guard: u32,
    /// Also put a build in that failed before; --force does that, too
    #[arg(long)]
    pub force_build: bool,
}

/// How nodes that serve have their turns, one after the other.
#[derive(Args, Clone, Debug)]
pub struct Rolling {
    /// Seconds that a node must stay healthy before the next one's turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=86400), value_name = "SECONDS")]
    pub soak: u32,
    /// Seconds to wait before a worker's turn until its tasks have caught up
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=86400), value_name = "SECONDS")]
    pub quiet_timeout: u32,
    /// What to do when they have not: `go-on` stops the worker all the same, and what it was in the middle of is applied
    /// again; `stop` leaves it as it is and ends the run there
    #[arg(long, default_value = "go-on", value_name = "POLICY")]
    pub on_busy: OnBusyArg,
    /// Sizes of the first batches of nodes, e.g. `1,10%,50%`; the last batch is the rest. Nodes are stopped one after the
    /// other in any case. Workers of a batch are watched together (from v6.5.0): the next one's turn begins once the one
    /// before it is healthy. Between two batches the cluster is watched for --batch-soak
    #[arg(long, value_delimiter = ',', value_name = "SIZES")]
    pub batch: Vec<BatchSize>,
    /// Seconds that the last node of a batch must stay healthy before the next batch
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=86400), value_name = "SECONDS")]
    pub batch_soak: u32,
    /// Stop after so many nodes, for a look at them; `dmup resume` goes on
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10000), value_name = "NODES")]
    pub pause_after: Option<u32>,
    /// Wait so long, before anything is touched, for what goes away by itself: tasks that dump, load or are behind, DDLs
    /// that wait for a lock, a leader being elected, a node that comes up (600 if no number is given)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "600", value_parser = clap::value_parser!(u32).range(1..=604_800), value_name = "SECONDS")]
    pub wait: Option<u32>,
    /// Leave workers out that dump or load, instead of refusing; run the same command again for them later
    #[arg(long)]
    pub defer: bool,
    /// Refuse when a task is more than so many seconds behind its source
    #[arg(long, value_name = "SECONDS")]
    pub max_lag: Option<u32>,
    /// Also instances that are down, or crash again and again
    #[arg(long)]
    pub include_down: bool,
    /// Also instances that run something else than lies on their disk: what lies there is the build before
    #[arg(long)]
    pub adopt: bool,
    /// Go on although: subtasks have errors, dump, load or are behind; a source is bound to nobody; DDLs wait for a lock;
    /// another node is down; a clock is off; a guard is armed; with --offline, a node runs. Does what --adopt does, too.
    /// Quorum, an agreed leader, room on disks and reachable hosts are never given up
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `restart`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dmup restart prod                         node by node, while the cluster serves
  dmup restart prod -R dm-worker --plan
  dmup restart prod --fast --yes            all at once: sources stand still meanwhile
  dmup restart prod -R prometheus,grafana

With the order, the checks and the journal of `patch`: masters that follow, the leader, free workers, bound workers,
monitoring, and the exporters of hosts of which everything is restarted. A node that does not come back ends the run; of
monitoring and exporters that is told in the end. `dmup resume` goes on with a run that was interrupted.")]
pub struct RestartArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// Which instances of it
    #[command(flatten)]
    pub selection: Selection,
    /// Stop all that is selected, then start it, whatever state it is in; the flags below have no meaning then
    #[arg(long, conflicts_with = "plan")]
    pub fast: bool,
    /// Print what would be done, and end
    #[arg(long)]
    pub plan: bool,
    /// How
    #[command(flatten)]
    pub rolling: Rolling,
}

/// Arguments of `reload`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dmup reload prod                          after `edit-config`
  dmup reload prod --plan                   which files differ, and what would be done
  dmup reload prod --skip-restart           files only; they count from the next start on
  dmup reload prod -N 10.0.1.11:8262

Units, run scripts and configurations as the topology has them, and a restart, node by node, as `restart` does it; last come
the exporters of all hosts of these nodes. A node that is not healthy with them gets its files from before.
A configuration that promtool or amtool of its package refuses is written nowhere.")]
pub struct ReloadArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// Which instances of it
    #[command(flatten)]
    pub selection: Selection,
    /// Write the files and restart nothing
    #[arg(long, conflicts_with = "plan")]
    pub skip_restart: bool,
    /// Print what would be done, and end
    #[arg(long)]
    pub plan: bool,
    /// What to do when a node is not healthy with its new files
    #[arg(long, default_value = "rollback-node", value_name = "POLICY")]
    pub on_failure: OnFailureArg,
    /// How
    #[command(flatten)]
    pub rolling: Rolling,
}

/// What to do when a worker's tasks do not catch up.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum OnBusyArg {
    /// Stop it all the same
    GoOn,
    /// Leave it as it is, stop there
    Stop,
}

/// What to do when a node is not healthy on the new build.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum OnFailureArg {
    /// Put that node back, stop there
    RollbackNode,
    /// Put all nodes of this run back
    RollbackAll,
    /// Leave that node as it is, stop there
    Stop,
}

/// Arguments of `upgrade`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dmup upgrade prod v8.1.0
  dmup upgrade prod v8.1.0 --plan
  dmup upgrade prod v8.1.0 --batch 1,50% --batch-soak 300

The official packages of that version replace the binaries of dm-master, then of dm-worker, in one run as `patch` does;
units, run scripts and configurations go with them. Hotfixes are dropped. Prometheus, Grafana, Alertmanager and the
exporters come last, each where its package brings another executable than lies there, or a file differs (alert rules and
dashboards are DM's). What is in their way is told, and DM does not wait for them: one that does not start is put back,
and the command ends with 6. The version is recorded once every node of DM has it. `resume`, or the same command again,
goes on; `rollback` takes all of it back.")]
pub struct UpgradeArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// To which version: v8.1.0
    #[arg(value_name = "VERSION")]
    pub version: String,
    /// The cluster is stopped: replace files only, restart nothing
    #[arg(long)]
    pub offline: bool,
    /// Print what would be done, and end
    #[arg(long)]
    pub plan: bool,
    /// Also to an older version than the recorded one; DM itself does not promise to read the data of a newer one
    #[arg(long)]
    pub ignore_version_check: bool,
    /// How
    #[command(flatten)]
    pub rollout: Rollout,
}

/// Arguments of `exec`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dmup exec prod --command 'df -h /home'
  dmup exec prod -R dm-worker --sudo --command 'journalctl -u dm-worker-8262 -n 20'
  dmup exec prod -N 10.0.1.11,10.0.1.12:8262 --command 'uptime'

A host's shell gets the command as it is typed, once per host, in the home of the cluster's user.
It is ended there after --wait-timeout, and not by Ctrl-C here.")]
pub struct ExecArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// What the shell of each host is given
    #[arg(long, default_value = "ls", value_name = "COMMAND")]
    pub command: String,
    /// Run it as root
    #[arg(long)]
    pub sudo: bool,
    /// Only on these hosts, or the hosts of these nodes, comma separated or repeated
    #[arg(short = 'N', long = "node", value_delimiter = ',', value_name = "HOST[:PORT]")]
    pub nodes: Vec<String>,
    /// Only on hosts of these roles, comma separated or repeated
    #[arg(short = 'R', long = "role", value_delimiter = ',', value_name = "ROLE")]
    pub roles: Vec<String>,
}

/// Arguments of `replay`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dmup replay h49wkF5WXHb
  dmup replay h49wkF5WXHb --yes

It is given with its own flags, in this folder; of the flags given here --yes and --accept-new-host-keys count as well.
What is done already is seen on the hosts and left alone. An interrupted hotfix goes on with `dmup resume`.")]
pub struct ReplayArgs {
    /// Which command: first column of `audit`
    #[arg(value_name = "AUDIT-ID")]
    pub id: String,
}

/// Arguments of `resume`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  dmup resume prod\n  dmup resume prod --run 20260411T031500123Z"
)]
pub struct ResumeArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// Which run; the last one that did not end, if not given
    #[arg(long, value_name = "ID")]
    pub run: Option<String>,
}

/// Arguments of `rollback`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dmup rollback prod --plan
  dmup rollback prod
  dmup rollback prod -N 10.0.1.11:8262")]
pub struct RollbackArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// Which instances of it
    #[command(flatten)]
    pub selection: Selection,
    /// Print what would be done, and end
    #[arg(long)]
    pub plan: bool,
    /// Seconds that a node must stay healthy before the next one's turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=86400), value_name = "SECONDS")]
    pub soak: u32,
}

/// Arguments of `runs`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  dmup runs prod\n  dmup runs prod 20260411T031500123Z --format json\n  dmup runs show 20260411T031500123Z"
)]
pub struct RunsArgs {
    /// Which cluster; `show`: the one that has this run
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// Show this run
    #[arg(value_name = "ID")]
    pub run: Option<String>,
}

/// Arguments of `package`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  dmup package make dm-worker --base v8.1.0 --replace dm-worker/dm-worker=./dm-worker -o fix.tar.gz\n  dmup package show dm-hotfix.tar.gz"
)]
pub struct PackageArgs {
    /// What to do with packages
    #[command(subcommand)]
    pub command: PackageCommand,
}

/// What can be done with packages.
#[derive(Clone, Debug, Subcommand)]
pub enum PackageCommand {
    /// Show which components, builds and architectures a package has
    #[command(after_help = "Examples:\n  dmup package show dm-hotfix.tar.gz --format json")]
    Show {
        /// The package
        #[arg(value_name = "PACKAGE")]
        package: Utf8PathBuf,
    },
    /// Make a hotfix package: the official one with some of its files replaced
    Make(PackageMakeArgs),
}

/// Arguments of `package make`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The same input makes the same bytes. Beside the package lies a manifest (PACKAGE.json): what it is
made of, hashes, what the executable says of itself, who made it and when.

Examples:
  dmup package make dm-worker --base v8.1.0 --replace dm-worker/dm-worker=./dm-worker -o fix.tar.gz
  dmup package make dm-master --base ./old.tar.gz --replace dm-master/dm-master=new -o fix.tar.gz")]
pub struct PackageMakeArgs {
    /// The component, e.g. dm-worker
    #[arg(value_name = "COMPONENT")]
    pub component: String,
    /// What it is made of: a version, from the packages at hand or the mirror, or a package file
    #[arg(long, value_name = "VERSION|PACKAGE")]
    pub base: String,
    /// Put FILE in the place of PATH in the package; may be repeated
    #[arg(long, value_name = "PATH=FILE", required = true)]
    pub replace: Vec<String>,
    /// Where to write it; what exists is never written over
    #[arg(short, long, value_name = "PACKAGE")]
    pub output: Utf8PathBuf,
    /// Architecture of the base: amd64 or arm64. Default for a version: this machine's
    #[arg(long, value_name = "ARCH", value_parser = ["amd64", "arm64"])]
    pub arch: Option<String>,
}

/// Arguments of `template`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dmup template > topology.yaml
  dmup template --full
  dmup template --local --user dm --master-servers m1,m2,m3 --worker-servers w1,w2,w3")]
pub struct TemplateArgs {
    /// Everything that can be said, with comments
    #[arg(long)]
    pub full: bool,
    /// A topology of the servers that the flags below name
    #[arg(long)]
    pub local: bool,
    /// User that runs the cluster
    #[arg(long, default_value = "tidb", help_heading = "Options of --local")]
    pub user: String,
    /// Group of that user
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        help_heading = "Options of --local"
    )]
    pub group: String,
    /// Whose systemd runs it: `system` or `user`
    #[arg(
        long = "systemd_mode",
        alias = "systemd-mode",
        default_value = "system",
        value_name = "MODE",
        help_heading = "Options of --local"
    )]
    pub systemd_mode: String,
    /// Port of sshd on the hosts
    #[arg(long, default_value_t = 22, value_name = "PORT", help_heading = "Options of --local")]
    pub ssh_port: u16,
    /// Folder of programs and configurations
    #[arg(
        long,
        default_value = "/tidb-deploy",
        value_name = "DIR",
        help_heading = "Options of --local"
    )]
    pub deploy_dir: String,
    /// Folder of data
    #[arg(
        long,
        default_value = "/tidb-data",
        value_name = "DIR",
        help_heading = "Options of --local"
    )]
    pub data_dir: String,
    /// Kind of machine: `amd64` or `arm64`
    #[arg(long, default_value = "amd64", value_parser = ["amd64", "arm64"], help_heading = "Options of --local")]
    pub arch: String,
    /// Hosts of dm-master, at least three
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "172.19.0.101,172.19.0.102,172.19.0.103",
        value_name = "HOSTS",
        help_heading = "Options of --local"
    )]
    pub master_servers: Vec<String>,
    /// Hosts of dm-worker, at least three
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "172.19.0.101,172.19.0.102,172.19.0.103",
        value_name = "HOSTS",
        help_heading = "Options of --local"
    )]
    pub worker_servers: Vec<String>,
    /// Hosts of Prometheus
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "172.19.0.101",
        value_name = "HOSTS",
        help_heading = "Options of --local"
    )]
    pub monitoring_servers: Vec<String>,
    /// Hosts of Grafana
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "172.19.0.101",
        value_name = "HOSTS",
        help_heading = "Options of --local"
    )]
    pub grafana_servers: Vec<String>,
    /// Hosts of Alertmanager
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "172.19.0.101",
        value_name = "HOSTS",
        help_heading = "Options of --local"
    )]
    pub alertmanager_servers: Vec<String>,
}

/// Arguments of `meta`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  dmup meta backup prod --file prod.tar.gz\n  dmup meta restore prod prod.tar.gz"
)]
pub struct MetaArgs {
    /// What to do with it
    #[command(subcommand)]
    pub command: MetaCommand,
}

/// What can be done with what this machine knows of a cluster.
#[derive(Clone, Debug, Subcommand)]
pub enum MetaCommand {
    /// Write it to a file: record, keys, certificates, runs
    #[command(
        after_help = "Examples:\n  dmup meta backup prod\n  dmup meta backup prod --file prod.tar.gz\n\nThe file has the key that opens the cluster's hosts."
    )]
    Backup {
        /// Which cluster
        #[arg(value_name = "CLUSTER")]
        cluster: String,
        /// Which file, that must not exist yet; one with the time in its name in this folder if not given
        #[arg(long, value_name = "FILE")]
        file: Option<Utf8PathBuf>,
    },
    /// Put a backup in the place of all that is known of a cluster
    #[command(after_help = "Examples:\n  dmup meta restore prod prod.tar.gz")]
    Restore {
        /// How the cluster is called here
        #[arg(value_name = "CLUSTER")]
        cluster: String,
        /// The backup
        #[arg(value_name = "BACKUP")]
        file: Utf8PathBuf,
    },
}

/// Arguments of `rotatessh`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  dmup rotatessh prod

A new key is made and given to every host. Only when it has logged in on every host it takes the old one's place,
and the hosts forget that. Cut off in the middle, the same command goes on where it was.")]
pub struct RotatesshArgs {
    /// Which cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
}

/// Arguments of the agent; parsed by itself.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// Passed on
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub rest: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_may_have_a_value_as_in_the_manual() {
        let plain = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let plain: Vec<String> = plain_switches(&words)
                .into_iter()
                .map(|word| word.into_string().unwrap())
                .collect();
            plain.join(" ")
        };
        assert_eq!(
            plain("dmup patch prod x --overwrite=true --yes=false -R dm-worker"),
            "dmup patch prod x --overwrite -R dm-worker"
        );
        for line in
            ["dmup patch prod x --overwrite=maybe", "dmup x --soak=1", "dmup x -- --yes=true"]
        {
            assert_eq!(plain(line), line);
        }
    }
}
