//! Which volumes the claims of a file get, and what is said about the rest.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::bench::Bench;

const CLASS: &str = "
kind: StorageClass
metadata: {name: plain, annotations: {storageclass.kubernetes.io/is-default-class: 'true'}}
provisioner: local.csi.volumectl.io
allowVolumeExpansion: true
parameters: {type: directory}
---
";

const STATIC: &str = "
kind: PersistentVolume
metadata: {name: old-data}
spec:
  capacity: {storage: 64Mi}
  accessModes: [ReadWriteOnce]
  storageClassName: ''
  claimRef: {name: db, namespace: shop}
  csi: {driver: local.csi.volumectl.io, volumeHandle: 'default:old', fsType: ext4}
---
kind: PersistentVolumeClaim
metadata: {name: db, namespace: shop}
spec:
  storageClassName: ''
  volumeName: old-data
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 64Mi}}
";

/// A volume with a file in it.
fn old_volume(bench: &Bench) -> Result<()> {
    let (staging, target) = (bench.path("kubelet/s"), bench.path("kubelet/t"));
    std::fs::create_dir_all(&staging)?;
    bench.ok(&["csi", "create", "old", "--size", "64Mi", "--fs", "ext4"])?;
    bench.ok(&["csi", "attach", "old"])?;
    bench.ok(&["csi", "stage", "old", "--staging", &staging, "--fs", "ext4"])?;
    bench.ok(&["csi", "publish", "old", "--staging", &staging, "--target", &target, "--fs", "ext4"])?;
    std::fs::write(Path::new(&target).join("row"), "1")?;
    bench.ok(&["csi", "unpublish", "old", "--target", &target])?;
    bench.ok(&["csi", "unstage", "old", "--staging", &staging])?;
    bench.ok(&["csi", "detach", "old"]).map(drop)
}

#[tokio::test]
async fn a_claim_gets_the_volume_that_it_names() -> Result<()> {
    let Some(bench) = Bench::new("a_claim_gets_the_volume_that_it_names").await? else { return Ok(()) };
    old_volume(&bench)?;
    let (file, mounts) = (bench.path("old.yaml"), bench.path("mnt"));
    let run = ["csi", "run", "-f", &file, "--mount-dir", &mounts];
    for (was, is, word) in [
        (
            "capacity: {storage: 64Mi}",
            "capacity: {storage: 32Mi}",
            "its capacity 32 MiB is less than the 64 MiB",
        ),
        ("volumeName: old-data", "volumeName: other", "PersistentVolume other is not in the file"),
        (
            "storageClassName: ''\n  claimRef",
            "storageClassName: x\n  claimRef",
            "its storageClassName is \"x\"",
        ),
        ("{name: db, namespace: shop}\n  csi", "{name: web}\n  csi", "its claimRef is default/web"),
    ] {
        std::fs::write(&file, format!("{CLASS}{}", STATIC.replace(was, is)))?;
        let words = bench.fails(&run, 1)?;
        ensure!(words.contains("claim shop/db") && words.contains(word), "{word:?} is not in: {words}");
        ensure!(!Path::new(&mounts).exists());
    }
    std::fs::write(&file, format!("{CLASS}{STATIC}"))?;
    for _ in 0..2 {
        let claims = bench.json(&run)?;
        ensure!(claims[0]["volumeId"] == "default:old" && claims[0]["pv"] == "old-data", "{claims}");
    }
    ensure!(std::fs::read_to_string(bench.path("mnt/shop/db/row"))? == "1", "the volume's own file");
    let undo = bench.run(&["csi", "undo", "-f", &file, "--mount-dir", &mounts, "--force-delete"])?;
    let words = String::from_utf8(undo.stderr)?;
    ensure!(undo.status.success() && words.contains("kept shop/db: default:old"), "{words}");
    ensure!(!Path::new(&mounts).exists());
    bench.ok(&["csi", "delete", "old"])?;
    bench.nothing_left()
}

