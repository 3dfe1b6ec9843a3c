//! With real loop devices, file systems and mounts.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::sync::Mutex;

use provisioners::local::{Lease, LocalHost as _, Sharing};
use provisioners::{AccessMode, AccessType, Capability};

use provisioners::NodeVolume;

use super::*;

mod freeing;
mod hanging;
mod health;
mod replay;
mod restart;
mod staging;

const MIB: u64 = 1 << 20;

/// A host, a scratch directory and a backing file; on drop all is unmounted and detached.
pub(super) struct Bench {
    pub(super) host: Host,
    dir: tempfile::TempDir,
    volume: NodeVolume,
    log: Notes,
}

/// Keeps what would be written to the record.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl FormatLog for Notes {
    fn note(&self, note: &FsNote) -> Result<()> {
        self.0.lock().unwrap().push(match note {
            FsNote::Raw => "raw".to_owned(),
            FsNote::Making { fs, .. } => format!("begin {fs}"),
            FsNote::Made(fs) => format!("done {fs}"),
        });
        Ok(())
    }

    fn stored(&self) -> Result<Option<Vec<(u64, u64)>>> {
        Ok(None)
    }

    fn attaching(&self, _: &[String], _: bool) -> Result<()> {
        Ok(())
    }

    fn attached(&self, _: Option<&str>) -> Result<()> {
        Ok(())
    }
}

