//! A set's network: a bridge, and per host a namespace with one end of a cable, the other end being in the bridge.
//!
//! Facts: iproute2 6.1. No default route and no forwarding: hosts reach each other, this machine, and nothing else.

use camino::Utf8Path;

use super::LabError;
use super::names::{Place, SetName, bridge, gateway};
use crate::command;

/// Makes the bridge if it is not there.
pub(super) fn ensure_bridge(block: u8) -> Result<(), LabError> {
    let name = bridge(block);
    if !interface_exists(&name) {
        // An address of its own, or the bridge takes another one whenever a cable comes or goes, and neighbours lose it.
        let mac = format!("02:64:6d:{block:02x}:00:01");
        ip(&format!(
            "link add name {name} address {mac} type bridge forward_delay 0 mcast_snooping 0"
        ))?;
    }
    ip(&format!("addr replace {}/24 dev {name}", gateway(block)))?;
    ip(&format!("link set {name} up"))
}

/// Makes a host's namespace and cable anew.
pub(super) fn connect(place: &Place) -> Result<(), LabError> {
    disconnect(place)?;
    // The first `ip netns add` on a machine makes /run/netns a shared mount; two at once disturb each other.
    let _turn = super::lock_file(&SetName::base().join(".network.lock"))?;
    let (namespace, cable) = (place.machine(), place.cable());
    let mac = format!("02:64:6d:{:02x}:01:{:02x}", place.block, place.number);
    ip(&format!("netns add {namespace}"))?;
    ip(&format!("link add {cable} type veth peer name eth0 address {mac} netns {namespace}"))?;
    ip(&format!("link set {cable} master {} up", place.bridge()))?;
    ip(&format!("-n {namespace} addr add {}/24 dev eth0", place.address()))?;
    ip(&format!("-n {namespace} link set lo up"))?;
    ip(&format!("-n {namespace} link set eth0 up"))
}

/// Removes a host's cable and namespace, whichever is there.
pub(super) fn disconnect(place: &Place) -> Result<(), LabError> {
    // The cable goes by itself when the kernel gets round to destroying the namespace; that is too late to tell.
    if interface_exists(&place.cable()) {
        ip(&format!("link del {}", place.cable()))?;
    }
    if place.namespace().exists() {
        ip(&format!("netns del {}", place.machine()))?;
    }
    Ok(())
}

/// Removes the bridge if it is there.
pub(super) fn remove_bridge(block: u8) -> Result<(), LabError> {
    let name = bridge(block);
    if interface_exists(&name) { ip(&format!("link del {name}")) } else { Ok(()) }
}

/// Pulls the cable, or puts it back.
pub(super) fn set_cable(place: &Place, up: bool) -> Result<(), LabError> {
    ip(&format!("link set {} {}", place.cable(), if up { "up" } else { "down" }))
}

/// A port gives this machine no answer any more, or again; other hosts get theirs all the time.
pub(super) fn set_answers(place: &Place, port: u16, given: bool) -> Result<(), LabError> {
    let (namespace, us) = (place.machine(), gateway(place.block));
    let what = if given { "del" } else { "add" };
    ip(&format!(
        "-n {namespace} rule {what} to {us} ipproto tcp sport {port} priority 10 blackhole"
    ))
}

fn interface_exists(name: &str) -> bool {
    Utf8Path::new("/sys/class/net").join(name).exists()
}

/// Runs `ip` with words made of our own names and numbers.
fn ip(words: &str) -> Result<(), LabError> {
    let words: Vec<&str> = words.split(' ').collect();
    command::run("ip", &words)?;
    Ok(())
}