#[tokio::test]
async fn an_empty_class_makes_nothing() -> Result<()> {
    let Some(bench) = Bench::new("an_empty_class_makes_nothing").await? else { return Ok(()) };
    let (file, mounts) = (bench.path("none.yaml"), bench.path("mnt"));
    let run = ["csi", "run", "-f", &file, "--mount-dir", &mounts];
    let claim = STATIC.split_once("---\n").map_or("", |(_, claim)| claim);
    std::fs::write(&file, format!("{CLASS}{}", claim.replace("  volumeName: old-data\n", "")))?;
    let words = bench.fails(&run, 1)?;
    ensure!(words.contains("storageClassName is \"\"") && words.contains("no PersistentVolume"), "{words}");
    bench.nothing_left()
}

const SET: &str = "
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: db}}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
  template:
    spec:
      volumes:
      - {name: tmp, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}}
---
kind: ConfigMap
metadata: {name: settings}
";

/// From standard input, the class from a file beside it.
#[tokio::test]
async fn a_stateful_sets_claims_are_made() -> Result<()> {
    let Some(bench) = Bench::new("a_stateful_sets_claims_are_made").await? else { return Ok(()) };
    let (file, mounts) = (bench.path("class.yaml"), bench.path("mnt"));
    std::fs::write(&file, CLASS)?;
    let run = ["csi", "run", "-f", &file, "-f", "-", "--mount-dir", &mounts, "-o", "json"];
    let output = bench.piped(&run, SET)?;
    let words = String::from_utf8(output.stderr)?;
    ensure!(output.status.success(), "{words}");
    let claims: Value = serde_json::from_slice(&output.stdout)?;
    let names: Vec<_> =
        claims.as_array().into_iter().flatten().filter_map(|it| it["claim"].as_str()).collect();
    let all = [
        "shop/data-db-0",
        "shop/data-db-1",
        "shop/data-db-2",
        "shop/db-0-tmp",
        "shop/db-1-tmp",
        "shop/db-2-tmp",
    ];
    ensure!(names == all, "{names:?}");
    for name in all {
        ensure!(Path::new(&mounts).join(name).is_dir(), "{name}");
    }
    ensure!(words.contains("ignored: ConfigMap settings") && words.contains("no pod is started"), "{words}");

    // Fewer replicas: the others stay, as in a cluster, and are taken back with the rest.
    let fewer = SET.replace("replicas: 3", "replicas: 1");
    let output = bench.piped(&run, &fewer)?;
    let words = String::from_utf8(output.stderr)?;
    ensure!(output.status.success() && words.contains("left as they are: shop/data-db-1"), "{words}");
    let undo = ["csi", "undo", "-f", "-", "-f", &file, "--mount-dir", &mounts];
    let output = bench.piped(&undo, &fewer)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(!Path::new(&mounts).exists(), "{:?}", std::fs::read_dir(&mounts)?.collect::<Vec<_>>());
    bench.nothing_left()
}

#[tokio::test]
async fn a_claim_does_not_shrink() -> Result<()> {
    let Some(bench) = Bench::new("a_claim_does_not_shrink").await? else { return Ok(()) };
    let (file, mounts) = (bench.path("db.yaml"), bench.path("mnt"));
    let run = ["csi", "run", "-f", &file, "--mount-dir", &mounts];
    let write = |size: &str, more: &str| {
        let claim = |name: &str, size: &str| {
            format!(
                "kind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: {size}}}}}}}\n---\n"
            )
        };
        std::fs::write(
            &file,
            format!(
                "{CLASS}{}{}",
                if more.is_empty() { String::new() } else { claim(more, "1Mi") },
                claim("db", size)
            ),
        )
    };
    write("8Mi", "")?;
    bench.ok(&run)?;
    let before = bench.json(&["csi", "list"])?;
    write("4Mi", "new")?;
    let words = bench.fails(&run, 1)?;
    for word in ["claim default/db", "4 MiB", "8 MiB", "cannot shrink", "nothing was changed"] {
        ensure!(words.contains(word), "{word:?} is not in: {words}");
    }
    ensure!(bench.json(&["csi", "list"])? == before, "also the claim before it was not made");
    write("16Mi", "")?;
    ensure!(bench.json(&run)?[0]["capacityBytes"] == 16 << 20);
    bench.ok(&["csi", "undo", "-f", &file, "--mount-dir", &mounts])?;
    bench.nothing_left()
}
