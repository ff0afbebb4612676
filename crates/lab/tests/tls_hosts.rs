//! A cluster with `enable_tls`, monitoring and exporters on real hosts: laid out, made larger, hotfixed, while rows flow
//! (block 16); and taken back through one of the hosts, when dmup reaches no other and no port of DM.

use std::time::Duration;

use lab::dm::DmCluster;
use lab::scene::{CLUSTER, Scene, Shape, TASK};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn a_cluster_with_tls_is_deployed_made_larger_and_hotfixed() {
    let shape =
        Shape { workers: 2, monitoring: Some(1), exporters: true, tls: true, ..Shape::three() };
    let scene = Scene::running("tls", 16, shape, 50).unwrap();
    let hosts = scene.hosts.hosts();

    // Keys are their owner's, and nobody without a certificate is let in.
    for (folder, role) in [
        ("dm-master-8261", "dm-master"),
        ("prometheus-9090", "prometheus"),
        ("monitor-9100", "blackbox_exporter"),
    ] {
        let key = format!("/home/tidb/deploy/{folder}/tls/{role}.pem");
        let mode = scene.hosts.run_on(1, &["stat", "-c", "%a %U", &key]).unwrap();
        assert_eq!(mode.trim(), "600 tidb", "{key}");
    }
    let plain = DmCluster::new([format!("{}:8261", hosts[0].address)]).impatient();
    assert_eq!(plain.leader(), None, "without TLS");
    let display = scene.dmup(&["display", CLUSTER]).well();
    assert!(display.stdout.contains("TLS encryption:     enabled"), "{display}");
    assert_eq!(display.stdout.matches("Healthy").count(), 3, "{display}");

    let more = scene.operator.folder().join("more.yaml");
    fs_err::write(&more, format!("worker_servers:\n  - host: {}\n", hosts[2].address)).unwrap();
    let said = scene.dmup(&["scale-out", CLUSTER, more.as_str(), "--yes"]).well();
    assert_eq!(scene.dm.workers().len(), 3, "{said}");

    let before = scene.running_hashes();
    let fix = scene.hotfix("fix.tar.gz", &scene.fixed()).unwrap();
    scene.dmup(&["patch", CLUSTER, fix.as_str(), "--soak", "0", "--yes"]).well();
    let after = scene.running_hashes();
    assert!(before.iter().zip(&after).all(|(old, new)| old != new && new.1 != "down"), "{after:?}");

    // Prometheus has a certificate too: every member is scraped over TLS. Exporters themselves speak without it.
    let promtool = "/home/tidb/deploy/prometheus-9090/bin/prometheus/promtool";
    for (up, number) in [
        ("count(up{job=~\"dm_(master|worker)\"} == 1)", 6),
        ("count(up{job=\"overwritten-nodes\"} == 1)", 3),
        // Each host is pinged by the exporter of each.
        ("count(probe_success{ping!=\"\"} == 1)", 9),
    ] {
        scene
            .dm
            .wait_until(&format!("Prometheus: {up} is {number}"), PATIENCE, |_| {
                let query = [promtool, "query", "instant", "http://127.0.0.1:9090", up];
                let seen = scene.hosts.run_on(1, &query).map_err(|error| error.to_string())?;
                if seen.contains(&format!("=> {number} @")) { Ok(()) } else { Err(seen) }
            })
            .unwrap();
    }
    // The blackbox exporter has one as well: dm-master lets nobody in without.
    for host in hosts {
        let probe =
            format!("http://{0}:9115/probe?module=tls_connect&target={0}:8261", host.address);
        let seen = ureq::get(&probe).call().unwrap().body_mut().read_to_string().unwrap();
        assert!(seen.contains("probe_success 1"), "{probe}\n{seen}");
    }

    // A wall: this machine reaches nothing of the cluster but sshd of the third host. Whoever goes through that one reaches all.
    let (dm, ssh) = ([8261, 8262, 9090, 3000, 9093], [22]);
    hosts.iter().for_each(|host| host.shut_out_this_machine(&dm).unwrap());
    hosts[..2].iter().for_each(|host| host.shut_out_this_machine(&ssh).unwrap());
    let said = scene.dmup(&["rollback", CLUSTER, "--soak", "0", "--yes", "--ssh-timeout", "2"]);
    assert!(said.code != 0 && scene.running_hashes() == after, "{said}");
    let (address, key) = (hosts[2].address.to_string(), scene.hosts.key_path());
    let through = |words: &[&str]| {
        let jump = ["--ssh-proxy-host", &address, "--ssh-proxy-user", "root"];
        let proof = ["--ssh-proxy-identity-file", key.as_str()];
        scene.dmup(&[words, &jump, &proof].concat())
    };
    let display = through(&["display", CLUSTER, "--verify"]).well();
    assert_eq!(display.stdout.matches("Healthy").count(), 3, "{display}");
    through(&["rollback", CLUSTER, "--soak", "0", "--yes"]).well();
    assert_eq!(scene.running_hashes(), before);
    // Ports are looked at from there, too.
    through(&["restart", CLUSTER, "-R", "dm-worker", "--fast", "--yes"]).well();
    let key = ["--ssh-proxy-identity-file", key.as_str()];
    let stranger = [&["stop", CLUSTER, "--yes", "--ssh-proxy-host", &address][..], &key].concat();
    for words in [&stranger[..], &[&["restart", "--fast"], &stranger[1..]].concat()] {
        let words = [words, &["--ssh-proxy-user", "nobody"]].concat();
        let said = scene.dmup(&words).with_code(3);
        assert!(said.stderr.contains("nothing was touched"), "{said}");
    }
    assert_eq!(scene.running_hashes(), before);
    hosts.iter().for_each(|host| host.let_this_machine_in(&dm).unwrap());
    hosts[..2].iter().for_each(|host| host.let_this_machine_in(&ssh).unwrap());

    scene.dm.wait_running(TASK, 2, PATIENCE).unwrap();
    for (source, seen) in scene.settle_rows(50, PATIENCE).unwrap() {
        assert!(seen.is_whole(), "{source}: {seen}");
    }
}
