//! The driver's container is started again: its mount name space, in which the volumes' root was mounted elsewhere, is gone,
//! and with it the paths under which the kernel shows the loop devices' files.

use std::env;

use super::*;

/// Run by the tests below in a mount name space of its own, with the volumes' root bound to another path.
#[test]
#[ignore = "a part of the tests of restarts"]
fn stage_in_another_name_space() {
    let dir = PathBuf::from(env::var_os("VOLUMECTL_TEST_DIR").expect("run by the tests of restarts"));
    let inner = dir.join("inner");
    rustix::mount::mount_bind(dir.join("root"), &inner).unwrap();
    let (host, volume) = (host(&dir), volume(&inner, 64 * MIB));
    let log = Notes::default();
    let capability = match env::var("VOLUMECTL_TEST_MODE").as_deref() {
        Ok("block") => raw(),
        _ => mount_capability("ext4", AccessMode::SingleNodeMultiWriter),
    };
    let (staging, target) = (dir.join("shared/staging"), dir.join("shared/pod-a"));
    let stage = StageRequest { id: "v", volume: &volume, capability: &capability, staging: &staging };
    host.stage(&Ctx::new(), &stage, &log).unwrap();
    let access = &volume.access;
    let publish = PublishRequest {
        id: "v",
        access,
        capability: &capability,
        staging: &staging,
        target: &target,
        read_only: false,
    };
    host.publish(&Ctx::new(), &publish).unwrap();
}

fn host(dir: &Path) -> Host {
    Host::new(HostOptions {
        state_dir: dir.join("state"),
        volume_roots: vec![dir.join("root")],
        helper: helper(),
        ..HostOptions::default()
    })
}

fn volume(root: &Path, size: u64) -> NodeVolume {
    NodeVolume {
        access: Access::LoopFile { path: root.join("v/disk.img") },
        size: Some(size),
        fs_type: None,
        mkfs_options: Vec::new(),
        root_mode: None,
        formatted: None,
        raw: false,
        vouched: None,
        permit: provisioners::Permit::default(),
    }
}

fn raw() -> Capability {
    Capability { access: AccessType::Block, mode: AccessMode::SingleNodeMultiWriter }
}

/// A driver whose predecessor has staged and published a volume in another name space.
struct Successor {
    bench: Bench,
    dir: PathBuf,
}

