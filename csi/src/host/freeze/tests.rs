//! With real file systems that are really frozen.

use std::process::{ChildStdin, Command};

use provisioners::local::LocalHost as _;

use super::super::tests::Bench;
use super::super::{device, loopdev, mounts};
use super::*;

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(60);

/// A staged ext4. `None`, and why, where it cannot be.
fn bench() -> Option<Bench> {
    let bench = Bench::new(64 * MIB)?;
    if !bench.host.helper.exists() {
        eprintln!("skip: {} is not built", bench.host.helper.display());
        return None;
    }
    bench.stage("ext4").unwrap();
    Some(bench)
}

fn quiesce(bench: &Bench) -> Box<dyn Quiesced> {
    bench.host.quiesce(&[bench.backing().to_path_buf()], LONG).unwrap()
}

fn markers(bench: &Bench) -> usize {
    fs::read_dir(bench.path("state/frozen")).map_or(0, Iterator::count)
}

/// Whether a write ends soon. The writer is a process of its own, so that a frozen file system cannot hang the test.
fn can_write(bench: &Bench) -> bool {
    super::super::tests::writes(&bench.path("staging/probe"))
}

fn freeze_by_hand(path: &Path, how: &str) {
    assert!(Command::new("fsfreeze").arg(how).arg(path).status().unwrap().success());
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..200 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("not in time: {what}");
}

/// The helper that guards what is below a path: it has it open.
fn guardian(path: &Path) -> i32 {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let guards = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        String::from_utf8_lossy(&line).contains("node-helper\0thaw")
            && open.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == path))
    };
    pids.find(guards).expect("a helper")
}

#[test]
fn a_frozen_file_system_thaws_on_resume_on_time_and_when_dropped() {
    let Some(bench) = bench() else { return };
    let quiet = quiesce(&bench);
    assert!(!can_write(&bench), "it is frozen");
    quiet.resume().unwrap();
    assert!(can_write(&bench));

    let files = [bench.backing().to_path_buf()];
    let quiet = bench.host.quiesce(&files, Duration::from_millis(50)).unwrap();
    eventually("thawed, the time is over", || can_write(&bench));
    assert_eq!(quiet.resume().unwrap_err().label(), "deadline");

    drop(quiesce(&bench));
    assert!(can_write(&bench), "dropped without resume");
    eventually("no marker", || markers(&bench) == 0);
    bench.unstage().unwrap();
}

#[test]
fn a_killed_helper_leaves_nothing_frozen() {
    let Some(bench) = bench() else { return };
    let quiet = quiesce(&bench);
    let helper = guardian(&bench.path("staging"));
    assert!(Command::new("kill").args(["-9", &helper.to_string()]).status().unwrap().success());
    eventually("thawed by the driver", || can_write(&bench));
    let error = quiet.resume().unwrap_err();
    assert_eq!(error.label(), "unavailable", "{error}");
    // Repeated, the copy is made.
    quiesce(&bench).resume().unwrap();
    bench.unstage().unwrap();
}

#[test]
fn a_killed_driver_leaves_nothing_frozen() {
    let Some(bench) = bench() else { return };
    let mount = mounts::on(&bench.path("staging")).unwrap().pop().unwrap();
    let held = [hold(&mount).unwrap()];
    let marker = Marker::write(&bench.path("state"), &held).unwrap();
    let (events, _happens) = mpsc::channel();
    let mut guardian =
        Guardian::start(&bench.host.helper, &bench.host.outside, &held, marker.file(), events).unwrap();
    ioctl::freeze(&held[0].dir).unwrap();
    assert!(!can_write(&bench));
    // What a process's end does to its pipe.
    let life: ChildStdin = guardian.die();
    drop(life);
    eventually("thawed by the helper", || can_write(&bench));
    drop((held, guardian));
    bench.unstage().unwrap();
}

