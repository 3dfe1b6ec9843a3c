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
