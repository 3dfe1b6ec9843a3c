//! What is known to stand at the start, or the end, of a device that holds something.

/// What a signature says the device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A file system.
    FileSystem,
    /// Something that holds other devices or data: LUKS, LVM, RAID, Ceph.
    Container,
    /// A partition table.
    PartitionTable,
    /// Swap space.
    Swap,
}

/// One signature: these bytes at this offset.
pub struct Signature {
    /// What has it.
    pub name: &'static str,
    /// Which kind of thing that is.
    pub class: Class,
    /// Where it stands.
    pub at: Place,
    /// The bytes.
    pub magic: &'static [u8],
}

/// Where a signature stands, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// From the start of the device.
    Start(u64),
    /// So far before its end, rounded down to a multiple.
    End {
        /// How far before the end.
        back: u64,
        /// The multiple, a power of two.
        align: u64,
    },
}

impl Place {
    /// The offset on a device of `size` bytes; `None` when the device is too small to have it.
    pub fn offset(self, size: u64) -> Option<u64> {
        match self {
            Self::Start(offset) => Some(offset),
            Self::End { back, align } => Some(size.checked_sub(back)? & !(align - 1)),
        }
    }
}

const fn at(offset: u64, name: &'static str, class: Class, magic: &'static [u8]) -> Signature {
    Signature { name, class, at: Place::Start(offset), magic }
}

const fn end(back: u64, align: u64, name: &'static str, class: Class, magic: &'static [u8]) -> Signature {
    Signature { name, class, at: Place::End { back, align }, magic }
}

use Class::{Container, FileSystem, PartitionTable, Swap};