#[test]
fn what_nobody_could_thaw_is_thawed_by_the_next_start() {
    let Some(bench) = bench() else { return };
    let (staging, frozen) = (bench.path("staging"), bench.path("state/frozen"));
    fs::create_dir_all(&frozen).unwrap();
    let mount = mounts::on(&staging).unwrap().pop().unwrap();

    // An earlier driver's, by path; and ours, by the device, where the path is another in this mount name space.
    let write = || {
        let elsewhere = Held { path: "/var/elsewhere".into(), ..hold(&mount).unwrap() };
        Marker::write(&bench.path("state"), &[elsewhere]).unwrap().forget();
    };
    for old in [true, false] {
        if old {
            fs::write(frozen.join("dead"), format!("{}\n", staging.display())).unwrap();
        } else {
            write();
        }
        freeze_by_hand(&staging, "-f");
        // One that cannot be read stays, and keeps no other from being thawed.
        fs::write(frozen.join("damaged"), "{\"schema\":9}").unwrap();
        assert_eq!(recover(&bench.path("state")).unwrap(), [format!("thawed {}", staging.display())]);
        assert!(can_write(&bench));
        assert_eq!(markers(&bench), 1, "the damaged one");
        fs::remove_file(frozen.join("damaged")).unwrap();
    }
    bench.unstage().unwrap();
}

/// Two drivers at once: the new one does not thaw what the old one copies.
#[test]
fn what_a_living_driver_has_frozen_is_its_own() {
    let Some(bench) = bench() else { return };
    let quiet = quiesce(&bench);
    assert_eq!(recover(&bench.path("state")).unwrap(), Vec::<String>::new());
    assert!(!can_write(&bench), "it is still frozen");
    quiet.resume().unwrap();
    assert!(can_write(&bench));
    eventually("no marker", || markers(&bench) == 0);
    bench.unstage().unwrap();
}

/// A file system on a device that does not answer: its file is on one that is frozen.
#[test]
fn a_freeze_that_hangs_ends_in_time_and_is_thawed_when_it_comes_through() {
    let (Some(below), Some(above)) = (bench(), Bench::new(MIB)) else { return };
    let file = below.path("staging/inner.img");
    File::create(&file).unwrap().set_len(16 * MIB).unwrap();
    assert!(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file).status().unwrap().success());
    let device = loopdev::attach(&file, false, loopdev::OURS).unwrap().0;
    let staging = above.path("staging");
    fs::create_dir_all(&staging).unwrap();
    assert!(mounts::mount_device(&device, &staging, "ext4", &[], false).unwrap());
    fs::write(staging.join("dirty"), vec![1; 1 << 20]).unwrap();

    freeze_by_hand(&below.path("staging"), "-f");
    let freezer = Freezer { patience: Duration::from_secs(1), ..above.host.freezer() };
    let error = freezer.freeze(&device::mounts(&device).unwrap(), LONG).err().unwrap();
    assert_eq!(error.label(), "deadline", "{error}");
    freeze_by_hand(&below.path("staging"), "-u");
    eventually("no marker", || markers(&above) == 0);
    assert!(can_write(&above), "thawed");

    mounts::unmount_all(&provisioners::Ctx::new(), &staging).unwrap();
    loopdev::detach(&device, || Ok(true)).unwrap();
    below.unstage().unwrap();
}

#[test]
fn a_mount_that_was_replaced_is_not_frozen() {
    let Some(bench) = bench() else { return };
    let mut mount = mounts::on(&bench.path("staging")).unwrap().pop().unwrap();
    mount.id += 1;
    assert_eq!(bench.host.freezer().freeze(&[mount], LONG).err().unwrap().label(), "unavailable");
    assert!(can_write(&bench));
    bench.unstage().unwrap();
}

impl Guardian {
    /// The driver's end of its pipe.
    fn die(&mut self) -> ChildStdin {
        self.life.take().unwrap()
    }
}

impl Marker {
    /// As if its writer had died.
    fn forget(self) {
        let copy = fs::read(&self.path).unwrap();
        let path = self.path.clone();
        drop(self);
        fs::write(path, copy).unwrap();
    }
}
