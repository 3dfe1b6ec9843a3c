//! Volumes that are staged more than once, and freeing when something is exhausted.

use super::*;

impl Bench {
    pub(super) fn stage_at(&self, name: &str) -> Result<()> {
        let capability = mount_capability("ext4", AccessMode::SingleNodeSingleWriter);
        let staging = self.path(name);
        let request =
            StageRequest { id: "v", volume: &self.volume, capability: &capability, staging: &staging };
        self.host.stage(&Ctx::new(), &request, &self.log)
    }

    pub(super) fn unstage_at(&self, name: &str) -> Result<()> {
        self.host.unstage(&Ctx::new(), Some(&self.volume.access), &self.path(name))
    }

    pub(super) fn publish(&self, staging: &str, target: &str) -> Result<()> {
        let capability = mount_capability("ext4", AccessMode::SingleNodeSingleWriter);
        let request = PublishRequest {
            id: "v",
            access: &self.volume.access,
            capability: &capability,
            staging: &self.path(staging),
            target: &self.path(target),
            read_only: false,
        };
        self.host.publish(&Ctx::new(), &request)
    }
}

#[test]
fn a_volume_staged_at_two_paths_is_unstaged_one_by_one() {
    let Some(mut bench) = Bench::new(64 * MIB) else { return };
    bench.stage_at("old").unwrap();
    bench.volume.formatted = Some("ext4".into());
    bench.stage_at("new").unwrap();
    bench.publish("new", "pod").unwrap();
    assert_eq!(bench.publish("old", "second-pod").unwrap_err().label(), "refused", "one pod only");
    for name in ["old", "new"] {
        let refused = bench.unstage_at(name).unwrap_err().to_string();
        assert!(refused.contains("published at") && refused.contains("/pod;"), "{refused}");
    }
    bench.host.unpublish(&Ctx::new(), &bench.path("pod")).unwrap();
    // Another process knows it, too.
    bench.host = Host::new(HostOptions { state_dir: bench.path("state"), ..HostOptions::default() });
    bench.unstage_at("old").unwrap();
    assert!(loopdev::find(bench.backing()).unwrap().is_some(), "it is still staged at the other path");
    assert!(mounts::on(&bench.path("old")).unwrap().is_empty());
    bench.unstage_at("old").unwrap();
    bench.unstage_at("new").unwrap();
    assert_eq!(loopdev::find(bench.backing()).unwrap(), None);
    assert_eq!(fs::read_dir(bench.path("state/staged")).unwrap().count(), 0);
}

fn raw() -> Capability {
    Capability { access: AccessType::Block, mode: AccessMode::SingleNodeWriter }
}

impl Bench {
    pub(super) fn stage_block_at(&self, name: &str) {
        fs::create_dir_all(self.path(name)).unwrap();
        let (capability, staging) = (raw(), self.path(name));
        let request =
            StageRequest { id: "v", volume: &self.volume, capability: &capability, staging: &staging };
        self.host.stage(&Ctx::new(), &request, &self.log).unwrap();
    }

    pub(super) fn publish_block(&self, staging: &str, target: &str) {
        let request = PublishRequest {
            id: "v",
            access: &self.volume.access,
            capability: &raw(),
            staging: &self.path(staging),
            target: &self.path(target),
            read_only: false,
        };
        self.host.publish(&Ctx::new(), &request).unwrap();
    }

    pub(super) fn is_attached(&self) -> bool {
        loopdev::find(self.backing()).unwrap().is_some()
    }
}