/// Whether a write ends soon. The writer is a process of its own, so that a frozen file system cannot hang the test.
pub fn writes(file: &Path) -> bool {
    let mut child = Command::new("dd")
        .args(["if=/dev/zero", "bs=4096", "count=1", "conv=fsync"])
        .arg(format!("of={}", file.display()))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..100 {
        if let Some(status) = child.try_wait().unwrap() {
            return status.success();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // A writer that waits for the thaw cannot be killed; it ends with it.
    false
}

/// csi-driver as it was built beside this test.
fn helper() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().join("csi-driver")
}

impl Bench {
    /// `None`, and why, when this process is not root.
    pub(super) fn new(size: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skip: loop devices and mounts need root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let backing = dir.path().canonicalize().unwrap().join("disk.img");
        File::create(&backing).unwrap().set_len(size).unwrap();
        let state_dir = dir.path().canonicalize().unwrap().join("state");
        let options = HostOptions {
            state_dir,
            volume_roots: vec![dir.path().into()],
            helper: helper(),
            ..HostOptions::default()
        };
        let volume = NodeVolume {
            access: Access::LoopFile { path: backing },
            size: Some(size),
            fs_type: None,
            mkfs_options: Vec::new(),
            root_mode: Some(0o750),
            formatted: None,
            raw: false,
            vouched: None,
            permit: provisioners::Permit::default(),
        };
        Some(Self { host: Host::new(options), dir, volume, log: Notes::default() })
    }

    /// The backing file's loop device.
    fn attach(&self) -> PathBuf {
        let _lease = Lease::take(&Ctx::new(), self.backing(), Sharing::Alone).unwrap();
        loopdev::attach(self.backing(), false, &self.host.label()).unwrap().0
    }

    pub(super) fn backing(&self) -> &Path {
        let Access::LoopFile { path } = &self.volume.access else { unreachable!() };
        path
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    pub(super) fn stage(&self, fs: &str) -> Result<()> {
        self.stage_as(&mount_capability(fs, AccessMode::SingleNodeWriter))
    }

    fn stage_as(&self, capability: &Capability) -> Result<()> {
        let staging = self.path("staging");
        let request = StageRequest { id: "v", volume: &self.volume, capability, staging: &staging };
        self.host.stage(&Ctx::new(), &request, &self.log)
    }

    pub(super) fn unstage(&self) -> Result<()> {
        self.host.unstage(&Ctx::new(), Some(&self.volume.access), &self.path("staging"))
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        File::options().write(true).open(self.backing()).unwrap().write_all_at(bytes, offset).unwrap();
    }

    /// The stage is refused, the text has these words, the file is as it was, and no device is left.
    #[track_caller]
    fn refused(&self, fs: &str, words: &[&str]) {
        let before = fs::read(self.backing()).unwrap();
        let error = self.stage(fs).unwrap_err();
        assert_eq!(error.label(), "refused", "{error}");
        words.iter().for_each(|w| assert!(error.to_string().contains(w), "{w:?} is not in: {error}"));
        assert!(before == fs::read(self.backing()).unwrap(), "the refusal changed the data");
        assert!(self.log.0.lock().unwrap().is_empty());
        assert_eq!(loopdev::find(self.backing()).unwrap(), None, "a loop device was left");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let below = self.dir.path().canonicalize().unwrap();
        for mount in mounts::select(|m| m.target.starts_with(&below)).unwrap().iter().rev() {
            let _ = rustix::mount::unmount(&*mount.target, rustix::mount::UnmountFlags::DETACH);
        }
        for it in loopdev::all().unwrap() {
            if it.shown.starts_with(&below) {
                let _ = loopdev::detach(&it.device, || Ok(true));
            }
        }
    }
}

fn mount_capability(fs: &str, mode: AccessMode) -> Capability {
    Capability { access: AccessType::Mount { fs_type: fs.into(), flags: Vec::new(), group: None }, mode }
}

#[test]
fn foreign_content_is_never_formatted() {
    let mut mbr = [0; 512];
    mbr[510..].copy_from_slice(b"\x55\xaa");
    (mbr[450], mbr[458]) = (0x83, 1);
    let cases: [(&str, u64, &[u8]); 6] = [
        ("LUKS", 0, b"LUKS\xba\xbe\0\x02"),
        ("LVM2", 512, b"LABELONE"),
        ("MBR", 0, &mbr),
        ("GPT", 512, b"EFI PART"),
        ("unknown data", 31 * MIB + 512, &[1; 512]),
        ("swap", 4086, b"SWAPSPACE2"),
    ];
    for (word, offset, bytes) in cases {
        let Some(bench) = Bench::new(64 * MIB) else { return };
        bench.write(offset, bytes);
        bench.refused("ext4", &[word, "not formatting"]);
    }
}

#[test]
fn another_file_system_is_named() {
    let Some(bench) = Bench::new(64 * MIB) else { return };
    assert!(Command::new("mkfs.ext4").arg("-qF").arg(bench.backing()).status().unwrap().success());
    bench.refused("xfs", &["ext4", "xfs"]);
}

#[test]
fn a_device_that_cannot_be_read_is_refused() {
    let Some(bench) = Bench::new(64 * MIB) else { return };
    bench.write(0, &[0; 4096]);
    let device = bench.attach();
    // The device keeps its size; what it reads past the new end of the file is an I/O error.
    File::options().write(true).open(bench.backing()).unwrap().set_len(MIB).unwrap();
    let device_file = File::open(&device).unwrap();
    let content = probe::probe(&Ctx::new(), &device_file, 64 * MIB, &probe::Known::Nothing);
    drop(device_file);
    let error = content.unwrap_err().to_string();
    assert!(error.contains("could not be read") && error.contains("not formatting"), "{error}");
    loopdev::detach(&device, || Ok(true)).unwrap();
    assert!(
        bench.stage("ext4").unwrap_err().to_string().contains("its record says"),
        "the size is wrong, too"
    );
}

#[test]
fn a_device_of_one_sector_and_one_of_another_size_are_refused() {
    let Some(mut bench) = Bench::new(512) else { return };
    let error = bench.stage("ext4").unwrap_err();
    assert!(error.to_string().contains("mkfs.ext4"), "{error}");
    bench.volume.size = Some(1024);
    *bench.log.0.lock().unwrap() = Vec::new();
    bench.refused("ext4", &["512 bytes", "1024"]);
}

#[test]
fn formatted_once_and_blank_now_is_refused() {
    let Some(mut bench) = Bench::new(64 * MIB) else {
        return;
    };
    bench.volume.formatted = Some("ext4".into());
    bench.refused("ext4", &["formatted with ext4 before", "not formatting"]);
}

/// The driver was killed after the stamp and before mkfs: nothing but the stamp is there, and it is begun again.
#[test]
fn a_format_that_wrote_nothing_is_begun_again() {
    let Some(bench) = Bench::new(64 * MIB) else {
        return;
    };
    let file = File::options().read(true).write(true).open(bench.backing()).unwrap();
    format::Stamp::new("v", "ext4").write(&file).unwrap();
    bench.stage("ext4").unwrap();
    assert_eq!(*bench.log.0.lock().unwrap(), ["begin ext4", "done ext4"]);
    bench.unstage().unwrap();
    assert_eq!(format::Stamp::read(&file, 64 * MIB).unwrap(), None, "the stamp was left");
}

#[test]
fn half_a_file_system_is_refused_unless_an_operator_gives_it_up() {
    let Some(mut bench) = Bench::new(64 * MIB) else {
        return;
    };
    bench.volume.permit.how = "say CODE".into();
    bench.write(8 * MIB, b"half a file system");
    bench.refused("ext4", &["unknown data at byte 8388608", "not formatting", "say "]);
    let error = bench.stage("ext4").unwrap_err().to_string();
    bench.volume.permit.code = error.rsplit_once("say ").map(|(_, code)| code.to_owned());
    bench.stage("ext4").unwrap();
    assert_eq!(*bench.log.0.lock().unwrap(), ["begin ext4", "done ext4"]);
    bench.unstage().unwrap();
}

/// mkfs goes on after its driver was killed: nobody touches the device until it has ended.
#[test]
fn a_device_that_somebody_formats_is_left_alone() {
    let Some(bench) = Bench::new(64 * MIB) else { return };
    let device = bench.attach();
    let mut orphan = Command::new("sh")
        .args(["-c", "exec sleep 60"])
        .stdin(std::process::Stdio::from({
            let lock = File::open(&device).unwrap();
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
            lock
        }))
        .spawn()
        .unwrap();
    let error = bench.stage("ext4").unwrap_err();
    assert!(matches!(&error, Error::Unavailable(why) if why.contains("is in use by")), "{error}");
    assert!(bench.log.0.lock().unwrap().is_empty());
    orphan.kill().unwrap();
    orphan.wait().unwrap();
    bench.stage("ext4").unwrap();
    bench.unstage().unwrap();
}

#[test]
fn what_was_a_raw_block_device_is_noted_and_never_formatted() {
    let Some(mut bench) = Bench::new(64 * MIB) else { return };
    let block = Capability { access: AccessType::Block, mode: AccessMode::SingleNodeWriter };
    bench.stage_as(&block).unwrap();
    assert_eq!(*bench.log.0.lock().unwrap(), ["raw"]);
    bench.unstage().unwrap();
    bench.log.0.lock().unwrap().clear();
    bench.volume.raw = true;
    bench.refused("ext4", &["used as a raw block device before", "not formatting"]);
}

#[test]
fn a_read_only_stage_makes_nothing_and_later_mounts_read_only() {
    let Some(bench) = Bench::new(64 * MIB) else { return };
    let reader = mount_capability("ext4", AccessMode::SingleNodeReaderOnly);
    assert!(
        bench
            .stage_as(&reader)
            .unwrap_err()
            .to_string()
            .contains("holds nothing and was asked for read-only")
    );
    bench.stage("ext4").unwrap();
    assert_eq!(bench.stage_as(&reader).unwrap_err().label(), "already_exists", "it is staged read-write");
    bench.unstage().unwrap();
    bench.stage_as(&reader).unwrap();
    assert!(fs::write(bench.path("staging/x"), "x").is_err());
    bench.unstage().unwrap();
}

#[test]
fn a_fresh_root_has_the_mode_and_a_group_owns_the_files() {
    use std::os::unix::fs::MetadataExt as _;
    let Some(bench) = Bench::new(64 * MIB) else { return };
    bench.stage("ext4").unwrap();
    assert_eq!(fs::metadata(bench.path("staging")).unwrap().mode() & 0o7777, 0o750);
    fs::write(bench.path("staging/file"), "x").unwrap();
    let access =
        AccessType::Mount { fs_type: "ext4".into(), flags: vec!["noatime".into()], group: Some(4321) };
    bench.stage_as(&Capability { access, mode: AccessMode::SingleNodeWriter }).unwrap();
    assert_eq!(fs::metadata(bench.path("staging/file")).unwrap().gid(), 4321);
    bench.unstage().unwrap();
}

#[test]
fn a_dirty_journal_is_replayed_and_damage_is_refused() {
    let Some(mut bench) = Bench::new(64 * MIB) else {
        return;
    };
    bench.stage("ext4").unwrap();
    fs::write(bench.path("staging/file"), "kept").unwrap();
    File::open(bench.path("staging/file")).unwrap().sync_all().unwrap();
    // A copy while it is mounted is what a power cut leaves.
    let copy = bench.path("copy.img");
    fs::copy(bench.backing(), &copy).unwrap();
    bench.unstage().unwrap();
    fs::rename(&copy, bench.backing()).unwrap();
    bench.volume.formatted = Some("ext4".into());
    bench.stage("ext4").unwrap();
    assert_eq!(fs::read_to_string(bench.path("staging/file")).unwrap(), "kept");
    bench.unstage().unwrap();
    // The inode table overwritten: e2fsck -p will not decide what to keep.
    bench.write(1024 + 0x400, &vec![0xff; 60 * 1024]);
    let error = bench.stage("ext4").unwrap_err();
    assert!(error.to_string().contains("nothing was forced"), "{error}");
}

#[test]
fn ext4_grows_when_it_is_staged_and_says_what_it_lacks_when_mounted() {
    let Some(mut bench) = Bench::new(64 * MIB) else {
        return;
    };
    bench.stage("ext4").unwrap();
    File::options().write(true).open(bench.backing()).unwrap().set_len(128 * MIB).unwrap();
    bench.volume.size = Some(128 * MIB);
    match bench.host.expand(&Ctx::new(), "v", &bench.volume.access, bench.volume.size, &bench.path("staging"))
    {
        Ok(size) => assert_eq!(size, Some(128 * MIB), "this process has CAP_SYS_RESOURCE"),
        Err(error) => assert!(error.to_string().contains("CAP_SYS_RESOURCE"), "{error}"),
    }
    bench.unstage().unwrap();
    bench.volume.formatted = Some("ext4".into());
    bench.stage("ext4").unwrap();
    let total = bench.host.stats("v", &bench.volume.access, &bench.path("staging")).unwrap().bytes.total;
    assert!(total > 100 * MIB, "{total}");
    bench.unstage().unwrap();
}

#[test]
fn a_device_is_found_again_by_its_file_and_never_doubled() {
    let Some(bench) = Bench::new(MIB) else { return };
    let device = bench.attach();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(bench.attach(), device));
        }
    });
    assert_eq!(loopdev::all().unwrap().iter().filter(|it| it.shown == bench.backing()).count(), 1);
    assert!(bench.host.release(bench.backing()).unwrap().is_empty());
    assert_eq!(loopdev::find(bench.backing()).unwrap(), None);
}

