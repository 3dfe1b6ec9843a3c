use std::process::Command;

use super::*;

/// A directory that a file system is mounted on; unmounted on drop.
struct Mounted(tempfile::TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn mounted(arguments: &[&str]) -> Mounted {
    let dir = tempfile::tempdir().unwrap();
    assert!(Command::new("mount").args(arguments).arg(dir.path()).status().unwrap().success());
    Mounted(dir)
}

fn run(program: &str, arguments: &[&str]) {
    assert!(
        Command::new(program).args(arguments).stdout(std::process::Stdio::null()).status().unwrap().success()
    );
}

/// What the kernel says of a device is what stat(2) says of its file, on file systems whose device numbers are their own:
/// subvolumes of btrfs, overlays, memory.
#[test]
fn a_file_is_known_by_device_and_inode_on_every_kind_of_file_system() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skip: loop devices and mounts need root");
    }
    let own = tempfile::tempdir().unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let image = own.path().join("btrfs");
    File::create(&image).unwrap().set_len(256 << 20).unwrap();
    run("mkfs.btrfs", &["-q", &text(&image)]);
    let btrfs = mounted(&["-o", "loop", &text(&image)]);
    run("btrfs", &["-q", "subvolume", "create", &text(&btrfs.0.path().join("sub"))]);
    let memory = mounted(&["-t", "tmpfs", "none"]);
    for name in ["lower", "upper", "work"] {
        fs::create_dir(memory.0.path().join(name)).unwrap();
    }
    File::create(memory.0.path().join("lower/below.img")).unwrap().set_len(1 << 20).unwrap();
    let at = text(memory.0.path());
    let overlay = mounted(&[
        "-t",
        "overlay",
        "none",
        "-o",
        &format!("lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work"),
    ]);
    for dir in
        [own.path().to_owned(), btrfs.0.path().join("sub"), memory.0.path().into(), overlay.0.path().into()]
    {
        for name in ["disk.img", "below.img"] {
            let file = dir.join(name);
            if name == "disk.img" {
                File::create(&file).unwrap().set_len(1 << 20).unwrap();
            } else if !file.exists() {
                continue;
            }
            assert_eq!(find(&file).unwrap(), None, "{}", file.display());
            let (device, fresh) = attach(&file, false, OURS).unwrap();
            assert!(fresh);
            assert_eq!(find(&file).unwrap(), Some(device.clone()), "{}", file.display());
            assert_eq!(label(&device).unwrap().as_deref(), Some(OURS));
            // Its names change; it does not.
            let moved = dir.join("moved");
            fs::create_dir(&moved).unwrap();
            fs::rename(&file, moved.join(name)).unwrap();
            assert_eq!(attach(&moved.join(name), false, OURS).unwrap(), (device.clone(), false));
            detach(&device, || Ok(true)).unwrap();
            assert_eq!(find(&moved.join(name)).unwrap(), None);
            fs::remove_dir_all(&moved).unwrap();
        }
    }
}

/// A device's number is used again for another file: what was known of it is asked anew.
#[test]
fn a_device_number_that_is_used_again_is_another_device() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skip: loop devices need root");
    }
    let dir = tempfile::tempdir().unwrap();
    let files = ["a/disk.img", "b/disk.img"].map(|name| dir.path().join(name));
    for file in &files {
        fs::create_dir(file.parent().unwrap()).unwrap();
        File::create(file).unwrap().set_len(1 << 20).unwrap();
    }
    let (device, _) = attach(&files[0], false, OURS).unwrap();
    let before = attached(&device).unwrap().unwrap();
    assert_eq!(find(&files[0]).unwrap(), Some(device.clone()));
    detach(&device, || Ok(true)).unwrap();
    ioctl::configure(
        &open(&device).unwrap(),
        &File::options().read(true).write(true).open(&files[1]).unwrap(),
        false,
        OURS,
    )
    .unwrap();
    assert_ne!(attached(&device).unwrap().unwrap().sequence, before.sequence);
    assert_eq!(find(&files[0]).unwrap(), None);
    assert_eq!(find(&files[1]).unwrap(), Some(device.clone()));
    detach(&device, || Ok(true)).unwrap();
}

#[test]
fn a_kernel_without_loop_configure_attaches_in_steps() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skip: loop devices need root");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    let control = File::open("/dev/loop-control").unwrap();
    let label = format!("{OURS}steps");
    let device = loop {
        let device = PathBuf::from(format!("/dev/loop{}", ioctl::free(&control).unwrap()));
        match ioctl::configure_as_before(&open(&device).unwrap(), &file, &label) {
            Ok(()) => break device,
            // Another test was faster.
            Err(error) => assert_eq!(error.raw_os_error(), Some(Errno::BUSY.raw_os_error()), "{error}"),
        }
    };
    assert_eq!(find(&path).unwrap(), Some(device.clone()));
    assert_eq!(super::label(&device).unwrap(), Some(label));
    assert_eq!(size(&device).unwrap(), 1 << 20);
    detach(&device, || Ok(true)).unwrap();
    assert_eq!(find(&path).unwrap(), None);
}

/// Between the look at a device and its detachment somebody else detaches it and attaches another file: that one's device
/// is another, and stays.
#[test]
fn a_device_that_becomes_anothers_is_not_detached() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skip: loop devices need root");
    }
    let own = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| own.path().join(name));
    for file in [&first, &second] {
        File::create(file).unwrap().set_len(1 << 20).unwrap();
    }
    let (device, _) = attach(&first, false, OURS).unwrap();
    let mut other = None;
    detach(&device, || {
        run("losetup", &["-d", device.to_str().unwrap()]);
        other = Some(attach(&second, false, OURS)?.0);
        Ok(find(&first)?.as_ref() == Some(&device))
    })
    .unwrap();
    let other = other.unwrap();
    assert_ne!(other, device, "its number was given to another file while it was open");
    assert_eq!(find(&second).unwrap(), Some(other.clone()));
    assert_eq!(find(&first).unwrap(), None);
    // It was detached before, and its number was given to the second file.
    detach(&other, || Ok(find(&first)?.as_ref() == Some(&other))).unwrap();
    assert_eq!(find(&second).unwrap(), Some(other.clone()));
    detach(&other, || Ok(true)).unwrap();
    assert_eq!(find(&second).unwrap(), None);
}