/// Nothing is mounted at a raw block volume's staging paths.
#[test]
fn a_raw_block_volume_staged_at_two_paths_keeps_its_device_until_the_last() {
    let Some(mut bench) = Bench::new(64 * MIB) else { return };
    bench.stage_block_at("old");
    bench.stage_block_at("new");
    // Another process knows it, too.
    bench.host = Host::new(HostOptions { state_dir: bench.path("state"), ..HostOptions::default() });
    bench.unstage_at("old").unwrap();
    bench.unstage_at("old").unwrap();
    assert!(bench.is_attached(), "it is still staged at the other path");
    bench.publish_block("new", "pod");
    let refused = bench.unstage_at("new").unwrap_err().to_string();
    assert!(refused.contains("published at"), "{refused}");
    bench.host.unpublish(&Ctx::new(), &bench.path("pod")).unwrap();
    bench.unstage_at("new").unwrap();
    assert!(!bench.is_attached());
    assert_eq!(fs::read_dir(bench.path("state/staged")).unwrap().count(), 0);
}

/// Kubelet's order after an upgrade, a note that nobody ended, and a state directory that cannot be changed.
#[test]
fn a_note_of_a_staged_block_volume_is_no_obstacle() {
    let Some(bench) = Bench::new(64 * MIB) else { return };
    bench.stage_block_at("staging");
    fs::remove_dir_all(bench.path("state/staged")).unwrap();
    bench.unstage_at("staging").unwrap();
    assert!(!bench.is_attached(), "staged by a driver that has noted nothing");

    bench.stage_block_at("forgotten");
    fs::remove_dir(bench.path("forgotten")).unwrap();
    bench.stage_block_at("staging");
    bench.unstage_at("staging").unwrap();
    assert!(!bench.is_attached(), "kubelet has removed the other staging path");

    bench.stage_block_at("detached");
    loopdev::detach(&loopdev::find(bench.backing()).unwrap().unwrap(), || Ok(true)).unwrap();
    bench.stage_block_at("staging");
    bench.unstage_at("staging").unwrap();
    assert!(!bench.is_attached(), "the note is of an earlier attachment");

    fs::remove_dir_all(bench.path("state/staged")).unwrap();
    fs::write(bench.path("state/staged"), "no directory").unwrap();
    bench.stage_block_at("staging");
    bench.unstage_at("staging").unwrap();
    assert!(!bench.is_attached(), "nothing could be noted");
}

/// Kubelet's path up to 1.23 and since 1.24, of a driver that has noted neither.
#[test]
fn both_of_kubelets_staging_paths_are_known() {
    let Some(mut bench) = Bench::new(64 * MIB) else { return };
    let kubelet = bench.path("kubelet");
    bench.host = Host::new(HostOptions {
        state_dir: bench.path("state"),
        kubelet_dir: kubelet.clone(),
        ..HostOptions::default()
    });
    let old = "kubelet/plugins/kubernetes.io/csi/pv/pvc-1/globalmount";
    let new = "kubelet/plugins/kubernetes.io/csi/driver/0a1b/globalmount";
    for name in [old, new] {
        fs::create_dir_all(bench.path(name)).unwrap();
        bench.stage_at(name).unwrap();
        bench.volume.formatted = Some("ext4".into());
    }
    assert!(!bench.path("state/staged").exists());
    bench.unstage_at(new).unwrap();
    bench.unstage_at(old).unwrap();
    assert_eq!(loopdev::find(bench.backing()).unwrap(), None);
}

/// Kubelet's directory is mounted twice in the driver's container: each staging path shows by two paths.
#[test]
fn the_same_place_seen_by_another_path_is_no_publication() {
    let Some(bench) = Bench::new(64 * MIB) else { return };
    let (kubelet, host) = (bench.path("kubelet"), bench.path("host"));
    fs::create_dir_all(kubelet.join("staging")).unwrap();
    fs::create_dir(&host).unwrap();
    rustix::mount::mount_bind(&kubelet, &kubelet).unwrap();
    rustix::mount::mount_change(&kubelet, rustix::mount::MountPropagationFlags::SHARED).unwrap();
    rustix::mount::mount_bind(&kubelet, &host).unwrap();
    bench.stage_at("kubelet/staging").unwrap();
    assert_eq!(mounts::on(&host.join("staging")).unwrap().len(), 1, "it shows there, too");
    bench.unstage_at("kubelet/staging").unwrap();
    assert!(mounts::on(&host.join("staging")).unwrap().is_empty());
    assert_eq!(loopdev::find(bench.backing()).unwrap(), None);
}

