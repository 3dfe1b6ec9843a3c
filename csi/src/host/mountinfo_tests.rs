use proptest::prelude::*;

use super::*;

const LINE: &[u8] =
    b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime shared:7 master:1 - ext3 /dev/root rw,errors=continue";

#[test]
fn every_field_is_read() {
    let mounts = parse(LINE).unwrap();
    let expected = Mount {
        id: 36,
        parent: 35,
        device: (98, 0),
        root: Path::new("/mnt1").into(),
        target: Path::new("/mnt 2").into(),
        options: "rw,noatime".into(),
        propagation: Propagation { shared: Some(7), master: Some(1), unbindable: false },
        fs_type: "ext3".into(),
        source: OsStr::new("/dev/root").into(),
        super_options: "rw,errors=continue".into(),
    };
    assert_eq!(mounts, [expected]);
    assert!(mounts[0].has_option("noatime") && !mounts[0].has_option("no"));
}

#[test]
fn a_line_without_optional_fields_and_with_an_unbindable_one() {
    let mounts = parse(b"1 2 0:5 / /a ro - proc none rw\n2 1 0:6 / /b rw unbindable - tmpfs t ro\n").unwrap();
    assert_eq!(mounts[0].propagation, Propagation::default());
    assert!(mounts[0].is_read_only() && !mounts[0].is_super_read_only());
    assert!(mounts[1].propagation.unbindable && mounts[1].is_super_read_only());
}

#[test]
fn a_bad_line_is_named_by_its_number() {
    let table = [LINE, b"\n", b"37 35 98:x / /y rw - ext4 a rw"].concat();
    assert!(parse(&table).unwrap_err().to_string().contains("line 2"));
    assert!(select(&table, |_| true).unwrap_err().to_string().contains("line 2"));
    assert!(parse(&LINE[..LINE.len() - 30]).is_err(), "a line that was cut short");
}

#[test]
fn names_that_are_no_utf8_and_lone_backslashes_are_kept() {
    let mounts = parse(b"1 2 0:5 / /a\xff\\777\\0401 rw - tmpfs t rw").unwrap();
    assert_eq!(mounts[0].target.as_os_str().as_bytes(), b"/a\xff\\777 1");
}

#[test]
fn this_systems_own_table_is_read() {
    let table = std::fs::read("/proc/self/mountinfo").unwrap();
    let mounts = parse(&table).unwrap();
    assert!(mounts.iter().any(|m| m.target == Path::new("/")));
    assert_eq!(select(&table, |m| m.target == Path::new("/")).unwrap().len(), 1);
}

#[test]
fn a_directory_of_an_nfs_mount_is_told_by_its_source() {
    let dir = |line: &str| parse(line.as_bytes()).unwrap()[0].dir().to_owned();
    assert_eq!(dir("1 2 0:45 / /a rw - nfs4 10.0.0.1:/export/pvc-1 rw,vers=4.2"), Path::new("/export/pvc-1"));
    assert_eq!(dir("1 2 0:45 / /a rw - nfs [fd00::1]:/srv/two\\040words rw"), Path::new("/srv/two words"));
    assert_eq!(dir("1 2 7:3 /v /a rw - ext4 a:/b rw"), Path::new("/v"));
}

fn escape(path: &[u8]) -> Vec<u8> {
    let octal = |b: &u8| match b {
        b' ' | b'\t' | b'\n' | b'\\' => format!("\\{b:03o}").into_bytes(),
        _ => vec![*b],
    };
    path.iter().flat_map(octal).collect()
}

proptest! {
    #[test]
    fn what_the_kernel_escapes_is_unescaped(path in prop::collection::vec(1_u8.., 1..40), id in any::<u32>()) {
        let mut line = format!("{id} 1 7:3 / ").into_bytes();
        line.extend(escape(&path));
        line.extend(b" rw shared:1 - ext4 /dev/loop3 rw");
        let mounts = parse(&line).unwrap();
        prop_assert_eq!(mounts[0].target.as_os_str().as_bytes(), path.as_slice());
        prop_assert_eq!(select(&line, |m| m.target.as_os_str().as_bytes() == path).unwrap(), mounts);
    }

    #[test]
    fn no_input_makes_it_panic(table in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&table);
        let _ = select(&table, |_| true);
    }
}
