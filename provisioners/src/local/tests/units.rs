use proptest::prelude::*;

use super::super::config::Reserve;
use super::super::handle::parse_handle;
use super::super::params::{Mutable, Params, VolumeType};
use super::super::record::{FsState, GroupRecord, SnapshotRecord, VolumeRecord, decode, encode};
use super::super::size::{decide, minimum, round_up};
use super::*;

fn config(roots: &[(&str, &str)]) -> LocalConfig {
    let roots = roots.iter().map(|(name, path)| ((*name).to_owned(), PathBuf::from(path))).collect();
    LocalConfig::new(roots, NodeId::from("n"))
}

fn params(pairs: &[(&str, &str)]) -> Result<Params> {
    Params::parse(&config(&[("default", "/a"), ("fast", "/b")]), &map(pairs), &StringMap::new())
}

fn volume_record() -> VolumeRecord {
    let json = serde_json::json!({
        "schema": 1, "kind": "Volume", "id": "default:a", "name": "a", "cluster": "c", "pvc": {"name": "p"},
        "type": "file", "capacity": 1_048_576, "requested": {"required": 1, "limit": 0},
        "parameters": {"type": "file"}, "mutableParameters": {}, "source": {"snapshot": "default:s"}, "block": false,
        "fsType": "xfs", "created": "2026-11-21T04:00:00Z", "fs": {"formatting": "xfs"},
        "published": {"n": {"readOnly": false, "mode": "singleNodeWriter", "block": false}}
    });
    decode("test", json.to_string().as_bytes()).unwrap()
}

