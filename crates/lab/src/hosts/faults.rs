//! What can go wrong on a host, and how it is put right again.
//!
//! Each fault acts from outside (cable, power, control groups) or through the host's own systemd, entered without SSH, so that it
//! works on a host that cannot be reached.

use camino::Utf8Path;

use super::names::Place;
use super::{Host, LabError, cgroups, keys, machine, network, processes};

/// Signals that are sent to a unit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UnitSignal {
    /// SIGSTOP: it hangs, its ports stay open.
    Stop,
    /// SIGCONT: it goes on.
    Continue,
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
}

impl Host {
    /// Pulls the network cable. Connections that are open stay open and get no answers.
    ///
    /// # Errors
    ///
    /// [`LabError`] as of `ip`.
    pub fn cut_network(&self) -> Result<(), LabError> {
        network::set_cable(&self.place, false)
    }

    /// Puts the network cable back.
    ///
    /// # Errors
    ///
    /// [`LabError`] as of `ip`.
    pub fn restore_network(&self) -> Result<(), LabError> {
        network::set_cable(&self.place, true)
    }

    /// From now on these TCP ports answer nobody on this machine; other hosts they do.
    ///
    /// # Errors
    ///
    /// [`LabError`] as of `ip`.
    pub fn shut_out_this_machine(&self, ports: &[u16]) -> Result<(), LabError> {
        ports.iter().try_for_each(|port| network::set_answers(&self.place, *port, false))
    }

    /// Ends [`Self::shut_out_this_machine`].
    ///
    /// # Errors
    ///
    /// [`LabError`] as of `ip`: no such rule, too.
    pub fn let_this_machine_in(&self, ports: &[u16]) -> Result<(), LabError> {
        ports.iter().try_for_each(|port| network::set_answers(&self.place, *port, true))
    }

    /// Stops sshd: nobody can log in, sessions go on.
    ///
    /// # Errors
    ///
    /// [`LabError`] as of [`Host::must_run`].
    pub fn stop_sshd(&self) -> Result<(), LabError> {
        self.must_run(&["systemctl", "stop", "ssh.service"]).map(drop)
    }

    /// Starts sshd again.
    ///
    /// # Errors
    ///
    /// [`LabError`] as of [`Host::must_run`].
    pub fn start_sshd(&self) -> Result<(), LabError> {
        self.must_run(&["systemctl", "start", "ssh.service"]).map(drop)
    }

    /// Kills every SSH session, and with it sshd for as long as systemd takes to restart it.
    ///
    /// # Errors
    ///
    /// [`LabError`] as of [`Host::run`].
    pub fn drop_ssh_sessions(&self) -> Result<(), LabError> {
        // pkill says 1 when there was none, which is as good.
        self.run(&["pkill", "--signal", "KILL", "-x", "sshd"]).map(drop)
    }