#[test]
fn unpublishing_and_unstaging_need_no_space_for_notes() {
    let Some(bench) = Bench::new(64 * MIB) else { return };
    let state = bench.path("state");
    fs::create_dir(&state).unwrap();
    rustix::mount::mount("none", &state, "tmpfs", rustix::mount::MountFlags::empty(), Some(c"size=64k"))
        .unwrap();
    bench.stage_at("staging").unwrap();
    bench.publish("staging", "pod").unwrap();
    let full = fs::write(state.join("full"), vec![1; 1 << 20]);
    assert!(full.is_err(), "the state directory is full");
    rustix::mount::mount_remount(&state, rustix::mount::MountFlags::RDONLY, "").unwrap();
    bench.host.unpublish(&Ctx::new(), &bench.path("pod")).unwrap();
    bench.unstage_at("staging").unwrap();
    assert!(mounts::on(&bench.path("staging")).unwrap().is_empty());
    assert_eq!(loopdev::find(bench.backing()).unwrap(), None);
}

/// An admin removed the volume's directory while it was attached; the device is ours to take away if it has our label and
/// nobody, in whatever name space, uses it.
#[test]
fn only_our_own_unused_devices_of_removed_files_are_detached() {
    let Some(bench) = Bench::new(64 * MIB) else { return };
    let theirs = bench.path("theirs/disk.img");
    let gone = |device: &Path| loopdev::attached(device).unwrap().is_none();
    fs::create_dir(theirs.parent().unwrap()).unwrap();
    File::create(&theirs).unwrap().set_len(64 * MIB).unwrap();
    let foreign = Command::new("losetup").args(["--find", "--show"]).arg(&theirs).output().unwrap();
    let foreign = PathBuf::from(String::from_utf8(foreign.stdout).unwrap().trim());
    let other = bench.path("other/disk.img");
    fs::create_dir(other.parent().unwrap()).unwrap();
    File::create(&other).unwrap().set_len(MIB).unwrap();
    let (other_node, _) =
        loopdev::attach(&other, false, "volumectl:0b9c8b3c-52b5-4f5c-a1b1-9d3f3b8f2e11").unwrap();

    bench.stage("ext4").unwrap();
    let device = loopdev::find(bench.backing()).unwrap().unwrap();
    for file in [&theirs, &other, &bench.backing().to_path_buf()] {
        fs::remove_file(file).unwrap();
    }
    // Mounted in another name space only.
    let mut sleeper = Command::new("unshare").args(["-m", "sleep", "60"]).spawn().unwrap();
    let begun = std::time::Instant::now();
    let space = |pid: String| fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
    while space(sleeper.id().to_string()) == space("self".into()) && begun.elapsed() < Duration::from_secs(5)
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    mounts::unmount_all(&Ctx::new(), &bench.path("staging")).unwrap();
    let done = bench.host.recover().unwrap().join("\n");
    assert!(!gone(&device) && done.contains("alone") && done.contains("name space of pid"), "{done}");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();

    let open = File::open(&device).unwrap();
    bench.host.recover().unwrap();
    assert!(!gone(&device), "somebody has it open");
    drop(open);
    let done = bench.host.recover().unwrap().join("\n");
    assert!(gone(&device) && done.contains("detached"), "{done}");
    assert!(!gone(&foreign), "another program's");
    assert!(!gone(&other_node), "another instance's");
    for device in [foreign, other_node] {
        loopdev::detach(&device, || Ok(true)).unwrap();
    }
}

