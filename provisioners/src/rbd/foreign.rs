//! Parameters of Ceph's own driver and of the in-tree plugin `kubernetes.io/rbd` that this backend does not have: see
//! docs/migration.md.

use super::handle::Handle;
use crate::parameters::{Foreign, foreign};
use crate::{Error, Parameters, Result, VolumeId};

/// Of a StorageClass.
pub(super) static CLASS: [Foreign; 39] = foreign! {
    "imageFormat", ["2", ""], Refused, "images are of format 2 here; leave it out";
    "thickProvision", ["false", ""], Refused, "images are thin; leave it out, or fill the volume once it is mounted";
    "tryOtherMounters", ["false", ""], Ignored, "a volume is mapped by `mounter` or not at all";
    "cephLogDir", [""], Ignored, "there is no rbd-nbd whose log would be kept";
    "cephLogStrategy", [""], Ignored, "there is no rbd-nbd whose log would be kept";
    "snapshotNamePrefix", [""], Ignored, "it is a parameter of VolumeSnapshotClasses";
    "encryptionKMSID", [""], Ignored, "volumes are not encrypted";
    "encryptionType", [""], Ignored, "volumes are not encrypted";
    "encryptionCipher", [""], Ignored, "volumes are not encrypted";
    "encryptionKeySize", [""], Ignored, "volumes are not encrypted";
    "encryptionSectorSize", [""], Ignored, "volumes are not encrypted";
    "integrityMode", [""], Ignored, "volumes are not encrypted";
    "topologyConstrainedPools", [""], Refused, "make a class for each pool, with `pool`, and allowedTopologies where its nodes are";
    "monitors", [], Refused, "monitors are in the driver's configuration (clusters); name the cluster by `clusterID`";
    "adminId", [], Refused, "name a Secret with userID and userKey by csi.storage.k8s.io/provisioner-secret-name and -namespace, or set the user in the driver's configuration";
    "adminSecretName", [], Refused, "name a Secret with userID and userKey by csi.storage.k8s.io/provisioner-secret-name";
    "adminSecretNamespace", [], Refused, "write csi.storage.k8s.io/provisioner-secret-namespace";
    "userId", [], Refused, "name a Secret with userID and userKey by csi.storage.k8s.io/node-stage-secret-name and -namespace, or set the user in the driver's configuration";
    "userSecretName", [], Refused, "name a Secret with userID and userKey by csi.storage.k8s.io/node-stage-secret-name";
    "userSecretNamespace", [], Refused, "write csi.storage.k8s.io/node-stage-secret-namespace";
    "baseIops", [], Refused, "this driver sets no limits of I/O; leave it out";
    "maxIops", [], Refused, "this driver sets no limits of I/O; leave it out";
    "baseReadIops", [], Refused, "this driver sets no limits of I/O; leave it out";
    "maxReadIops", [], Refused, "this driver sets no limits of I/O; leave it out";
    "baseWriteIops", [], Refused, "this driver sets no limits of I/O; leave it out";
    "maxWriteIops", [], Refused, "this driver sets no limits of I/O; leave it out";
    "baseBps", [], Refused, "this driver sets no limits of I/O; leave it out";
    "maxBps", [], Refused, "this driver sets no limits of I/O; leave it out";
    "baseReadBps", [], Refused, "this driver sets no limits of I/O; leave it out";
    "maxReadBps", [], Refused, "this driver sets no limits of I/O; leave it out";
    "baseWriteBps", [], Refused, "this driver sets no limits of I/O; leave it out";
    "maxWriteBps", [], Refused, "this driver sets no limits of I/O; leave it out";
    "iopsPerGiB", [], Refused, "this driver sets no limits of I/O; leave it out";
    "readIopsPerGiB", [], Refused, "this driver sets no limits of I/O; leave it out";
    "writeIopsPerGiB", [], Refused, "this driver sets no limits of I/O; leave it out";
    "bpsPerGiB", [], Refused, "this driver sets no limits of I/O; leave it out";
    "readBpsPerGiB", [], Refused, "this driver sets no limits of I/O; leave it out";
    "writeBpsPerGiB", [], Refused, "this driver sets no limits of I/O; leave it out";
    "baseVolSizeBytes", [], Refused, "this driver sets no limits of I/O; leave it out";
};

/// Of a VolumeGroupSnapshotClass.
pub(super) static GROUP_CLASS: [Foreign; 2] = foreign! {
    "volumeGroupNamePrefix", [""], Ignored, "a group has the name that it was asked for";
    "snapshotNamePrefix", [""], Ignored, "the snapshots of a group are named by it";
};