    /// Leaves `free_kib` of space below `folder`: a file system of limited size with the folder's present content lies over it until
    /// [`Host::lift_disk_limit`], which brings the folder back as it was before. Processes with open files there keep the old ones.
    ///
    /// # Errors
    ///
    /// [`LabError`] as of [`Host::must_run`].
    pub fn limit_disk(&self, folder: &Utf8Path, free_kib: u64) -> Result<(), LabError> {
        let folder = folder.as_str();
        let said = self.must_run(&["stat", "--format=%u %g %a", folder])?;
        let [user, group, mode] = said.split_whitespace().collect::<Vec<_>>()[..] else {
            return Err(LabError::Unexpected { doing: "stat of a folder", said });
        };
        let used = self.must_run(&["du", "--summarize", "--block-size=1024", folder])?;
        let used: u64 = used
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok())
            .ok_or(LabError::Unexpected { doing: "du of a folder", said: used })?;
        let options =
            format!("size={}k,mode={mode},uid={user},gid={group}", used + free_kib.max(4));
        const STAGING: &str = "/run/lab-limited";
        self.must_run(&["mkdir", "--parents", STAGING])?;
        self.must_run(&["mount", "-t", "tmpfs", "-o", &options, "tmpfs", STAGING])?;
        self.must_run(&["cp", "--archive", &format!("{folder}/."), STAGING])?;
        self.must_run(&["mount", "--move", STAGING, folder]).or_else(|_shared| {
            // A shared mount cannot be moved; bind it and take the first one away.
            self.must_run(&["mount", "--bind", STAGING, folder])?;
            self.must_run(&["umount", STAGING])
        })?;
        Ok(())
    }

    /// Takes the limit of [`Host::limit_disk`] away.
    ///
    /// # Errors
    ///
    /// [`LabError`] as of [`Host::must_run`].
    pub fn lift_disk_limit(&self, folder: &Utf8Path) -> Result<(), LabError> {
        self.must_run(&["umount", "--lazy", folder.as_str()]).map(drop)
    }

    /// Gives sshd other host keys; the set's known_hosts keeps the old ones.
    ///
    /// # Errors
    ///
    /// [`LabError`] as of [`Host::must_run`].
    pub fn change_host_key(&self) -> Result<(), LabError> {
        self.must_run(&["mkdir", "--parents", KEPT_KEYS])?;
        for kind in keys::KINDS {
            let key = format!("/etc/ssh/{}", keys::host_key_file(kind));
            for half in [key.clone(), format!("{key}.pub")] {
                self.must_run(&["mv", "--no-clobber", &half, KEPT_KEYS])?;
            }
            // Of a key that was changed before, the newer one is still there.
            self.must_run(&["rm", "--force", &key, &format!("{key}.pub")])?;
            self.must_run(&["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", &key])?;
        }
        self.must_run(&["systemctl", "restart", "ssh.service"]).map(drop)
    }

    /// Brings back the host keys that the set's known_hosts has.
    ///
    /// # Errors
    ///
    /// [`LabError`] as of [`Host::must_run`].
    pub fn restore_host_key(&self) -> Result<(), LabError> {
        for kind in keys::KINDS {
            let file = keys::host_key_file(kind);
            for half in [file.clone(), format!("{file}.pub")] {
                let kept = format!("{KEPT_KEYS}/{half}");
                self.must_run(&["mv", "--force", &kept, "/etc/ssh/"])?;
            }
        }
        self.must_run(&["systemctl", "restart", "ssh.service"]).map(drop)
    }

    /// Sends a signal to all processes of a unit.
    ///
    /// # Errors
    ///
    /// [`LabError`] as of [`Host::must_run`].
    pub fn signal_unit(&self, unit: &str, signal: UnitSignal) -> Result<(), LabError> {
        let signal = match signal {
            UnitSignal::Stop => "--signal=SIGSTOP",
            UnitSignal::Continue => "--signal=SIGCONT",
            UnitSignal::Terminate => "--signal=SIGTERM",
            UnitSignal::Kill => "--signal=SIGKILL",
        };
        self.must_run(&["systemctl", "kill", signal, unit]).map(drop)
    }

    /// Stops every process of the host at once: ports stay open, nothing answers.
    ///
    /// # Errors
    ///
    /// [`LabError`] if the control group cannot be written.
    pub fn freeze(&self) -> Result<(), LabError> {
        cgroups::freeze(&self.place.cgroup(), true)
    }

    /// Lets a frozen host go on.
    ///
    /// # Errors
    ///
    /// [`LabError`] if the control group cannot be written.
    pub fn thaw(&self) -> Result<(), LabError> {
        cgroups::freeze(&self.place.cgroup(), false)
    }

    /// Pulls the plug: every process is killed, files stay.
    ///
    /// # Errors
    ///
    /// [`LabError::StillRunning`] if a process does not go.
    pub fn power_off(&self) -> Result<(), LabError> {
        processes::kill_all(&self.place)?;
        self.reap();
        cgroups::remove(&self.place.cgroup());
        Ok(())
    }

    /// Starts the host again and waits until it serves.
    ///
    /// # Errors
    ///
    /// [`LabError::NotServing`], and as of starting a program.
    pub fn power_on(&self) -> Result<(), LabError> {
        if processes::of(&self.place).is_empty() {
            let child = machine::start(&self.place, &self.image)?;
            self.keep(child);
        }
        machine::wait_until_serving(&self.place)
    }

    /// Pulls the plug and starts the host again, with another boot id and none of `/run` left.
    ///
    /// # Errors
    ///
    /// As of [`Host::power_off`] and [`Host::power_on`].
    pub fn power_cycle(&self) -> Result<(), LabError> {
        self.power_off()?;
        self.power_on()
    }

    /// Whether any process of the host runs.
    pub fn is_running(&self) -> bool {
        is_running(&self.place)
    }

    /// Whether sshd answers with its greeting.
    pub fn sshd_greets(&self) -> bool {
        machine::sshd_greets(self.address.into())
    }
}

/// Where a host keeps its former keys.
const KEPT_KEYS: &str = "/etc/ssh/kept";

pub(super) fn is_running(place: &Place) -> bool {
    !processes::of(place).is_empty()
}
