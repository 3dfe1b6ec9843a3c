//! How a node gets at a volume: plain structs between a backend and the node's kernel.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How a node gets at a volume. A backend says which; `csi/src/host/` does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// A file on this node that becomes a loop device.
    LoopFile {
        /// The backing file.
        path: PathBuf,
    },
    /// A directory on this node that is bind mounted.
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// An image of a Ceph cluster.
    Rbd(Box<RbdImage>),
    /// A directory of an NFS share.
    Nfs(Box<NfsMount>),
    /// A volume of Cinder that Nova has attached.
    Cinder(Box<CinderDisk>),
}

/// A volume of Cinder that Nova has attached to this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CinderDisk {
    /// The volume's UUID, which is its disk's serial.
    pub id: String,
    /// A directory of links to devices, in place of the node's own disks.
    pub root: Option<PathBuf>,
    /// What the controller has seen of its size, in bytes; it may have grown since.
    pub at_least: Option<u64>,
}

/// A directory of an NFS share. Of a volume that is only looked for on this node, nothing is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NfsMount {
    /// The server's name or address.
    pub server: String,
    /// The exported path.
    pub share: String,
    /// The directory below it; empty: the share itself.
    pub dir: String,
    /// Mount options of the driver's configuration and the class.
    pub options: Vec<String>,
    /// Whether a node gives up what pods have written when it is to unmount the share and the server does not take it.
    pub force: bool,
    /// The share's content on this machine, which is bound instead of mounted.
    pub local: Option<PathBuf>,
}

/// An image of a Ceph cluster, and how to map it. Of a volume that is only looked for on this node, no more than the
/// first four are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RbdImage {
    /// The configured `clusterID`.
    pub cluster: String,
    /// The pool's name.
    pub pool: String,
    /// The RADOS namespace; empty: the default one.
    pub namespace: String,
    /// The image's name.
    pub image: String,
    /// Which image of that name: one that is deleted and made again is another.
    pub identity: Option<RbdIdentity>,
    /// The cluster's fsid.
    pub fsid: String,
    /// By what it is mapped.
    pub mounter: RbdMounter,
    /// The monitors as librados takes them.
    pub mon_host: String,
    /// The monitors as the kernel takes them: `10.0.0.1:6789`.
    pub monitors: Vec<String>,
    /// The user without `client.`.
    pub user: String,
    /// The user's key.
    pub key: Option<SecretText>,
    /// Options of the kernel's client.
    pub map_options: Vec<String>,
    /// Options for unmapping: `force`.
    pub unmap_options: Vec<String>,
    /// The addresses of the clients that have it open now.
    pub watchers: Vec<String>,
    /// Whether somebody has its managed lock (feature exclusive-lock).
    pub locked: bool,
}

/// What tells an image from all others that its cluster has had: names are given again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RbdIdentity {
    /// The pool's number.
    pub pool: i64,
    /// The image's id.
    pub image: String,
}

/// By what an image is mapped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RbdMounter {
    /// The kernel's own client.
    #[default]
    Krbd,
    /// qemu-storage-daemon with a FUSE export, and a loop device.
    Fuse,
}

/// A text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// Takes a copy.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The text itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// What a node needs to know to stage a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeVolume {
    /// How to get at it.
    pub access: Access,
    /// The size the device must have; a device of another size is refused. `None`: not known without asking the server.
    pub size: Option<u64>,
    /// The file system wished for by the StorageClass, when the capability names none.
    pub fs_type: Option<String>,
    /// Extra arguments for mkfs.
    pub mkfs_options: Vec<String>,
    /// Mode bits for the root directory of a fresh file system.
    pub root_mode: Option<u32>,
    /// The file system that was once completed on it, if any: it is not formatted because it reads blank.
    pub formatted: Option<String>,
    /// It was used as a raw block device once: it is never formatted.
    pub raw: bool,
    /// The backend vouches that it was made blank and is attached for the first time. A word that is good for one format,
    /// which [`FsNote::Making`] uses up.
    pub vouched: Option<String>,
    /// What an operator has said about a format that is refused.
    pub permit: Permit,
}

/// An operator's word that what was seen on a volume may be formatted over, and how to give it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permit {
    /// The code of what was seen, as a refusal told it; good for exactly that.
    pub code: Option<String>,
    /// What to type, with `CODE` in the place of the code.
    pub how: String,
}

/// What is written down of a volume's file system. None of it ever permits a format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FsNote {
    /// It is about to be used as a raw block device.
    Raw,
    /// A file system is about to be made, on a device that has none. The backend looks again and refuses if it was used
    /// meanwhile, and uses up the words that allowed it.
    Making {
        /// Which.
        fs: String,
        /// The operator's code, if the device is formatted by that.
        permit: Option<String>,
        /// [`NodeVolume::vouched`], if the device was not read whole because of that.
        vouched: Option<String>,
    },
    /// A file system is complete.
    Made(String),
}