/// Of the `volumeAttributes` of a PersistentVolume: what was true when its image was made is seen on the image.
pub(super) static ATTRIBUTES: [Foreign; 23] = foreign! {
    "staticVolume", ["true", "false", ""], Ignored, "an image without a record of this driver is never deleted";
    "imageFeatures", [""], Ignored, "the image has the features that it was made with";
    "imageFormat", ["2", ""], Refused, "the kernel's client opens images of format 2 only";
    "journalPool", [""], Ignored, "what Ceph's own driver has noted is not read";
    "dataPool", [""], Ignored, "the image knows its data pool";
    "stripeUnit", [""], Ignored, "the image has the layout that it was made with";
    "stripeCount", [""], Ignored, "the image has the layout that it was made with";
    "objectSize", [""], Ignored, "the image has the layout that it was made with";
    "volumeNamePrefix", [""], Ignored, "the image has its name";
    "snapshotNamePrefix", [""], Ignored, "snapshots are named by their class";
    "thickProvision", ["false", ""], Ignored, "nothing is allocated for an image that exists";
    "tryOtherMounters", ["false", ""], Ignored, "a volume is mapped by `mounter` or not at all";
    "cephLogDir", [""], Ignored, "there is no rbd-nbd whose log would be kept";
    "cephLogStrategy", [""], Ignored, "there is no rbd-nbd whose log would be kept";
    "topologyConstrainedPools", [""], Ignored, "the image is in the pool of its volumeHandle";
    "encrypted", ["false", ""], Refused, "the image was encrypted by Ceph's own driver, and this one cannot open it: keep that driver for this volume, or copy its files to a new one";
    "encryptionKMSID", [""], Ignored, "images that are not encrypted have no use for it";
    "encryptionType", [""], Ignored, "images that are not encrypted have no use for it";
    "encryptionCipher", [""], Ignored, "images that are not encrypted have no use for it";
    "encryptionKeySize", [""], Ignored, "images that are not encrypted have no use for it";
    "encryptionSectorSize", [""], Ignored, "images that are not encrypted have no use for it";
    "integrityMode", [""], Ignored, "images that are not encrypted have no use for it";
    "lockRecovery", ["manual", ""], Ignored, "a volume that was not made by this driver is recovered by `volumectl lock recover`";
};

/// The error for a handle that is not of this backend; one of Ceph's own driver, or an image's bare name as that driver's
/// static PersistentVolumes have it, with what to write instead.
pub(super) fn no_volume(id: &VolumeId) -> Error {
    let hint = if is_of_ceph_csi(&id.0) {
        ": this is a handle of Ceph's own driver; write volumeHandle: <clusterID>:<pool>/<imageName> from its volumeAttributes (docs/migration.md)"
    } else if crate::naming::is_safe_component(&id.0) {
        ": it has no cluster and pool; write volumeHandle: <clusterID>:<pool>/<image> (docs/migration.md)"
    } else {
        ""
    };
    Error::NotFound(format!("there is no volume {id}{hint}"))
}

/// `0001-<length>-<clusterID>-<pool, 16 digits>-<UUID>`, or what Kubernetes made of PersistentVolumes of the in-tree plugin.
fn is_of_ceph_csi(id: &str) -> bool {
    let parts: Vec<&str> = id.split('-').collect();
    let hex = |part: &str, length: usize| part.len() == length && part.bytes().all(|b| b.is_ascii_hexdigit());
    let pool = parts.len().checked_sub(6).and_then(|at| parts.get(at));
    id.starts_with("mig_mons-")
        || parts.len() >= 9 && hex(parts[0], 4) && hex(parts[1], 4) && pool.is_some_and(|pool| hex(pool, 16))
}

/// Where an image is by attributes must be where it is by its handle: another could be meant.
pub(super) fn check_place(attribute: impl Fn(&str) -> Option<String>, handle: &Handle) -> Result<()> {
    let place = &handle.place;
    let known = [
        ("clusterID", &place.cluster),
        ("pool", &place.pool),
        ("radosNamespace", &place.namespace),
        ("imageName", &handle.name),
    ];
    for (key, has) in known {
        if let Some(says) = attribute(key).filter(|says| says != has) {
            let field = crate::parameters::field_of("volume_context", key);
            let problem = format!(
                "{says:?}, but the volumeHandle {handle} says {has:?}; write volumeHandle: <clusterID>:<pool>/[<namespace>/]<image>, and the same in volumeAttributes or nothing"
            );
            return Err(Error::invalid(field, problem));
        }
    }
    Ok(())
}

/// A snapshot's class may name the cluster and pool of its source, and no other.
pub(super) fn check_source(reader: &Parameters<'_>, source: &Handle) -> Result<()> {
    for (key, has) in [("clusterID", &source.place.cluster), ("pool", &source.place.pool)] {
        if let Some(asked) = reader.get(key).filter(|asked| asked != has) {
            let problem = format!("{asked:?}, but the volume is in {has:?}, and its snapshots with it");
            return Err(Error::invalid(reader.field_of(key), problem));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_of_cephs_own_driver_are_known() {
        let uuid = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
        let id = |text: &str| no_volume(&VolumeId(text.into())).to_string();
        for cluster in ["ceph", "rook-ceph", "ba68226a-672f-4ba5-97bc-22840318b2ec"] {
            let text = format!("0001-{:04x}-{cluster}-0000000000000002-{uuid}", cluster.len());
            assert!(id(&text).contains("<imageName>"), "{text}");
        }
        assert!(
            id("mig_mons-b7f67366bb43f32e07d8a261a7840da9_image-e0b45b52_pool-7265706c")
                .contains("<imageName>")
        );
        assert!(id("static-image").contains("no cluster and pool"));
        assert_eq!(id("ceph:pool/"), "there is no volume ceph:pool/");
    }
}
