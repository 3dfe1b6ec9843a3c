use super::*;

fn mount_capability(fs: &str) -> pb::VolumeCapability {
    use pb::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
    pb::VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume { fs_type: fs.into(), ..MountVolume::default() })),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}

fn block_capability() -> pb::VolumeCapability {
    use pb::volume_capability::{AccessType, BlockVolume};
    pb::VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..mount_capability("") }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, label: &str, words: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.label(), label, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn names_are_required_bounded_and_printable() {
    refused(text("name", "", 128), "invalid", &["name", "required"]);
    refused(text("name", &"x".repeat(129), 128), "invalid", &["name", "129", "128"]);
    refused(text("name", "a\nb", 128), "invalid", &["name", "U+000A"]);
    assert_eq!(text("name", &"x".repeat(128), 128).unwrap().len(), 128);
}

#[test]
fn inline_volumes_are_refused_with_what_to_use() {
    let context = |value: &str| StringMap::from([("csi.storage.k8s.io/ephemeral".into(), value.into())]);
    refused(persistent(&context("true")), "invalid", &["ephemeral", "volumeClaimTemplate"]);
    assert!(persistent(&context("false")).is_ok() && persistent(&StringMap::new()).is_ok());
}

#[test]
fn maps_are_bounded() {
    let large = StringMap::from([("k".into(), "v".repeat(MAX_MAP))]);
    refused(map("parameters", &large), "invalid", &["parameters", "4097", "4096"]);
    refused(map("parameters", &StringMap::from([(String::new(), "v".into())])), "invalid", &["empty key"]);
}

#[test]
fn paths_are_absolute_and_do_not_climb() {
    refused(path("target_path", "var/x"), "invalid", &["target_path", "absolute"]);
    refused(path("target_path", "/var/../etc"), "invalid", &["target_path", ".."]);
    refused(path("target_path", &format!("/{}", "x".repeat(MAX_PATH))), "invalid", &["4097"]);
    assert!(path("target_path", "/var/lib/..data").is_ok(), "two dots inside a name are a name");
}

#[test]
fn ranges_are_not_negative_not_empty_and_not_reversed() {
    let wire = |required_bytes, limit_bytes| pb::CapacityRange { required_bytes, limit_bytes };
    refused(range(Some(&wire(-1, 0))), "invalid", &["required_bytes", "-1"]);
    refused(range(Some(&wire(0, i64::MIN))), "invalid", &["limit_bytes"]);
    refused(range(Some(&wire(0, 0))), "invalid", &["capacity_range"]);
    refused(
        range(Some(&wire(10, 9))).and_then(ordered),
        "out_of_range",
        &["limit_bytes 9", "required_bytes 10"],
    );
    assert_eq!(range(None).unwrap(), CapacityRange::default());
    assert_eq!(range(Some(&wire(i64::MAX, 0))).unwrap().required, i64::MAX.unsigned_abs());
}

#[test]
fn block_and_mount_of_one_volume_are_refused() {
    let both = [mount_capability("ext4"), block_capability()];
    refused(capabilities("volume_capabilities", &both), "invalid", &["block and mount"]);
    refused(capabilities("volume_capabilities", &[]), "invalid", &["volume_capabilities", "empty"]);
}

#[test]
fn a_capability_needs_its_type_and_mode() {
    let no_type = pb::VolumeCapability { access_type: None, ..mount_capability("") };
    refused(capability("volume_capability", Some(&no_type)), "invalid", &["volume_capability.access_type"]);
    let no_mode = pb::VolumeCapability { access_mode: None, ..mount_capability("") };
    refused(capability("volume_capability", Some(&no_mode)), "invalid", &["volume_capability.access_mode"]);
    let strange = pb::volume_capability::AccessMode { mode: 99 };
    let strange = pb::VolumeCapability { access_mode: Some(strange), ..mount_capability("") };
    refused(capability("volume_capability", Some(&strange)), "invalid", &["99"]);
    refused(capability("volume_capability", None), "invalid", &["missing"]);
}

#[test]
fn a_mount_group_is_a_number() {
    let mut value = mount_capability("ext4");
    let Some(pb::volume_capability::AccessType::Mount(mount)) = &mut value.access_type else {
        unreachable!()
    };
    mount.volume_mount_group = "staff".into();
    refused(capability("c", Some(&value)), "invalid", &["volume_mount_group", "staff"]);
}
