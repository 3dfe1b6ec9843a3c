use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;

use super::super::Reserve;
use super::*;

/// A file system mounted for one test.
struct Mount {
    point: PathBuf,
    _dir: TempDir,
}

impl Mount {
    fn with(arguments: &[&str], prepare: impl FnOnce(&Path) -> Option<PathBuf>) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("mnt");
        std::fs::create_dir(&point).unwrap();
        let device = prepare(dir.path())?;
        let output = Command::new("mount").args(arguments).arg(&device).arg(&point).output();
        match output {
            Ok(output) if output.status.success() => Some(Self { point, _dir: dir }),
            other => {
                eprintln!("skip: mount {arguments:?}: {other:?}");
                None
            }
        }
    }

    fn tmpfs(size: &str) -> Option<Self> {
        Self::with(&["-t", "tmpfs", "-o", size], |_| Some("tmpfs".into()))
    }

    fn image(fs_type: &str, size: u64) -> Option<Self> {
        Self::with(&["-o", "loop"], |dir| {
            let image = dir.join("image");
            std::fs::File::create(&image).unwrap().set_len(size).unwrap();
            match Command::new(format!("mkfs.{fs_type}")).arg("-q").arg(&image).output() {
                Ok(output) if output.status.success() => Some(image),
                other => {
                    eprintln!("skip: mkfs.{fs_type}: {other:?}");
                    None
                }
            }
        })
    }

    fn bench(&self) -> Bench {
        let path = self.point.join("root");
        Bench::with(&["default"], |config| {
            config.roots.insert("default".into(), path);
            config.reserve = Reserve::Bytes(0);
        })
    }

    fn root(&self, path: &str) -> PathBuf {
        self.point.join("root").join(path)
    }

    fn assert_tidy(&self) {
        assert!(names(&self.root(".volumectl/tmp")).is_empty());
        assert!(names(&self.root(".volumectl/trash")).is_empty());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.point, rustix::mount::UnmountFlags::DETACH);
    }
}

fn write(path: &Path, mib: usize) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![3; mib << 20], 0).unwrap();
}

