//! Programs of this machine as byte streams: the system's ssh, and the agent itself.

use std::process::Stdio;

use camino::Utf8Path;
use tokio::process::Command;

use crate::login::AuthMethod;

use super::connection::{ReachLimits, Target};
use super::error::ReachError;
use super::stream::ByteStream;

/// How far ssh may go.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    /// Trust host keys that are met for the first time.
    pub(crate) accept_new: bool,
    /// Offer no key of the operator's own (but those that ssh_config names for the host).
    pub(crate) given_keys_only: bool,
    /// Through this one, `user@host:port`: ssh_config has its keys.
    pub(crate) jump: Option<String>,
}

/// `ssh … -- host line`. Options checked on OpenSSH 9.2; port 22 is left to ssh_config.
pub(crate) fn ssh(
    program: &Utf8Path,
    target: &Target,
    extent: &Extent,
    limits: &ReachLimits,
    line: &str,
) -> Result<ByteStream, ReachError> {
    let mut command = Command::new(program);
    command.args(ssh_arguments(target, extent, limits)).arg("--").arg(&target.host).arg(line);
    spawn(command).map_err(|observed| ReachError::SystemSsh {
        address: target.address(),
        observed: format!("{program}: {observed}"),
    })
}

fn ssh_arguments(target: &Target, extent: &Extent, limits: &ReachLimits) -> Vec<String> {
    let mut arguments = vec!["-T".to_owned()];
    let mut option = |text: String| arguments.extend(["-o".to_owned(), text]);
    option("BatchMode=yes".to_owned());
    option(format!("ConnectTimeout={}", limits.connect.as_secs().max(1)));
    option(format!("ServerAliveInterval={}", limits.keepalive.as_secs().max(1)));
    option("ServerAliveCountMax=3".to_owned());
    if extent.accept_new {
        option("StrictHostKeyChecking=accept-new".to_owned());
    }
    if extent.given_keys_only {
        option("IdentitiesOnly=yes".to_owned());
        option("IdentityAgent=none".to_owned());
    }
    if let Some(jump) = &extent.jump {
        option(format!("ProxyJump={jump}"));
    }
    arguments.extend(["-l".to_owned(), target.login.user.as_str().to_owned()]);
    if target.port != 22 {
        arguments.extend(["-p".to_owned(), target.port.to_string()]);
    }
    for method in &target.login.auth {
        match method {
            AuthMethod::KeyFile { path, .. } => {
                arguments.extend(["-i".to_owned(), path.as_str().to_owned()]);
            }
            // ssh finds the agent by itself, and takes no password in batch mode.
            AuthMethod::Agent { .. } | AuthMethod::Password(_) => {}
        }
    }
    arguments
}

/// `program agent …`, as the login user.
pub(crate) fn local_agent(
    program: &Utf8Path,
    arguments: &[&str],
    target: &Target,
) -> Result<ByteStream, ReachError> {
    let user = target.login.user.as_str();
    let passwd = fs_err::read_to_string("/etc/passwd").unwrap_or_default();
    let mut command = match uid_of(&passwd, user) {
        Some(uid) if uid != rustix::process::getuid().as_raw() => {
            let mut sudo = Command::new("sudo");
            sudo.args(["-n", "-H", "-u", user, "--"]).arg(program);
            sudo
        }
        // The same user, or one that does not exist yet: as ourselves.
        Some(_) | None => Command::new(program),
    };
    command.arg("agent").args(arguments);
    spawn(command).map_err(|observed| ReachError::Bootstrap {
        address: target.address(),
        observed: format!("{program} agent: {observed}"),
    })
}

fn uid_of(passwd: &str, user: &str) -> Option<u32> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(user)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

fn spawn(mut command: Command) -> Result<ByteStream, std::io::Error> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C is for us alone to act on: the stream must outlive it until we say so.
        .process_group(0)
        .kill_on_drop(true);
    Ok(ByteStream::of_child(command.spawn()?))
}

#[cfg(test)]
mod tests {
    use dmup_core::ids::UserName;

    use super::*;
    use crate::login::{Login, Secret};

    #[test]
    fn ssh_gets_keys_and_limits_but_never_a_secret() {
        let target = Target {
            host: "h".to_owned(),
            port: 2222,
            login: Login {
                user: UserName::new("tidb").unwrap(),
                auth: vec![
                    AuthMethod::Password(Secret::new("hunter2")),
                    AuthMethod::key_file("/c/ssh/id_rsa"),
                ],
            },
        };
        let mut extent = Extent { accept_new: true, given_keys_only: false, jump: None };
        let text = ssh_arguments(&target, &extent, &ReachLimits::default()).join(" ");
        assert_eq!(
            text,
            "-T -o BatchMode=yes -o ConnectTimeout=5 -o ServerAliveInterval=5 -o ServerAliveCountMax=3 \
             -o StrictHostKeyChecking=accept-new -l tidb -p 2222 -i /c/ssh/id_rsa"
        );
        extent.given_keys_only = true;
        let text = ssh_arguments(&target, &extent, &ReachLimits::default()).join(" ");
        assert!(text.contains("-o IdentitiesOnly=yes -o IdentityAgent=none -l tidb"), "{text}");
        extent.jump = Some("ops@[fd00::1]:22".to_owned());
        let text = ssh_arguments(&target, &extent, &ReachLimits::default()).join(" ");
        assert!(text.contains("-o ProxyJump=ops@[fd00::1]:22 -l tidb"), "{text}");
    }

    #[test]
    fn a_user_is_found_by_the_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\ntidb2:x:1001:1001::/h:/bin/sh\ntidb:x:1000:1000::/h:/bin/sh\n";
        assert_eq!(uid_of(passwd, "tidb"), Some(1000));
        assert_eq!(uid_of(passwd, "tid"), None);
    }
}