impl Successor {
    fn new(mode: &str) -> Option<Self> {
        let mut bench = Bench::new(MIB)?;
        let dir = bench.dir.path().canonicalize().unwrap();
        for name in ["root", "root/v", "inner", "shared"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        File::create(dir.join("root/v/disk.img")).unwrap().set_len(64 * MIB).unwrap();
        let shared = dir.join("shared");
        rustix::mount::mount_bind(&shared, &shared).unwrap();
        rustix::mount::mount_change(&shared, rustix::mount::MountPropagationFlags::SHARED).unwrap();
        fs::create_dir(shared.join("staging")).unwrap();
        let done = Command::new("unshare")
            .args(["-m", "--propagation", "unchanged"])
            .arg(env::current_exe().unwrap())
            .args(["--exact", "host::tests::restart::stage_in_another_name_space", "--ignored"])
            .env("VOLUMECTL_TEST_DIR", &dir)
            .env("VOLUMECTL_TEST_MODE", mode)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        bench.host = host(&dir);
        bench.volume = volume(&dir.join("root"), 64 * MIB);
        bench.volume.formatted = Some("ext4".into());
        let successor = Self { bench, dir };
        let shown = loopdev::attached(&successor.device()).unwrap().unwrap().shown;
        assert_ne!(shown, successor.bench.backing(), "the path of a name space that is gone");
        Some(successor)
    }

    fn device(&self) -> PathBuf {
        loopdev::find(self.bench.backing()).unwrap().expect("the predecessor's device")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join("shared").join(name)
    }

    fn stage(&self, capability: &Capability) -> Result<()> {
        let (staging, volume) = (self.path("staging"), &self.bench.volume);
        let request = StageRequest { id: "v", volume, capability, staging: &staging };
        self.bench.host.stage(&Ctx::new(), &request, &self.bench.log)
    }

    fn publish(&self, capability: &Capability, name: &str) -> Result<()> {
        let request = PublishRequest {
            id: "v",
            access: &self.bench.volume.access,
            capability,
            staging: &self.path("staging"),
            target: &self.path(name),
            read_only: false,
        };
        self.bench.host.publish(&Ctx::new(), &request)
    }

    fn devices(&self) -> usize {
        use std::os::unix::fs::MetadataExt as _;
        let file = fs::metadata(self.bench.backing()).unwrap();
        let listed = Command::new("losetup")
            .args(["--list", "--noheadings", "--output", "BACK-INO"])
            .output()
            .unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        listed.lines().filter(|line| line.trim() == file.ino().to_string()).count()
    }

    /// Everything is taken down, and nothing is left.
    fn end(self) {
        let access = &self.bench.volume.access;
        let (host, ctx) = (&self.bench.host, Ctx::new());
        let users = host.release(self.bench.backing()).unwrap().join(", ");
        assert!(users.contains("pod-a"), "DeleteVolume sees its users: {users}");
        let refused = host.unstage(&ctx, Some(access), &self.path("staging")).unwrap_err().to_string();
        assert!(refused.contains("published at"), "{refused}");
        for name in ["pod-a", "pod-b"] {
            host.unpublish(&ctx, &self.path(name)).unwrap();
        }
        host.unstage(&ctx, Some(access), &self.path("staging")).unwrap();
        assert_eq!(loopdev::find(self.bench.backing()).unwrap(), None, "unstaging detaches");
        assert_eq!(self.devices(), 0);
        assert!(host.release(self.bench.backing()).unwrap().is_empty());
    }
}

#[test]
fn a_mounted_volume_is_known_after_a_restart() {
    let Some(successor) = Successor::new("mount") else { return };
    let capability = mount_capability("ext4", AccessMode::SingleNodeMultiWriter);
    let device = successor.device();
    successor.stage(&capability).unwrap();
    assert_eq!((successor.device(), successor.devices()), (device.clone(), 1), "no second device");
    successor.publish(&capability, "pod-a").unwrap();
    successor.publish(&capability, "pod-b").unwrap();

    let host = &successor.bench.host;
    let file = successor.path("pod-a/probe");
    let quiet = host.quiesce(&[successor.bench.backing().into()], Duration::from_secs(60)).unwrap();
    assert!(!writes(&file), "a snapshot freezes it");
    quiet.resume().unwrap();
    assert!(writes(&file));

    File::options().write(true).open(successor.bench.backing()).unwrap().set_len(128 * MIB).unwrap();
    host.grown(successor.bench.backing()).unwrap();
    assert_eq!(loopdev::size(&device).unwrap(), 128 * MIB);
    let access = &successor.bench.volume.access;
    match host.expand(&Ctx::new(), "v", access, Some(128 * MIB), &successor.path("staging")) {
        Ok(size) => assert_eq!(size, Some(128 * MIB), "this process has CAP_SYS_RESOURCE"),
        Err(error) => assert!(error.to_string().contains("CAP_SYS_RESOURCE"), "{error}"),
    }
    assert!(
        !host
            .stats("v", &successor.bench.volume.access, &successor.path("pod-a"))
            .unwrap()
            .condition
            .abnormal
    );
    successor.end();
}

#[test]
fn a_raw_block_volume_is_known_after_a_restart() {
    let Some(successor) = Successor::new("block") else { return };
    let device = successor.device();
    successor.stage(&raw()).unwrap();
    assert_eq!((successor.device(), successor.devices()), (device.clone(), 1), "no second device");
    successor.publish(&raw(), "pod-a").unwrap();
    successor.publish(&raw(), "pod-b").unwrap();
    let host = &successor.bench.host;
    let refused = host.quiesce(&[successor.bench.backing().into()], Duration::from_secs(60)).err().unwrap();
    assert!(refused.to_string().contains("raw block device"), "{refused}");
    File::options().write(true).open(successor.bench.backing()).unwrap().set_len(128 * MIB).unwrap();
    let access = &successor.bench.volume.access;
    let size = host.expand(&Ctx::new(), "v", access, Some(128 * MIB), &successor.path("pod-a")).unwrap();
    assert_eq!((size, loopdev::size(&device).unwrap()), (Some(128 * MIB), 128 * MIB));
    successor.end();
}