#[test]
fn a_configuration_is_read_with_sizes_and_defaults() {
    let text = r#"{"roots": {"default": "/v"}, "reserve": "10%", "defaultSize": "2Gi", "node": "n", "attach": true}"#;
    let config: LocalConfig = serde_json::from_str(text).unwrap();
    assert_eq!(config.reserve, Reserve::Percent(10));
    assert_eq!(config.default_size, 2 << 30);
    assert!(config.attach);
    assert_eq!(config.topology_key, "topology.local.csi.volumectl.io/node");
    for (text, expected) in [
        (r#"{"roots": {}, "rots": 1}"#, "unknown field `rots`"),
        (r#"{"roots": {}, "reserve": "200%"}"#, "write a size such as"),
        (r#"{"roots": {}, "defaultSize": "many"}"#, "not a size"),
    ] {
        let error = serde_json::from_str::<LocalConfig>(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_wrong_configuration_names_its_field() {
    for (roots, expected) in [
        (&[][..], "roots: none given"),
        (&[("Big", "/a")][..], "roots[\"Big\"]"),
        (&[("a", "relative")][..], "not an absolute path"),
        (&[("a", "/")][..], "not an absolute path"),
        (&[("a", "/x/../y")][..], "not an absolute path"),
        (&[("a", "/x"), ("b", "/x/y")][..], "roots[\"b\"]: is the same as or inside root \"a\""),
        (&[("a", "/x"), ("b", "/x")][..], "is the same as"),
    ] {
        refused(config(roots).validate(), "invalid", expected);
    }
    let mut nameless = config(&[("a", "/a")]);
    nameless.node = NodeId::from("");
    refused(nameless.validate(), "invalid", "node: ");
}

#[test]
fn the_reserve_is_a_share_a_size_or_capped() {
    assert_eq!(Reserve::Default.bytes(1000), 50);
    assert_eq!(Reserve::Default.bytes(1 << 50), 1 << 30);
    assert_eq!(Reserve::Percent(10).bytes(1000), 100);
    assert_eq!(Reserve::Bytes(7).bytes(1), 7);
}

#[test]
fn handles_are_parsed_strictly() {
    let handle = parse_handle("my-root:pvc-1.x_Y").unwrap();
    assert_eq!((handle.root.as_str(), handle.key.as_str()), ("my-root", "pvc-1.x_Y"));
    for bad in
        ["", ":", "a", "a:", ":a", "a:.b", "a:-b", "A:b", "-a:b", "a:b/c", "a:b:c", "a:b ", "a:..", "a:ä"]
    {
        assert!(parse_handle(bad).is_err(), "{bad}");
    }
    assert!(parse_handle(&format!("{}:k", "r".repeat(31))).is_err());
    assert!(parse_handle(&format!("r:{}", "k".repeat(64))).is_err());
}

#[test]
fn sizes_are_decided_by_the_rules() {
    let range = |required, limit| CapacityRange { required, limit };
    let ext4 = minimum(VolumeType::File, false, None);
    let gib = 1 << 30;
    assert_eq!(decide(range(0, 0), gib, ext4).unwrap(), gib);
    assert_eq!(decide(range(0, 20 * MIB + 5), gib, ext4).unwrap(), 20 * MIB);
    assert_eq!(decide(range(1, 0), gib, ext4).unwrap(), 16 * MIB);
    assert_eq!(decide(range(17 * MIB + 1, 0), gib, ext4).unwrap(), 18 * MIB);
    assert_eq!(decide(range(20 * MIB, 20 * MIB), gib, ext4).unwrap(), 20 * MIB);
    refused(decide(range(20 * MIB + 1, 20 * MIB + 2), gib, ext4), "out_of_range", "multiples of 1 MiB");
    refused(decide(range(1, 15 * MIB), gib, ext4), "out_of_range", "16777216 bytes, the minimum for ext4");
    let xfs = minimum(VolumeType::File, false, Some("xfs"));
    refused(decide(range(1, 299 * MIB), gib, xfs), "out_of_range", "the minimum for xfs");
    refused(round_up(i64::MAX as u64), "out_of_range", "more than any volume");
    refused(round_up(u64::MAX), "out_of_range", "more than any volume");
    assert_eq!(minimum(VolumeType::File, true, Some("xfs")).0, MIB);
}

#[test]
fn parameters_are_read_once_and_completely() {
    let read = params(&[
        ("root", "/b"),
        ("thick", "true"),
        ("mode", "0750"),
        ("fsType", "xfs"),
        ("mkfsOptions", " -m  reflink=1 -K "),
        ("nameTemplate", "${pvc.name}"),
    ])
    .unwrap();
    assert_eq!(read.root, "fast");
    assert!(read.thick);
    assert_eq!(read.mkfs_options, ["-m", "reflink=1", "-K"]);
    assert_eq!(params(&[]).unwrap().root, "default");
}

#[test]
fn wrong_parameters_are_refused() {
    for (pairs, expected) in [
        (&[("mkfsOption", "")][..], "did you mean \"mkfsOptions\""),
        (&[("Type", "file"), ("type", "file")][..], "given twice"),
        (&[("root", "slow")][..], "known: default, fast"),
        (&[("type", "block")][..], "known: file, directory"),
        (&[("fsType", "zfs")][..], "known: ext4, xfs, btrfs"),
        (&[("uid", "0")][..], "only a volume of type \"directory\""),
        (&[("type", "directory"), ("thick", "false")][..], "only a volume of type \"file\""),
        (&[("type", "directory"), ("uid", "4294967295")][..], "not an id"),
        (&[("mkfsOptions", "0 -m")][..], "\"0\" is no option"),
        (&[("mkfsOptions", "-F /dev/sda")][..], "'/' cannot be"),
        (&[("mkfsOptions", "-m 0 sda")][..], "\"sda\" is no option"),
        (&[("mkfsOptions", "-L 'a b'")][..], "'\\'' cannot be"),
        (&[("nameTemplate", "a/b")][..], "nameTemplate"),
    ] {
        refused(params(pairs), "invalid", expected);
    }
    let no_default = config(&[("a", "/a"), ("b", "/b")]);
    refused(Params::parse(&no_default, &map(&[]), &map(&[])), "invalid", "must be given");
    refused(Mutable::parse(&map(&[("thick", "true")])), "invalid", "cannot be changed after creation");
    refused(Mutable::parse(&map(&[("mod", "0700")])), "invalid", "did you mean \"mode\"");
}

#[test]
fn records_come_back_as_they_were_written() {
    let record = volume_record();
    let again: VolumeRecord = decode("x", &encode(&record).unwrap()).unwrap();
    assert_eq!(record, again);
}

#[test]
fn a_newer_or_other_record_is_not_read() {
    let text = String::from_utf8(encode(&volume_record()).unwrap()).unwrap();
    assert_eq!(super::super::check_volume_record(text.as_bytes()).unwrap(), "default:a");
    let newer = text.replace("\"schema\": 1", "\"schema\": 2");
    refused(
        decode::<VolumeRecord>("x.json", newer.as_bytes()),
        "refused",
        "x.json has schema 2, written by a newer",
    );
    refused(decode::<SnapshotRecord>("x.json", text.as_bytes()), "corrupt", "x.json is damaged");
}

#[test]
fn every_truncation_of_a_record_is_noticed() {
    let bytes = encode(&volume_record()).unwrap();
    for end in 0..bytes.len() {
        refused(decode::<VolumeRecord>("x", &bytes[..end]), "corrupt", "nothing was changed or deleted");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_record_panic(bytes in any::<Vec<u8>>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let _ = decode::<VolumeRecord>("x", &bytes);
        let _ = decode::<GroupRecord>("x", &bytes);
        let mut changed = encode(&volume_record()).unwrap();
        let at = at.index(changed.len());
        changed[at] = byte;
        let _ = decode::<VolumeRecord>("x", &changed);
    }

    #[test]
    fn a_handle_is_written_as_it_was_read(text in "[a-zA-Z0-9:._ -]{0,100}") {
        if let Ok(handle) = parse_handle(&text) {
            prop_assert_eq!(handle.to_string(), text);
        }
    }

    #[test]
    fn every_name_has_a_handle(name in any::<String>(), root in "[a-z0-9][a-z0-9-]{0,29}") {
        let handle = format!("{root}:{}", crate::key_for(&name));
        prop_assert!(handle.len() <= 128);
        prop_assert!(parse_handle(&handle).is_ok());
    }

    #[test]
    fn a_decided_size_is_admitted_and_whole(required in 0..1_u64 << 50, more in 0..1_u64 << 30, limited: bool) {
        let range = CapacityRange { required, limit: if limited { required + more } else { 0 } };
        if let Ok(size) = decide(range, 1 << 30, (MIB, "a test")) {
            prop_assert!(range.admits(size) && size % MIB == 0 && size > 0);
        }
    }

    #[test]
    fn no_parameter_value_panics(value in any::<String>(), key in 0..9_usize) {
        let key = super::super::params::DOCS[key].name;
        let _ = params(&[(key, &value)]);
        let _ = Mutable::parse(&map(&[(key, &value)]));
    }
}

#[test]
fn an_unknown_file_system_state_is_the_default() {
    assert_eq!(serde_json::from_str::<FsState>("{}").unwrap(), FsState::default());
}

#[test]
fn c12_a_root_under_two_names_has_one_identity() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::create_dir(path("real")).unwrap();
    std::fs::create_dir(path("other")).unwrap();
    std::os::unix::fs::symlink(path("real"), path("link")).unwrap();
    let roots = [("a", path("link")), ("b", path("other")), ("c", path("real")), ("d", path("gone"))];
    let roots: Vec<_> = roots.iter().map(|(name, path)| (*name, path.as_str())).collect();
    let local = Local::new(config(&roots), Arc::new(FakeHost::default())).unwrap();
    let of = |handle: &str| local.identity(handle);
    assert_eq!(of("a:v"), of("c:v"));
    let all = ["a:v", "a:w", "b:v", "d:v", "e:v", "no handle", "A:v"];
    for (i, one) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|other| of(one) != of(other)), "{one}");
    }
}
