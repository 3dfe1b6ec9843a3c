//! A volume's disk on this node: found by its serial, never by its name.

use std::fs;
use std::path::{Path, PathBuf};

/// virtio-blk passes on so many characters of a serial.
const VIRTIO: usize = 20;

/// A disk's serial, from wherever its driver shows it: virtio-blk `serial`, SCSI VPD page 0x80, NVMe `serial`.
pub fn serial(block: &Path) -> Option<String> {
    let text = |path: &str| fs::read_to_string(block.join(path)).ok().map(|text| text.trim().to_owned());
    let found = text("serial").or_else(|| text("device/serial")).or_else(|| vpd(block));
    found.filter(|serial| !serial.is_empty())
}

/// The serial in SCSI VPD page 0x80 (SPC-4): four bytes of head, the last two of them its length.
fn vpd(block: &Path) -> Option<String> {
    let page = fs::read(block.join("device/vpd_pg80")).ok()?;
    let length = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
    let serial = page.get(4..(4 + length).min(page.len()))?;
    Some(String::from_utf8_lossy(serial).trim_matches(['\0', ' ']).to_owned())
}

/// Whether a serial is a volume's: its whole id, as much of it as virtio-blk shows, or the id without dashes.
pub fn is_of(serial: &str, id: &str) -> bool {
    serial == id || (serial.len() == VIRTIO && id.starts_with(serial)) || serial == id.replace('-', "")
}

/// The names of the disks below `sys` (such as `/sys`) with a volume's serial.
pub fn with_serial(sys: &Path, id: &str) -> Vec<String> {
    let entries = fs::read_dir(sys.join("block")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| serial(&entry.path()).is_some_and(|serial| is_of(&serial, id)))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The device that a directory of links has for a volume, as /dev/disk/by-id names it.
pub fn linked(root: &Path, id: &str) -> Option<PathBuf> {
    let short = &id[..VIRTIO.min(id.len())];
    let names = [
        format!("virtio-{short}"),
        format!("virtio-{id}"),
        format!("scsi-0QEMU_QEMU_HARDDISK_{id}"),
        format!("nvme-QEMU_NVMe_Ctrl_{short}"),
    ];
    names.iter().find_map(|name| fs::canonicalize(root.join(name)).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "7a1d4b0e-3a6c-4b7e-9d6f-0123456789ab";

    #[test]
    fn o5_every_bus_has_its_place_for_the_serial() {
        let sys = tempfile::tempdir().unwrap();
        let put = |path: &str, bytes: &[u8]| {
            let path = sys.path().join("block").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        put("vdb/serial", &ID.as_bytes()[..20]);
        put("vdc/serial", b"7a1d4b0e-3a6c-4b7e-8");
        let page = [&[0, 0x80, 0, 36], ID.as_bytes()].concat();
        put("sda/device/vpd_pg80", &page);
        put("sdb/device/vpd_pg80", &page[..3]);
        put("nvme0n1/device/serial", format!("{}\n", &ID[..20]).as_bytes());
        put("loop0/size", b"8\n");
        assert_eq!(with_serial(sys.path(), ID), ["nvme0n1", "sda", "vdb"]);
        assert!(with_serial(sys.path(), "00000000-0000-0000-0000-000000000000").is_empty());
    }

    #[test]
    fn a_serial_that_is_cut_short_is_nobodys() {
        assert!(!is_of("", ID) && !is_of(&ID[..19], ID) && !is_of(&ID[..21], ID));
        assert!(is_of(&ID[..20], ID) && is_of(ID, ID) && is_of(&ID.replace('-', ""), ID));
    }
}
