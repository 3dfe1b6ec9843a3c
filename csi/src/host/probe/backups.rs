//! Second copies of superblocks: where the first is gone, they tell that what is there is not nothing.

use std::fs::File;

use provisioners::Result;

use super::read;

/// ext2, ext3 and ext4 have copies in group 1 and in groups whose number is a power of these (`sparse_super`).
const POWERS: [u64; 3] = [3, 5, 7];
/// log2 of their block sizes in KiB: 1, 2, 4 and 64 KiB.
const EXT_LOGS: [u32; 4] = [0, 1, 2, 6];
/// Where btrfs keeps its copies (its on-disk format, "Superblock").
const BTRFS: [u64; 2] = [64 << 20, 256 << 30];
/// mkfs.xfs makes so many allocation groups at most on devices below the size from which they have 1 TiB each.
const XFS_GROUPS: u64 = 32;
/// The largest allocation group of xfs.
const XFS_LARGEST: u64 = 1 << 40;

/// The copy of a superblock that is found first: what it is of, and its offset.
pub fn find(device: &File, size: u64) -> Result<Option<(&'static str, u64)>> {
    for log in EXT_LOGS {
        for (group, offset) in ext_places(log, size) {
            let mut block = [0; 0x5c];
            read(device, offset, &mut block)?;
            let number = u64::from(u16::from_le_bytes([block[0x5a], block[0x5b]]));
            let size = u32::from_le_bytes([block[0x18], block[0x19], block[0x1a], block[0x1b]]);
            // The field has 16 bits.
            if block[0x38..0x3a] == *b"\x53\xef" && size == log && number == group & 0xffff {
                return Ok(Some(("ext4", offset)));
            }
        }
    }
    let btrfs = BTRFS.iter().map(|offset| ("btrfs", *offset, 0x40, &b"_BHRfS_M"[..]));
    let xfs = xfs_places(size).into_iter().map(|offset| ("xfs", offset, 0, &b"XFSB"[..]));
    for (name, offset, within, magic) in btrfs.chain(xfs) {
        let mut bytes = vec![0; magic.len()];
        if offset + within + magic.len() as u64 > size {
            continue;
        }
        read(device, offset + within, &mut bytes)?;
        if bytes == magic {
            return Ok(Some((name, offset)));
        }
    }
    Ok(None)
}

/// Group and offset of each copy, for blocks of 1 KiB << `log` and the groups that such blocks have by default.
fn ext_places(log: u32, size: u64) -> Vec<(u64, u64)> {
    let block = 1024_u64 << log;
    let first = if log == 0 { 1024 } else { 0 };
    let mut groups = vec![1];
    for power in POWERS {
        let powers = std::iter::successors(Some(power), |n| n.checked_mul(power));
        groups.extend(powers.take_while(|n| *n < size / (8 * block * block) + 1));
    }
    let place = |group: u64| (group, first + group * 8 * block * block);
    groups.into_iter().map(place).filter(|(_, offset)| offset + 1024 <= size).collect()
}

/// Where the second allocation group begins, for every number of groups.
fn xfs_places(size: u64) -> Vec<u64> {
    let blocks = size / 4096;
    let of = |count: u64| [blocks / count, blocks.div_ceil(count)];
    let mut places: Vec<u64> = (2..=XFS_GROUPS).flat_map(of).map(|blocks| blocks * 4096).collect();
    places.push(XFS_LARGEST);
    places.push(XFS_LARGEST - 4096);
    places.sort_unstable();
    places.dedup();
    places
}
