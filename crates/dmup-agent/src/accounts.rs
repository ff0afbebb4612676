//! Users and groups of the host: numbers, homes, and making one for deploy.
//!
//! Looked up in `/etc/passwd` first, then by `getent`, which also knows LDAP and
//! the like; the static binary itself has no NSS. Making a user follows TiUP
//! (pkg/cluster/module/user.go, pkg/cluster/task/env_init.go): `groupadd -f`,
//! `useradd -m -s /bin/bash -g`, a passwordless sudo rule, a line in `authorized_keys`.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::ids::UserName;
use dmup_wire::message::{EnsureUser, ForgetKey, Outcome, Refusal, RefusalKind};
use fs_err as fs;

use crate::files::{Owner, write_atomically};
use crate::refuse::{Reply, When, bad, refuse, system};
use crate::run::{self, NotRun};

/// Tools like `useradd` wait for locks and directory servers at most so long.
const TOOL_LIMIT: Duration = Duration::from_secs(60);

/// A line of the user database.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: Utf8PathBuf,
}

impl Account {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _, uid, gid, _, home) = (
            fields.next()?,
            fields.next()?,
            fields.next()?.parse().ok()?,
            fields.next()?.parse().ok()?,
            fields.next()?,
            fields.next()?,
        );
        Some(Self { name: name.to_owned(), uid, gid, home: home.into() })
    }

    /// Who this process runs as; a nameless one if the host does not know its number.
    pub(crate) fn own() -> Self {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        lookup(&uid.to_string(), |account| account.uid == uid).unwrap_or(Self {
            name: uid.to_string(),
            uid,
            gid,
            home: "/".into(),
        })
    }

    /// The account of a name; none if the host does not know it.
    pub(crate) fn named(name: &UserName) -> Option<Self> {
        lookup(name.as_str(), |account| account.name == name.as_str())
    }

    /// As owner of files.
    pub(crate) fn owner(&self) -> Owner {
        Owner { uid: self.uid, gid: self.gid }
    }
}

/// Owner and group for files that shall belong to a user.
pub(crate) fn owner_named(name: &UserName) -> Result<Owner, Refusal> {
    Account::named(name).map(|account| account.owner()).ok_or_else(|| {
        refuse(
            RefusalKind::Precondition,
            format!("look up user {name}"),
            "the host knows no user of that name",
        )
    })
}

/// The name of a user by number; the number if the host knows none.
pub(crate) fn name_of(uid: u32) -> String {
    let number = uid.to_string();
    lookup(&number, |account| account.uid == uid).map_or(number, |account| account.name)
}

/// What a text tells as a user database and as sshd's configuration, for tests with hostile input.
pub(crate) fn read_words(text: &str) {
    let mut accounts: Vec<Account> = text.lines().filter_map(Account::parse).collect();
    accounts.push(Account {
        name: "tidb".to_owned(),
        uid: 1000,
        gid: 1000,
        home: "/home/tidb".into(),
    });
    for account in &accounts {
        keys_file(text, account);
    }
}

fn lookup(key: &str, fits: impl Fn(&Account) -> bool) -> Option<Account> {
    let local = fs::read_to_string("/etc/passwd").unwrap_or_default();
    if let Some(found) = local.lines().filter_map(Account::parse).find(|account| fits(account)) {
        return Some(found);
    }
    let mut getent = run::command("getent").ok()?;
    getent.args(["passwd", key]);
    let ran = run::run(getent, Duration::from_secs(10)).ok()?;
    ran.stdout.lines().filter_map(Account::parse).find(|account| fits(account))
}

/// Makes the user, its group, its login key, its sudo rule, and lets it linger, each only if missing. Needs root, but for a
/// login key of one's own.
pub(crate) fn ensure_user(order: &EnsureUser) -> Reply {
    let key = one_line(&order.public_key)?;
    let account = match Account::named(&order.user) {
        Some(account) => account,
        None => make(&order.user, &order.group)?,
    };
    add_key(&account, key)?;
    if order.sudo {
        allow_sudo(&order.user)?;
    }
    if order.linger {
        tool("loginctl", &["enable-linger", order.user.as_str()])?;
        // That only orders it; whoever comes next needs it to run.
        tool("systemctl", &["start", &format!("user@{}.service", account.uid)])?;
    }
    Ok(Outcome::Done)
}

fn one_line(key: &str) -> Result<&str, Refusal> {
    let key = key.trim();
    if key.is_empty() || key.len() > 16 * 1024 || key.chars().any(char::is_control) {
        return Err(bad("take a login key", "it must be one line of at most 16 KiB"));
    }
    Ok(key)
}

/// Takes a login key away from a user; one that is not there is fine. Needs root, but for one's own.
pub(crate) fn forget_key(order: &ForgetKey) -> Reply {
    let key = one_line(&order.public_key)?;
    // `ssh-ed25519 AAAA… comment`: the second word is the key itself.
    let Some(blob) = key.split_whitespace().nth(1) else {
        return Err(bad("take a login key away", "it must be a line of authorized_keys"));
    };
    let Some(account) = Account::named(&order.user) else { return Ok(Outcome::Done) };
    let config = fs::read_to_string("/etc/ssh/sshd_config").unwrap_or_default();
    take_line_away(&keys_file(&config, &account), blob)?;
    Ok(Outcome::Done)
}

