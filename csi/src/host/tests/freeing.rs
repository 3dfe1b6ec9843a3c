//! Volumes that nobody gives up, and giving up without anything left to do it with.

use std::env;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;

const FORGOTTEN: &str = "kubelet/pods/1b4e/volumes/kubernetes.io~csi/pvc-1/mount";
const FORGOTTEN_BLOCK: &str = "kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-1/1b4e";

/// A node with a kubelet of its own, which has one pod.
fn node() -> Option<Bench> {
    let mut bench = Bench::new(64 * MIB)?;
    bench.host = Host::new(HostOptions {
        state_dir: bench.path("state"),
        kubelet_dir: bench.path("kubelet"),
        helper: helper(),
        ..HostOptions::default()
    });
    for target in [FORGOTTEN, FORGOTTEN_BLOCK] {
        fs::create_dir_all(bench.path(target).parent().unwrap()).unwrap();
    }
    Some(bench)
}

fn is_mounted(bench: &Bench, name: &str) -> bool {
    !mounts::on(&bench.path(name)).unwrap().is_empty()
}

/// Kubelet has lost what it knew of a pod's volume, and will never unpublish it.
#[test]
fn a_publication_that_kubelet_has_forgotten_is_taken_down_at_unstage() {
    let Some(bench) = node() else { return };
    let known = bench.path(FORGOTTEN).parent().unwrap().join("vol_data.json");
    fs::write(&known, "{}").unwrap();
    bench.stage("ext4").unwrap();
    bench.publish("staging", FORGOTTEN).unwrap();
    let refused = bench.unstage().unwrap_err().to_string();
    assert!(refused.contains("published at"), "kubelet knows of it: {refused}");
    fs::remove_file(&known).unwrap();

    let open = File::create(bench.path(FORGOTTEN).join("file")).unwrap();
    let refused = bench.unstage().unwrap_err().to_string();
    assert!(refused.contains(&format!("pid {}", std::process::id())), "somebody works there: {refused}");
    assert!(is_mounted(&bench, "staging") && is_mounted(&bench, FORGOTTEN));
    drop(open);
    bench.unstage().unwrap();
    assert!(!is_mounted(&bench, FORGOTTEN) && !bench.is_attached());
}

/// The pod's container has a mount of its own, which is not seen in this mount name space.
#[test]
fn a_container_that_kubelet_has_forgotten_keeps_its_volume() {
    let Some(bench) = node() else { return };
    bench.stage("ext4").unwrap();
    bench.publish("staging", FORGOTTEN).unwrap();
    fs::create_dir(bench.path("container")).unwrap();
    let script = "mount --bind \"$1\" \"$2\" && touch \"$3\" && exec sleep 60";
    let mut container = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", script, "sh"])
        .args([FORGOTTEN, "container", "ready"].map(|name| bench.path(name)))
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    while !bench.path("ready").exists() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the container does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    let refused = bench.unstage().unwrap_err().to_string();
    let name = format!("pid {}", container.id());
    assert!(refused.contains(&name) && refused.contains("forgotten"), "{refused}");
    assert!(is_mounted(&bench, "staging") && is_mounted(&bench, FORGOTTEN));
    container.kill().unwrap();
    container.wait().unwrap();
    bench.unstage().unwrap();
    assert!(!bench.is_attached());
}

#[test]
fn a_raw_block_volume_of_a_pod_that_is_gone_is_taken_down_at_unstage() {
    let Some(bench) = node() else { return };
    bench.stage_block_at("staging");
    bench.publish_block("staging", FORGOTTEN_BLOCK);
    let refused = bench.unstage().unwrap_err().to_string();
    assert!(refused.contains("published at"), "the pod has its directory: {refused}");
    fs::remove_dir_all(bench.path("kubelet/pods/1b4e")).unwrap();
    let refused = bench.unstage().unwrap_err().to_string();
    assert!(refused.contains("published at"), "the directory may be another than kubelet's: {refused}");
    fs::create_dir(bench.path("kubelet/pods/another")).unwrap();
    bench.unstage().unwrap();
    assert!(!is_mounted(&bench, FORGOTTEN_BLOCK) && !bench.is_attached());
}

/// Whose mount it is cannot be known, so it counts; what the refusal says ends it.
#[test]
fn a_mount_in_a_foreign_place_is_refused_with_the_command_that_ends_it() {
    let Some(bench) = node() else { return };
    bench.stage("ext4").unwrap();
    let device = loopdev::find(bench.backing()).unwrap().unwrap();
    for name in ["by hand", "it's"] {
        fs::create_dir(bench.path(name)).unwrap();
        assert!(mounts::mount_device(&device, &bench.path(name), "ext4", &[], false).unwrap());
    }
    let refused = bench.unstage().unwrap_err().to_string();
    let (_, command) = refused.split_once("run on the node: ").unwrap();
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
    bench.unstage().unwrap();
    assert!(!bench.is_attached());
}

/// Run by the test below in a process of its own.
#[test]
#[ignore = "a part of the test of descriptors"]
fn give_up_without_descriptors() {
    let bench = node().unwrap();
    bench.stage("ext4").unwrap();
    bench.publish("staging", "pod").unwrap();
    let limit = Rlimit { current: Some(128), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut all = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        all.push(file);
    }
    let done = bench.host.unpublish(&Ctx::new(), &bench.path("pod")).and_then(|()| bench.unstage());
    drop(all);
    done.unwrap();
    assert!(!is_mounted(&bench, "pod") && !is_mounted(&bench, "staging") && !bench.is_attached());
}

#[test]
fn a_process_without_descriptors_unpublishes_and_unstages() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skip: loop devices and mounts need root");
    }
    let done = Command::new(env::current_exe().unwrap())
        .args(["--exact", "host::tests::freeing::give_up_without_descriptors", "--ignored"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && text.contains("1 passed"), "{text}");
}
