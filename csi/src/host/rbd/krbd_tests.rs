use base64::Engine as _;
use provisioners::SecretText;

use super::*;

fn image() -> RbdImage {
    RbdImage {
        pool: "rbd".into(),
        image: "db".into(),
        monitors: vec!["10.0.0.1:6789".into(), "10.0.0.2:6789".into()],
        user: "csi".into(),
        key: Some(SecretText::new("AQ==")),
        map_options: vec!["noshare".into()],
        ..RbdImage::default()
    }
}

/// A bus as the kernel shows it, with one device.
fn bus() -> tempfile::TempDir {
    let bus = tempfile::tempdir().unwrap();
    let device = bus.path().join("devices/3");
    std::fs::create_dir_all(&device).unwrap();
    for (name, text) in [
        ("pool", "rbd"),
        ("pool_ns", ""),
        ("name", "db"),
        ("pool_id", "7"),
        ("image_id", "5e0a"),
        ("current_snap", "-"),
        ("cluster_fsid", "f-1"),
        ("client_addr", "10.0.0.9:0/17"),
    ] {
        std::fs::write(device.join(name), format!("{text}\n")).unwrap();
    }
    bus
}

#[test]
fn the_line_for_the_kernel_has_everything_in_its_place() {
    let line = add_line(&image(), false).unwrap();
    assert_eq!(line, "10.0.0.1:6789,10.0.0.2:6789 name=csi,secret=AQ==,noshare rbd db -");
    let line = add_line(&RbdImage { namespace: "team".into(), ..image() }, true).unwrap();
    assert_eq!(line, "10.0.0.1:6789,10.0.0.2:6789 name=csi,secret=AQ==,_pool_ns=team,ro,noshare rbd db -");
    assert!(add_line(&RbdImage { monitors: Vec::new(), ..image() }, false).is_err());
}

#[test]
fn a_mapping_is_found_by_its_image_and_cluster() {
    let bus = bus();
    let krbd = Krbd::new(bus.path());
    let found = krbd.find(&image(), "f-1").unwrap().unwrap();
    assert_eq!((found.number, found.client.as_str()), (3, "10.0.0.9:0/17"));
    assert_eq!(found.device(), Path::new("/dev/rbd3"));
    assert_eq!(krbd.find(&image(), "another cluster").unwrap(), None);
    assert_eq!(krbd.find(&RbdImage { namespace: "team".into(), ..image() }, "f-1").unwrap(), None);
    assert_eq!(krbd.by_device(Path::new("/dev/rbd3")).unwrap().unwrap().number, 3);
    assert_eq!(krbd.by_device(Path::new("/dev/loop3")).unwrap(), None);
    std::fs::write(bus.path().join("devices/3/current_snap"), "s1\n").unwrap();
    assert_eq!(krbd.find(&image(), "f-1").unwrap(), None, "a mapped snapshot is not the image");
}

#[test]
fn mapping_and_unmapping_write_what_the_kernel_reads() {
    let bus = bus();
    let krbd = Krbd::new(bus.path());
    let tools = Tools::find(Duration::from_secs(1));
    let ctx = Ctx::new();
    krbd.map(&tools, &ctx, &image(), false).unwrap();
    assert!(std::fs::read_to_string(bus.path().join("add")).unwrap().ends_with("rbd db -"));
    std::fs::write(bus.path().join("add_single_major"), "").unwrap();
    krbd.map(&tools, &ctx, &image(), false).unwrap();
    assert!(std::fs::read_to_string(bus.path().join("add_single_major")).unwrap().ends_with("rbd db -"));
    krbd.unmap(&ctx, 3, false).unwrap();
    assert_eq!(std::fs::read_to_string(bus.path().join("remove")).unwrap(), "3");
}

#[test]
fn without_the_module_the_error_names_the_fallback() {
    let krbd = Krbd::new(Path::new("/nonexistent/rbd"));
    let error = krbd.map(&Tools::find(Duration::from_secs(1)), &Ctx::new(), &image(), false).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("mounter: fuse") && !text.contains("AQ=="), "{text}");
}

/// The image was deleted while it was mapped, or its pool was, and made again under the same name.
#[test]
fn an_image_that_was_made_again_is_another() {
    let bus = bus();
    let krbd = Krbd::new(bus.path());
    let of = |pool, id: &str| {
        let identity = Some(RbdIdentity { pool, image: id.into() });
        RbdImage { identity, ..image() }
    };
    let find = |image: &RbdImage| krbd.find(image, "f-1").unwrap().map(|found| found.number);
    assert_eq!(find(&of(7, "5e0a")), Some(3));
    assert_eq!(find(&of(7, "77b1")), None, "another image of the name");
    assert_eq!(find(&of(8, "5e0a")), None, "another pool of the name");
    assert_eq!(krbd.namesakes(&of(7, "77b1")).unwrap(), [Path::new("/dev/rbd3")]);
    assert!(krbd.namesakes(&of(7, "5e0a")).unwrap().is_empty());
    std::fs::remove_file(bus.path().join("devices/3/image_id")).unwrap();
    assert_eq!(find(&of(7, "77b1")), Some(3), "a kernel that does not tell");
}

