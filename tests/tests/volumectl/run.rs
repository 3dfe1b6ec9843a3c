//! `csi run` and `csi undo`.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::bench::Bench;

/// As in a chart: classes, a database's claim, a snapshot of it, a claim restored from that, one cloned, one raw.
const MANIFESTS: &str = r#"
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: fast
  annotations: {storageclass.kubernetes.io/is-default-class: "true"}
provisioner: local.csi.volumectl.io
parameters:
  csi.storage.k8s.io/fstype: ext4
  nameTemplate: ${pvc.namespace}-${pvc.name}-${pvc.labels.tier}
mountOptions: [noatime]
allowVolumeExpansion: true
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: restored, namespace: shop, labels: {tier: data}}
spec:
  accessModes: [ReadWriteOncePod]
  resources: {requests: {storage: 64Mi}}
  dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: nightly}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: db, namespace: shop, labels: {tier: data}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: fast
  resources: {requests: {storage: SIZE}}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: nightly, namespace: shop}
spec: {source: {persistentVolumeClaimName: db}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: raw, namespace: shop, labels: {tier: raw}}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  resources: {requests: {storage: 8Mi}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
"#;

#[tokio::test]
async fn manifests_are_run_and_taken_back() -> Result<()> {
    let Some(bench) = Bench::new("manifests_are_run_and_taken_back").await? else { return Ok(()) };
    let (file, mounts) = (bench.path("shop.yaml"), bench.path("mnt"));
    std::fs::write(&file, MANIFESTS.replace("SIZE", "64Mi"))?;
    let run = ["csi", "run", "-f", &file, "--mount-dir", &mounts];
    for _ in 0..2 {
        let claims = bench.json(&run)?;
        ensure!(claims.as_array().is_some_and(|c| c.len() == 3), "{claims}");
        ensure!(claims[1]["claim"] == "shop/db" && claims[1]["usedAs"] == "ext4", "{claims}");
    }
    ensure!(
        bench.scratch.path().join("volumes/shop-db-data/disk.img").exists(),
        "the volume has the chosen name"
    );
    std::fs::write(bench.path("mnt/shop/db/row"), "1")?;
    ensure!(bench.scratch.path().join("mnt/shop/restored").is_dir());

    // The claim grows, as `kubectl edit pvc` does it: offline here, because a mounted ext4 may not grow.
    std::fs::write(&file, MANIFESTS.replace("SIZE", "128Mi"))?;
    if e2e::can_grow_ext4_online().is_ok() {
        ensure!(bench.json(&run)?[1]["capacityBytes"] == 128 << 20);
    } else {
        let output = bench.run(&run)?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && words.contains("CAP_SYS_RESOURCE"), "{words}");
        ensure!(words.contains("csi undo"), "it says how to go on: {words}");
    }
    bench.ok(&["csi", "undo", "-f", &file, "--mount-dir", &mounts])?;
    ensure!(!Path::new(&mounts).exists(), "nothing of the mounts is left");
    bench.nothing_left()?;

    std::fs::write(&file, MANIFESTS.replace("SIZE", "64Mi"))?;
    bench.ok(&[&run[..], &["--then", "delete"]].concat())?;
    bench.nothing_left()
}

#[tokio::test]
async fn a_retained_volume_is_kept_and_a_wrong_file_changes_nothing() -> Result<()> {
    let Some(bench) = Bench::new("a_retained_volume_is_kept").await? else { return Ok(()) };
    let (file, mounts) = (bench.path("keep.yaml"), bench.path("mnt"));
    let class = "kind: StorageClass\nmetadata: {name: keep, annotations: {storageclass.kubernetes.io/is-default-class: \"true\"}}\nprovisioner: local.csi.volumectl.io\nreclaimPolicy: Retain\nparameters: {type: directory}\n";
    let claim = "---\nkind: PersistentVolumeClaim\nmetadata: {name: a}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n";
    std::fs::write(&file, format!("{class}{claim}"))?;
    let run = ["csi", "run", "-f", &file, "--mount-dir", &mounts, "--then", "delete"];
    bench.ok(&run)?;
    let kept = bench.json(&["csi", "list"])?;
    ensure!(kept.as_array().is_some_and(|v| v.len() == 1), "{kept}");
    bench.ok(&[&run[..], &["--force-delete"]].concat())?;
    bench.nothing_left()?;

    for (wrong, word) in [
        (format!("{class}{}", claim.replace("1Gi", "lots")), "resources.requests.storage"),
        (
            format!("{}{claim}", class.replace("local.csi.volumectl.io", "other.example.org")),
            "other.example.org",
        ),
        (format!("{}{claim}", class.replace("type: directory", "typ: directory")), "type"),
        ("kind: [".to_owned(), "keep.yaml"),
    ] {
        std::fs::write(&file, wrong)?;
        let output = bench.run(&run)?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && words.contains(word), "{word:?} is not in: {words}");
        ensure!(!Path::new(&mounts).exists(), "nothing of the mounts is left");
        bench.nothing_left()?;
    }
    Ok(())
}