fn take_line_away(path: &Utf8Path, blob: &str) -> Result<(), Refusal> {
    let attempted = || format!("take a login key out of {path}");
    if !path.exists() {
        return Ok(());
    }
    let before = fs::read_to_string(path).when(attempted)?;
    let has_it = |line: &str| line.split_whitespace().any(|word| word == blob);
    let kept: String = before.split_inclusive('\n').filter(|line| !has_it(line)).collect();
    if kept == before {
        return Ok(());
    }
    refuse_links(path, attempted)?;
    let meta = fs::metadata(path).when(attempted)?;
    let owner = Owner { uid: meta.uid(), gid: meta.gid() };
    write_atomically(path, kept.as_bytes(), meta.mode() & 0o777, Some(owner)).when(attempted)
}

/// A link here would lead root's pen to wherever the user likes.
fn refuse_links(path: &Utf8Path, attempted: impl Fn() -> String) -> Result<(), Refusal> {
    for place in path.parent().into_iter().chain([path]) {
        if fs::symlink_metadata(place).is_ok_and(|meta| meta.is_symlink()) {
            let seen = format!("{place} is a link");
            return Err(refuse(RefusalKind::Precondition, attempted(), seen));
        }
    }
    Ok(())
}

fn make(user: &UserName, group: &UserName) -> Result<Account, Refusal> {
    tool("groupadd", &["-f", group.as_str()])?;
    tool("useradd", &["-m", "-s", "/bin/bash", "-g", group.as_str(), user.as_str()])?;
    Account::named(user).ok_or_else(|| {
        refuse(
            RefusalKind::System,
            format!("make user {user}"),
            "useradd succeeded, but the user cannot be found",
        )
    })
}

fn tool(program: &str, arguments: &[&str]) -> Result<(), Refusal> {
    let attempted = || format!("{program} {}", arguments.join(" "));
    let mut command = run::command(program).when(attempted)?;
    command.args(arguments);
    match run::run(command, TOOL_LIMIT) {
        Ok(ran) if ran.status.success() => Ok(()),
        Ok(ran) => Err(refuse(RefusalKind::System, attempted(), ran.words())),
        Err(NotRun::Spawn(error)) => Err(system(attempted(), &error)),
        Err(NotRun::TooSlow(limit)) => Err(refuse(
            RefusalKind::TooSlow,
            attempted(),
            format!("not done after {} s", limit.as_secs()),
        )),
    }
}

/// Makes the user's home if there is none: `useradd` may have failed there, with the user made.
fn ensure_home(account: &Account) -> Result<(), Refusal> {
    let Account { name, uid, gid, home } = account;
    let attempted = || format!("make the home {home} of {name}");
    match fs::create_dir(home) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error).when(attempted),
    }
    // For nobody else, before it is the user's.
    fs::set_permissions(home, std::fs::Permissions::from_mode(0o700)).when(attempted)?;
    std::os::unix::fs::lchown(home, Some(*uid), Some(*gid)).when(attempted)
}

fn add_key(account: &Account, key: &str) -> Result<(), Refusal> {
    let config = fs::read_to_string("/etc/ssh/sshd_config").unwrap_or_default();
    let path = keys_file(&config, account);
    if path.starts_with(&account.home) {
        ensure_home(account)?;
    }
    let attempted = || format!("add the login key to {path}");
    let folder = path.parent().unwrap_or(&account.home).to_owned();
    refuse_links(&path, attempted)?;
    if !folder.exists() {
        fs::create_dir_all(&folder).when(attempted)?;
        fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).when(attempted)?;
        std::os::unix::fs::lchown(&folder, Some(account.uid), Some(account.gid)).when(attempted)?;
    }
    let before =
        if path.exists() { fs::read_to_string(&path).when(attempted)? } else { String::new() };
    if before.lines().any(|line| line.trim() == key) {
        return Ok(());
    }
    let gap = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
    // Below the user's home it is the user's; a site-wide folder of keys keeps its owner.
    let owner = if path.starts_with(&account.home) {
        account.owner()
    } else {
        let meta = fs::metadata(&folder).when(attempted)?;
        Owner { uid: meta.uid(), gid: meta.gid() }
    };
    let mode = if path.starts_with(&account.home) { 0o600 } else { 0o644 };
    write_atomically(&path, format!("{before}{gap}{key}\n").as_bytes(), mode, Some(owner))
        .when(attempted)
}