#[test]
fn a_device_that_cannot_be_looked_at_is_not_passed_over() {
    let bus = bus();
    let name = bus.path().join("devices/3/name");
    std::fs::remove_file(&name).unwrap();
    std::fs::create_dir(&name).unwrap();
    let error = Krbd::new(bus.path()).find(&image(), "f-1").unwrap_err().to_string();
    assert!(error.contains("devices/3/name"), "{error}");
}

/// What unstages has no identity of its own; the note has it.
#[test]
fn the_identity_is_noted_with_the_mapping() {
    use super::super::{Outside, Rbd, note_of, write_note};
    let (bus, state) = (bus(), tempfile::tempdir().unwrap());
    let tools = Tools::find(Duration::from_secs(1));
    let rbd = Rbd::new(state.path(), bus.path(), None, Outside::find(&tools));
    let image = RbdImage { cluster: "main".into(), ..image() };
    let found = |image: &RbdImage| rbd.find(image).unwrap().is_some();
    assert!(found(&image), "mapped by an older driver, which has noted no identity");
    let dir = rbd.dir(&image);
    std::fs::create_dir_all(&dir).unwrap();
    for (id, there) in [("5e0a", true), ("77b1", false)] {
        let identity = Some(RbdIdentity { pool: 7, image: id.into() });
        let noted = RbdImage { identity, fsid: "f-1".into(), ..image.clone() };
        write_note(&dir, &note_of(&noted, provisioners::RbdMounter::Krbd)).unwrap();
        assert_eq!(found(&image), there, "{id}");
    }
    let owner = rbd.owner(Path::new("/dev/rbd3")).unwrap().unwrap();
    assert_ne!(owner.dir, dir, "the note is of another image");
}

/// A note that is damaged or of a newer driver refuses its own image, by its path, and no other; notes of before had no
/// envelope.
#[test]
fn notes_of_mappings_say_what_they_are() {
    use super::super::{Outside, Rbd, note_of, write_note};
    let (bus, state) = (bus(), tempfile::tempdir().unwrap());
    let tools = Tools::find(Duration::from_secs(1));
    let rbd = Rbd::new(state.path(), bus.path(), None, Outside::find(&tools));
    let image = RbdImage { cluster: "main".into(), ..image() };
    let (dir, other) = (rbd.dir(&image), state.path().join("rbd/other"));
    for dir in [&dir, &other] {
        std::fs::create_dir_all(dir).unwrap();
    }
    write_note(&dir, &note_of(&image, provisioners::RbdMounter::Krbd)).unwrap();
    let path = dir.join("mapping.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(r#""schema":1,"kind":"Mapping""#), "{text}");
    let before = text.replace(r#""schema":1,"kind":"Mapping","#, "");
    std::fs::write(&path, &before).unwrap();
    assert!(rbd.find(&image).unwrap().is_some(), "of a driver before: {before}");
    std::fs::write(other.join("mapping.json"), "{").unwrap();
    assert!(rbd.owner(Path::new("/dev/rbd3")).unwrap().is_some(), "another's note is damaged");
    assert!(rbd.recover().is_ok(), "it stops no start");
    let newer = text.replace(r#""schema":1"#, r#""schema":9"#);
    for (content, says) in [(newer.as_str(), "newer"), ("", "mapping.json"), ("[]", "mapping.json")] {
        std::fs::write(&path, content).unwrap();
        let error = rbd.find(&image).unwrap_err().to_string();
        assert!(error.contains("mapping.json") && error.contains(says), "{content:?}: {error}");
        assert!(rbd.owner(Path::new("/dev/rbd3")).is_err(), "it may be that one's: {content:?}");
    }
}

#[test]
fn a_key_of_a_newer_type_is_named_where_the_kernel_refuses_it() {
    let newer = base64::engine::general_purpose::STANDARD
        .encode([&[2, 0, 1, 1, 1, 1, 1, 1, 1, 1, 32, 0][..], &[7; 32]].concat());
    let with = RbdImage { key: Some(SecretText::new(&newer)), ..image() };
    let of = |image: &RbdImage, errno: Errno| not_mapped(image, &errno.into()).to_string();
    for errno in [Errno::IO, Errno::INVAL, Errno::NOPKG] {
        let told = of(&with, errno);
        assert!(told.contains("aes256k") && told.contains("kernel 7") && !told.contains(&newer), "{told}");
        assert!(!of(&image(), errno).contains("aes256k"));
    }
    assert!(!of(&with, Errno::TIMEDOUT).contains("aes256k"), "nobody has answered");
    assert!(of(&image(), Errno::NOPKG).contains("modprobe"));
}