/// A loop device keeps the flag that a read-only raw volume has set, also for the next file that it is given.
#[test]
fn a_device_that_is_still_read_only_is_made_writable() {
    let Some(bench) = Bench::new(64 * MIB) else { return };
    let device = bench.attach();
    device::set_read_only(&bench.host.tools, &Ctx::new(), &device, true).unwrap();
    assert!(device::is_read_only(&device));
    bench.stage("ext4").unwrap();
    assert!(!device::is_read_only(&device));
    fs::write(bench.path("staging").join("data"), "written").unwrap();
}

/// A copy in another process, and a stage: one of the two waits for the other.
#[test]
fn what_another_process_copies_is_not_staged_meanwhile() {
    let Some(bench) = Bench::new(64 * MIB) else { return };
    let copy = Lease::take(&Ctx::new(), bench.backing(), Sharing::Copy).unwrap();
    let error = bench.stage("ext4").unwrap_err();
    assert!(error.label() == "unavailable" && error.to_string().contains("another process"), "{error}");
    assert_eq!(loopdev::find(bench.backing()).unwrap(), None);
    drop(copy);
    bench.stage("ext4").unwrap();
    let _copy =
        Lease::take(&Ctx::new(), bench.backing(), Sharing::Copy).expect("staged; the copy freezes it");
    bench.unstage().expect("taking down waits for nobody");
}

#[test]
fn what_is_done_to_a_file_during_a_copy_shows() {
    let Some(bench) = Bench::new(64 * MIB) else { return };
    let mut seen = vec![bench.host.activity(bench.backing()).unwrap()];
    let device = bench.attach();
    seen.push(bench.host.activity(bench.backing()).unwrap());
    let open = File::options().write(true).open(&device).unwrap();
    open.write_all_at(&[1; 4096], 0).unwrap();
    open.sync_all().unwrap();
    drop(open);
    seen.push(bench.host.activity(bench.backing()).unwrap());
    assert_eq!(bench.host.activity(bench.backing()).unwrap(), seen[2], "nothing was done");
    loopdev::detach(&device, || Ok(true)).unwrap();
    // The same number again, if no other test takes it meanwhile.
    let mut again = bench.attach();
    for _ in 0..50 {
        if again == device {
            break;
        }
        loopdev::detach(&again, || Ok(true)).unwrap();
        again = bench.attach();
    }
    seen.push(bench.host.activity(bench.backing()).unwrap());
    let before = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), before, "{seen:?}");
}

/// A FUSE file system whose daemon has died at once.
fn mount_dead_fuse(target: &Path) {
    use std::os::fd::AsRawFd as _;
    let daemon = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", daemon.as_raw_fd());
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("dead", target, "fuse", flags, options.as_c_str()).unwrap();
}

#[test]
fn a_dead_staged_mount_is_not_published() {
    let Some(bench) = Bench::new(MIB) else { return };
    if !Path::new("/dev/fuse").exists() {
        eprintln!("skip: a_dead_staged_mount_is_not_published: no /dev/fuse");
        return;
    }
    let (root, staging, target) = (bench.path("root"), bench.path("staging"), bench.path("target"));
    fs::create_dir_all(&root).unwrap();
    fs::create_dir_all(&staging).unwrap();
    mount_dead_fuse(&staging);
    let capability = mount_capability("", AccessMode::SingleNodeWriter);
    let access = Access::Directory { path: root };
    let request = PublishRequest {
        id: "v",
        access: &access,
        capability: &capability,
        staging: &staging,
        target: &target,
        read_only: false,
    };
    let refused = bench.host.publish(&Ctx::new(), &request).unwrap_err();
    let text = refused.to_string();
    assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
    assert!(text.contains("staging") && text.contains("delete the pods"), "{text}");
    assert!(!target.exists(), "a target is made only for what is published");
    // It is taken down as ever.
    bench.host.unstage(&Ctx::new(), Some(&access), &staging).unwrap();
    assert!(mounts::on(&staging).unwrap().is_empty());
}
