use provisioners::Access;

use super::*;

fn volume(formatted: Option<&str>, formatting: bool) -> NodeVolume {
    NodeVolume {
        access: Access::LoopFile { path: "/x".into() },
        size: 1 << 20,
        fs_type: None,
        mkfs_options: Vec::new(),
        root_mode: None,
        formatted: formatted.map(Into::into),
        formatting,
    }
}

fn fs(name: &'static str) -> Content {
    Content::Known { name, class: Class::FileSystem }
}

#[test]
fn the_wanted_file_system_is_mounted() {
    let plan = |v: &NodeVolume| plan(&fs("xfs"), "xfs", v, false, "v").unwrap();
    assert_eq!(plan(&volume(Some("xfs"), false)), Plan::Mount);
    assert_eq!(plan(&volume(None, false)), Plan::Accept, "restored, or the note was lost");
    assert_eq!(plan(&volume(None, true)), Plan::Format { force: true }, "mkfs was interrupted");
}

#[test]
fn anything_else_is_refused_by_name() {
    let luks = Content::Known { name: "LUKS", class: Class::Container };
    for (content, word) in [(fs("ext4"), "ext4"), (luks, "LUKS")] {
        for formatting in [false, true] {
            let error = plan(&content, "xfs", &volume(None, formatting), false, "v").unwrap_err();
            assert_eq!(error.label(), "refused");
            assert!(
                error.to_string().contains(word) && error.to_string().contains("not formatting"),
                "{error}"
            );
        }
    }
}

#[test]
fn unknown_data_is_refused_unless_it_is_our_own_unfinished_format() {
    let unknown = Content::Unknown { offset: 4096, bytes: "de ad".into() };
    let error = plan(&unknown, "xfs", &volume(None, false), false, "v").unwrap_err().to_string();
    assert!(error.contains("byte 4096") && error.contains("de ad"), "{error}");
    assert_eq!(plan(&unknown, "xfs", &volume(None, true), false, "v").unwrap(), Plan::Format { force: true });
    assert!(plan(&unknown, "xfs", &volume(Some("xfs"), true), false, "v").is_err(), "it was completed once");
}

#[test]
fn blank_is_formatted_once() {
    let plan = |v: &NodeVolume, read_only| plan(&Content::Blank, "xfs", v, read_only, "v");
    assert_eq!(plan(&volume(None, false), false).unwrap(), Plan::Format { force: false });
    assert!(plan(&volume(None, false), true).unwrap_err().to_string().contains("read-only"));
    let again = plan(&volume(Some("xfs"), false), false).unwrap_err().to_string();
    assert!(
        again.contains("formatted with xfs before") && again.contains("not formatting it again"),
        "{again}"
    );
}

#[test]
fn only_offered_file_systems_are_taken() {
    assert_eq!(desired("", None).unwrap(), "ext4");
    assert_eq!(desired("", Some("btrfs")).unwrap(), "btrfs");
    assert_eq!(desired("xfs", Some("btrfs")).unwrap(), "xfs");
    assert!(desired("ntfs", None).unwrap_err().to_string().contains("ext4, xfs, btrfs"));
}

#[test]
fn options_that_name_a_path_are_refused() {
    let tools = Tools::find(std::time::Duration::from_secs(1));
    let options = ["/dev/sda".to_owned()];
    let wish = Wish { device: Path::new("/nonexistent"), fs: "ext4", options: &options };
    assert_eq!(mkfs(&tools, &Ctx::new(), &wish, false).unwrap_err().label(), "invalid");
}