/// The first `AuthorizedKeysFile` of sshd's configuration, as TiUP reads it; below the home by default.
fn keys_file(config: &str, account: &Account) -> Utf8PathBuf {
    let given = config
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?;
            name.eq_ignore_ascii_case("AuthorizedKeysFile").then(|| words.next())?
        })
        .map(|word| word.trim_matches('"'))
        .find(|word| {
            !word.is_empty() && *word != "none" && !word.split('/').any(|part| part == "..")
        })
        .unwrap_or(".ssh/authorized_keys");
    let expanded = given.replace("%h", account.home.as_str()).replace("%u", &account.name);
    let expanded = expanded.strip_prefix("~/").unwrap_or(&expanded);
    // Joining an absolute path replaces the home, which is what sshd does too.
    account.home.join(expanded)
}

fn allow_sudo(user: &UserName) -> Result<(), Refusal> {
    let attempted = || format!("write the sudo rule of {user}");
    // sudo ignores files with a dot in their names: sudoers(5), "@includedir".
    let name = user.as_str().replace('.', "_");
    let folder = Utf8Path::new("/etc/sudoers.d");
    if !folder.exists() {
        fs::create_dir(folder).when(attempted)?;
        fs::set_permissions(folder, std::fs::Permissions::from_mode(0o750)).when(attempted)?;
    }
    let rule = format!("{user} ALL=(ALL) NOPASSWD:ALL\n");
    let path = folder.join(&name);
    if fs::read_to_string(&path).is_ok_and(|now| now == rule) {
        return Ok(());
    }
    // With a dot in its name the draft is not a rule yet.
    let draft = folder.join(format!(".{name}.dmup"));
    let root = Owner { uid: 0, gid: 0 };
    write_atomically(&draft, rule.as_bytes(), 0o440, Some(root)).when(attempted)?;
    let checked = match run::find("visudo") {
        Some(_) => tool("visudo", &["-c", "-q", "-f", draft.as_str()]),
        None => Err(refuse(
            RefusalKind::Precondition,
            attempted(),
            "there is no visudo: is sudo installed?",
        )),
    };
    if let Err(refusal) = checked {
        fs::remove_file(&draft).ok();
        return Err(refusal);
    }
    fs::rename(&draft, &path).when(attempted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tidb() -> Account {
        Account::parse("tidb:x:1000:1001:,,,:/home/tidb:/bin/bash").unwrap()
    }

    #[test]
    fn a_line_of_the_user_database_is_read() {
        assert_eq!((tidb().uid, tidb().gid), (1000, 1001));
        assert_eq!(Account::parse("nonsense"), None);
    }

    #[test]
    fn the_login_key_goes_where_sshd_looks() {
        let at = |config: &str| keys_file(config, &tidb()).into_string();
        assert_eq!(at(""), "/home/tidb/.ssh/authorized_keys");
        assert_eq!(at("#AuthorizedKeysFile x\n"), "/home/tidb/.ssh/authorized_keys");
        assert_eq!(at("AuthorizedKeysFile %h/.ssh/k2 b\n"), "/home/tidb/.ssh/k2");
        assert_eq!(at("authorizedkeysfile /etc/ssh/keys/%u\n"), "/etc/ssh/keys/tidb");
        assert_eq!(at("AuthorizedKeysFile ../../etc/x\n"), "/home/tidb/.ssh/authorized_keys");
    }

    #[test]
    fn one_key_goes_and_every_other_line_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("authorized_keys")).unwrap();
        take_line_away(&path, "BBBB").unwrap();
        let before = "# mine\nssh-rsa AAAA me\nssh-rsa BBBB\nfrom=\"10.0.1.1\" ssh-rsa BBBB x\nssh-rsa BBBBB";
        fs::write(&path, before).unwrap();
        fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        for _ in 0..2 {
            take_line_away(&path, "BBBB").unwrap();
            let after = fs::read_to_string(&path).unwrap();
            assert_eq!(after, "# mine\nssh-rsa AAAA me\nssh-rsa BBBBB");
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        let link = path.with_file_name("link");
        fs_err::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(take_line_away(&link, "AAAA").unwrap_err().observed.contains("is a link"));
    }

    #[test]
    fn a_home_that_useradd_could_not_make_is_made_for_its_user_and_none_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let at = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        let own = Account::own();
        let mut account = Account { home: at.join("full/tidb"), ..own.clone() };
        let refusal = ensure_home(&account).unwrap_err();
        assert!(refusal.attempted.starts_with("make the home ") && !at.join("full").exists());
        fs::create_dir(at.join("full")).unwrap();
        add_key(&account, "ssh-ed25519 AAAA x").unwrap();
        let meta = fs::metadata(&account.home).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (own.uid, own.gid, 0o700));
        account.home = at;
        fs::set_permissions(&account.home, std::fs::Permissions::from_mode(0o755)).unwrap();
        ensure_home(&account).unwrap();
        assert_eq!(fs::metadata(&account.home).unwrap().mode() & 0o7777, 0o755);
    }

    #[test]
    fn a_key_of_two_lines_is_refused() {
        let order = EnsureUser {
            user: UserName::new("tidb").unwrap(),
            group: UserName::new("tidb").unwrap(),
            public_key: "ssh-ed25519 A\nssh-ed25519 B".into(),
            sudo: false,
            linger: false,
        };
        assert_eq!(ensure_user(&order).unwrap_err().kind, RefusalKind::BadRequest);
    }
}