#[test]
fn an_open_device_is_refused_with_the_name_of_its_user() {
    let Some(bench) = Bench::new(MIB) else { return };
    let device = bench.attach();
    let open = File::open(&device).unwrap();
    let error = loopdev::detach(&device, || Ok(true)).unwrap_err().to_string();
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    drop(open);
    loopdev::detach(&device, || Ok(true)).unwrap();
}

#[test]
fn a_read_only_publication_cut_short_is_finished() {
    let Some(bench) = Bench::new(64 * MIB) else { return };
    bench.stage("ext4").unwrap();
    let (staging, target) = (bench.path("staging"), bench.path("target"));
    let capability = mount_capability("ext4", AccessMode::SingleNodeWriter);
    let (volume, id) = (&bench.volume, "v");
    let request = PublishRequest {
        id,
        access: &volume.access,
        capability: &capability,
        staging: &staging,
        target: &target,
        read_only: true,
    };
    bench.host.publish(&Ctx::new(), &request).unwrap();
    bench.host.unpublish(&Ctx::new(), &target).unwrap();
    // As a crash between the bind and its remount leaves it: the marker, and a target that can be written.
    fs::create_dir(&target).unwrap();
    rustix::mount::mount_bind(&staging, &target).unwrap();
    let writable = bench.host.publish(&Ctx::new(), &request).unwrap_err();
    assert_eq!(
        writable.label(),
        "already_exists",
        "without the marker it is somebody's read-write publication"
    );
    bench.host.begin_read_only(&target).unwrap();
    bench.host.publish(&Ctx::new(), &request).unwrap();
    assert!(fs::write(target.join("x"), "x").is_err());
    bench.host.unpublish(&Ctx::new(), &target).unwrap();
    bench.unstage().unwrap();
}