#[tokio::test]
async fn a_full_file_system_leaves_nothing_half_made() {
    for mount in [Mount::tmpfs("size=64m"), Mount::image("ext4", 80 * MIB)].into_iter().flatten() {
        let bench = mount.bench();
        let id = bench.create(VolumeSpec { range: at_least(40 * MIB), ..spec("v") }).await.unwrap().id;
        write(&mount.root("v/disk.img"), 40);
        let too_much = VolumeSpec { range: at_least(32 * MIB), ..spec("w") };
        refused(bench.create(too_much).await, "exhausted", "33554432 bytes asked");
        refused(bench.snapshot("s", &id).await, "exhausted", "bytes asked");
        let clone = spec_from("c", Source::Volume(id.clone()));
        refused(bench.create(clone).await, "exhausted", "bytes asked");
        refused(bench.local.expand(&Ctx::new(), &id, at_least(90 * MIB)).await, "exhausted", "bytes asked");
        assert_eq!(mount.root("v/disk.img").metadata().unwrap().len(), 40 * MIB);
        assert!(names(&mount.root(".volumectl/snapshots")).is_empty());
        mount.assert_tidy();
        assert_eq!(std::fs::read(mount.root("v/disk.img")).unwrap(), vec![3; 40 << 20]);
        bench.delete(&id).await.unwrap();
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_during_a_copy_is_exhausted() {
    let Some(mount) = Mount::tmpfs("size=64m") else {
        return;
    };
    let bench = mount.bench();
    let id = bench.create(VolumeSpec { range: at_least(24 * MIB), ..spec("v") }).await.unwrap().id;
    write(&mount.root("v/disk.img"), 24);
    // While writes are stopped, others fill the disk.
    let filler = mount.point.join("filler");
    *bench.host.while_quiet.lock().unwrap() = Some(Box::new({
        let filler = filler.clone();
        move || std::fs::write(&filler, vec![1; 30 << 20]).unwrap()
    }));
    refused(bench.snapshot("s", &id).await, "exhausted", "");
    mount.assert_tidy();
    *bench.host.while_quiet.lock().unwrap() = None;
    std::fs::remove_file(filler).unwrap();
    bench.snapshot("s", &id).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_in_a_tree_copy_or_a_record_is_exhausted_and_harmless() {
    let Some(mount) = Mount::tmpfs("size=32m") else {
        return;
    };
    let bench = mount.bench();
    let wish = VolumeSpec { range: at_least(MIB), ..spec_with("d", &[("type", "directory")]) };
    let directory = bench.create(wish).await.unwrap().id;
    std::fs::write(mount.root("d/data/big"), vec![1; 20 << 20]).unwrap();
    refused(bench.snapshot("s", &directory).await, "exhausted", "");
    mount.assert_tidy();
    let mut rest = 12 << 20;
    while rest >= 4096 {
        match std::fs::write(mount.root(&format!("filler{rest}")), vec![1; rest]) {
            Ok(()) => {}
            Err(_) => rest /= 2,
        }
    }
    let before = std::fs::read(mount.root("d/volume.json")).unwrap();
    let full = bench.local.modify(&Ctx::new(), &directory, &map(&[("mode", "0700")])).await;
    refused(full, "exhausted", "volume.json");
    assert_eq!(std::fs::read(mount.root("d/volume.json")).unwrap(), before);
    assert_eq!(names(&mount.root("d")), ["data", "volume.json"]);
    bench.delete(&directory).await.unwrap();
    mount.assert_tidy();
}

#[tokio::test]
async fn thick_volumes_take_their_room_or_fail_cleanly() {
    let Some(mount) = Mount::image("ext4", 80 * MIB) else {
        return;
    };
    let bench = mount.bench();
    let thick = |name: &str| spec_with(name, &[("thick", "true")]);
    let id = bench.create(VolumeSpec { range: at_least(30 * MIB), ..thick("v") }).await.unwrap().id;
    assert!(mount.root("v/disk.img").metadata().unwrap().blocks() * 512 >= 30 * MIB);
    refused(bench.create(VolumeSpec { range: at_least(50 * MIB), ..thick("w") }).await, "exhausted", "asked");
    refused(bench.local.expand(&Ctx::new(), &id, at_least(100 * MIB)).await, "exhausted", "asked");
    assert_eq!(mount.root("v/disk.img").metadata().unwrap().len(), 30 * MIB);
    mount.assert_tidy();
}

#[tokio::test]
async fn blocks_are_shared_where_the_file_system_can() {
    for fs_type in ["xfs", "btrfs"] {
        let Some(mount) = Mount::image(fs_type, 400 * MIB) else {
            continue;
        };
        let bench = mount.bench();
        let id = bench.create(VolumeSpec { range: at_least(64 * MIB), ..spec("v") }).await.unwrap().id;
        write(&mount.root("v/disk.img"), 64);
        rustix::fs::syncfs(std::fs::File::open(&mount.point).unwrap()).unwrap();
        let free = || rustix::fs::statvfs(&mount.point).map(|it| it.f_bavail * it.f_frsize).unwrap();
        let before = free();
        // A raw device in use cannot be kept quiet, but one step is enough.
        bench.host.refuse_quiesce.store(true, Relaxed);
        let snapshot = bench.snapshot("s", &id).await.unwrap();
        bench.host.refuse_quiesce.store(false, Relaxed);
        let clone = spec_from("c", Source::Volume(id.clone()));
        bench.create(clone).await.unwrap();
        bench.create(spec_from("r", Source::Snapshot(snapshot.id))).await.unwrap();
        rustix::fs::syncfs(std::fs::File::open(&mount.point).unwrap()).unwrap();
        assert!(before.saturating_sub(free()) < 32 * MIB, "{fs_type}: {before} {}", free());
        for copy in ["c/disk.img", "r/disk.img"] {
            assert_eq!(std::fs::read(mount.root(copy)).unwrap(), vec![3; 64 << 20], "{fs_type}");
        }
    }
}

#[tokio::test]
async fn a_thick_copy_shares_no_blocks() {
    let Some(mount) = Mount::image("xfs", 400 * MIB) else {
        return;
    };
    let bench = mount.bench();
    let id = bench.make("v").await.id;
    write(&mount.root("v/disk.img"), 16);
    let free = || {
        rustix::fs::syncfs(std::fs::File::open(&mount.point).unwrap()).unwrap();
        rustix::fs::statvfs(&mount.point).map(|it| it.f_bavail * it.f_frsize).unwrap()
    };
    let before = free();
    let thick = VolumeSpec { parameters: map(&[("thick", "true")]), ..spec_from("t", Source::Volume(id)) };
    bench.create(thick).await.unwrap();
    assert!(before - free() >= 16 * MIB, "{before} {}", free());
}

#[tokio::test]
async fn a_read_only_root_fails_the_check() {
    let Some(mount) = Mount::tmpfs("size=8m") else {
        return;
    };
    let bench = mount.bench();
    bench.local.check().await.unwrap();
    let remount = Command::new("mount").args(["-o", "remount,ro"]).arg(&mount.point).status();
    if !remount.is_ok_and(|status| status.success()) {
        eprintln!("skip: remounting read-only is not possible here");
        return;
    }
    refused(bench.local.check().await, "unavailable", "read-only file system");
}

/// Giving a volume up needs no space: neither its record, which becomes shorter, nor its removal.
#[tokio::test]
async fn a_volume_on_a_full_root_is_unpublished_and_deleted() {
    for mount in [Mount::tmpfs("size=24m"), Mount::image("ext4", 32 * MIB)].into_iter().flatten() {
        let bench = mount.bench();
        let id = bench.make("v").await.id;
        let node = NodeId::from("worker-1");
        let request = PublishRequest { node: node.clone(), capability: mounted(""), read_only: false };
        bench.local.publish(&Ctx::new(), &id, &request).await.unwrap();
        let mut full = std::fs::File::create(mount.root("full")).unwrap();
        while std::io::Write::write_all(&mut full, &[1; 4096]).is_ok() {}
        let error = std::fs::write(mount.root("more"), [1; 8192]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        bench.local.unpublish(&Ctx::new(), &id, Some(&node)).await.unwrap();
        assert!(bench.local.get(&id).await.unwrap().published.is_empty());
        bench.delete(&id).await.unwrap();
        mount.assert_tidy();
        assert!(!mount.root("v").exists());
    }
}