/// All of them; what stands deeper in a stack comes first, so that a LUKS device is not called an old ext4.
pub const SIGNATURES: &[Signature] = &[
    at(0, "LUKS", Container, b"LUKS\xba\xbe"),
    // A LUKS2 secondary header (cryptsetup's on-disk format, 2.1), left when the first is overwritten.
    at(0x4000, "LUKS2 (secondary header)", Container, b"SKUL\xba\xbe"),
    at(0x8000, "LUKS2 (secondary header)", Container, b"SKUL\xba\xbe"),
    at(0x1_0000, "LUKS2 (secondary header)", Container, b"SKUL\xba\xbe"),
    at(0x2_0000, "LUKS2 (secondary header)", Container, b"SKUL\xba\xbe"),
    at(0x4_0000, "LUKS2 (secondary header)", Container, b"SKUL\xba\xbe"),
    at(0x8_0000, "LUKS2 (secondary header)", Container, b"SKUL\xba\xbe"),
    at(0x10_0000, "LUKS2 (secondary header)", Container, b"SKUL\xba\xbe"),
    at(0x20_0000, "LUKS2 (secondary header)", Container, b"SKUL\xba\xbe"),
    at(0x40_0000, "LUKS2 (secondary header)", Container, b"SKUL\xba\xbe"),
    at(0, "LVM2 physical volume", Container, b"LABELONE"),
    at(512, "LVM2 physical volume", Container, b"LABELONE"),
    at(1024, "LVM2 physical volume", Container, b"LABELONE"),
    at(1536, "LVM2 physical volume", Container, b"LABELONE"),
    at(0, "Ceph BlueStore", Container, b"bluestore block device"),
    at(4096 + 24, "bcache", Container, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    at(0, "Linux RAID (1.1)", Container, b"\xfc\x4e\x2b\xa9"),
    at(4096, "Linux RAID (1.2)", Container, b"\xfc\x4e\x2b\xa9"),
    end(0x2000, 0x1000, "Linux RAID (1.0)", Container, b"\xfc\x4e\x2b\xa9"),
    end(0x1_0000, 0x1_0000, "Linux RAID (0.90)", Container, b"\xfc\x4e\x2b\xa9"),
    at(0x2_0000, "ZFS", Container, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
    at(0x2_1000, "ZFS", Container, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
    at(0x2_0000, "ZFS", Container, b"\x00\x00\x00\x00\x00\xba\xb1\x0c"),
    at(0x2_1000, "ZFS", Container, b"\x00\x00\x00\x00\x00\xba\xb1\x0c"),
    at(512, "GPT partition table", PartitionTable, b"EFI PART"),
    at(4096, "GPT partition table", PartitionTable, b"EFI PART"),
    end(512, 512, "GPT partition table (backup)", PartitionTable, b"EFI PART"),
    end(4096, 512, "GPT partition table (backup)", PartitionTable, b"EFI PART"),
    at(4096 - 10, "swap space", Swap, b"SWAPSPACE2"),
    at(8192 - 10, "swap space", Swap, b"SWAPSPACE2"),
    at(16384 - 10, "swap space", Swap, b"SWAPSPACE2"),
    at(32768 - 10, "swap space", Swap, b"SWAPSPACE2"),
    at(65536 - 10, "swap space", Swap, b"SWAPSPACE2"),
    at(0, "xfs", FileSystem, b"XFSB"),
    at(0x1_0040, "btrfs", FileSystem, b"_BHRfS_M"),
    at(3, "ntfs", FileSystem, b"NTFS    "),
    at(3, "exfat", FileSystem, b"EXFAT   "),
    at(0x36, "vfat", FileSystem, b"FAT1"),
    at(0x52, "vfat", FileSystem, b"FAT32"),
    at(0x8001, "iso9660", FileSystem, b"CD001"),
    at(0x8001, "udf", FileSystem, b"BEA01"),
    at(0x400, "f2fs", FileSystem, b"\x10\x20\xf5\xf2"),
    at(0, "squashfs", FileSystem, b"hsqs"),
    at(0x400, "erofs", FileSystem, b"\xe2\xe1\xf5\xe0"),
    at(0x8000, "jfs", FileSystem, b"JFS1"),
    at(0x1_0034, "reiserfs", FileSystem, b"ReIsEr"),
    at(0x406, "nilfs2", FileSystem, b"\x34\x34"),
    at(0x400, "hfsplus", FileSystem, b"H+"),
    at(0x400, "hfsplus", FileSystem, b"HX"),
];

/// ext2, ext3 or ext4 by the features in their superblock (the 1024 bytes at offset 1024), if it is one.
pub fn ext(superblock: &[u8]) -> Option<&'static str> {
    const HAS_JOURNAL: u32 = 0x4;
    /// Extents, 64-bit, flexible block groups, multiple mount protection, inline data, …: ext4 alone has them.
    const EXT4_INCOMPAT: u32 = !(0x2 | 0x4 | 0x8 | 0x10);
    const EXT4_RO_COMPAT: u32 = !(0x1 | 0x2 | 0x4);
    if superblock.get(0x38..0x3a)? != b"\x53\xef" {
        return None;
    }
    let word = |at: usize| superblock.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let (compat, incompat, ro_compat) = (word(0x5c)?, word(0x60)?, word(0x64)?);
    Some(if incompat & EXT4_INCOMPAT != 0 || ro_compat & EXT4_RO_COMPAT != 0 {
        "ext4"
    } else if compat & HAS_JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    })
}

/// Where a ZFS label keeps its ring of uberblocks (the on-disk format, 1.3), in bytes.
pub const ZFS_RING: std::ops::Range<u64> = 0x2_0000..0x4_0000;

/// Whether the bytes of [`ZFS_RING`] have an uberblock of either byte order. A slot is 1 KiB or a larger power of two,
/// and a young pool has filled only some.
pub fn is_zfs_ring(ring: &[u8]) -> bool {
    const MAGIC: u64 = 0x00ba_b10c;
    ring.chunks_exact(1024).any(|slot| {
        let (little, big) = (MAGIC.to_le_bytes(), MAGIC.to_be_bytes());
        slot.starts_with(&little) || slot.starts_with(&big)
    })
}

/// Whether a first sector is an MBR: its mark, and at least one entry that could be a partition. (A FAT boot sector
/// has the mark, too, but is found by its own signature first.)
pub fn is_mbr(sector: &[u8]) -> bool {
    let entry = |i: usize| sector.get(446 + 16 * i..446 + 16 * (i + 1));
    let plausible = |e: &[u8]| (e[0] == 0 || e[0] == 0x80) && e[4] != 0 && e[12..16] != [0; 4];
    sector.get(510..512) == Some(b"\x55\xaa") && (0..4).filter_map(entry).any(plausible)
}
