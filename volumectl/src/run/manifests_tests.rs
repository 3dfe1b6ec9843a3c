use super::*;

pub const FILE: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: fast, annotations: {storageclass.kubernetes.io/is-default-class: \"true\"}}
provisioner: local.csi.volumectl.io
volumeBindingMode: WaitForFirstConsumer
parameters:
  type: file
  csi.storage.k8s.io/provisioner-secret-name: key-${pvc.name}
  csi.storage.k8s.io/provisioner-secret-namespace: ${pvc.namespace}
reclaimPolicy: Retain
---
apiVersion: v1
kind: List
items:
- kind: PersistentVolumeClaim
  metadata: {name: db, namespace: shop}
  spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
- kind: Secret
  metadata: {name: key-db, namespace: shop}
  stringData: {userKey: abc}
---
---
kind: Deployment
metadata: {name: web}
spec: {on: yes}
";

fn texts(texts: &[&str]) -> Vec<Text> {
    let named = |(i, text): (usize, &&str)| Text { name: format!("{i}.yaml"), text: (*text).to_owned() };
    texts.iter().enumerate().map(named).collect()
}

fn parse(text: &str) -> Result<Bundle> {
    Bundle::parse(&texts(&[text]))
}

fn error(text: &str) -> String {
    format!("{:#}", parse(text).err().expect("it was taken"))
}

#[test]
fn several_documents_and_lists_are_read() {
    let bundle = parse(FILE).unwrap();
    let claim = &bundle.claims[0];
    let class = bundle.class(bundle.class_name(claim)).unwrap();
    assert_eq!(class.provisioner, "local.csi.volumectl.io");
    assert_eq!(bundle.secrets("provisioner", &class.parameters, &claim.metadata).unwrap()["userKey"], "abc");
    assert!(bundle.secrets("node-stage", &class.parameters, &claim.metadata).unwrap().is_empty());
    assert_eq!(
        bundle.remarks,
        ["ignored: Deployment default/web (it has no claims of its own, and no pod is started)"]
    );
}

#[test]
fn lists_of_a_kind_give_their_items_the_kind() {
    let text = "kind: PersistentVolumeClaimList\nitems: [{metadata: {name: a}, spec: {}}]\n";
    assert_eq!(parse(text).unwrap().claims[0].metadata.path(), "default/a");
}

#[test]
fn several_files_are_one() {
    let (class, claims) = FILE.split_once("---").unwrap();
    let bundle = Bundle::parse(&texts(&[class, claims])).unwrap();
    assert!(bundle.class("fast").is_ok() && bundle.claims.len() == 1);
    let twice = Bundle::parse(&texts(&[FILE, claims])).err().unwrap();
    let twice = format!("{twice:#}");
    assert!(twice.contains("PersistentVolumeClaim shop/db is there twice (0.yaml, 1.yaml)"), "{twice}");
}

#[test]
fn a_uid_is_kept_or_made_of_the_name() {
    let claim = &parse(FILE).unwrap().claims[0];
    assert_eq!(claim.metadata.uid(), claim.metadata.uid());
    assert_eq!(claim.metadata.uid().len(), 36);
    let given = FILE.replace("namespace: shop}\n  spec", "namespace: shop, uid: abc}\n  spec");
    assert_eq!(parse(&given).unwrap().claims[0].metadata.uid(), "abc");
}

#[test]
fn what_is_missing_is_named() {
    assert!(error("a: [").contains("not YAML"));
    assert!(error("kind: StorageClass\nmetadata: {name: x}\n").contains("StorageClass x: missing field"));
    assert!(error("metadata: {name: x}\n").contains("no kind"));
    assert!(error("kind: Pod\nmetadata: {name: x}\n").contains("nothing to do"));
    assert!(
        error("kind: Pod\nmetadata: {generateName: x}\n").contains("Pod: metadata: missing field `name`")
    );
}

/// Names become paths below the mount directory.
#[test]
fn names_are_names() {
    for meta in [
        "name: ../../etc",
        "name: a/b",
        "name: \"\"",
        "name: A",
        "name: a, namespace: ..",
        "name: a, namespace: a.b",
        "name: a, uid: ../x",
    ] {
        let text = format!("kind: PersistentVolumeClaim\nmetadata: {{{meta}}}\nspec: {{}}\n");
        assert!(error(&text).contains("metadata."), "{meta}: {}", error(&text));
    }
}

#[test]
fn each_field_that_is_not_used_has_a_line() {
    let text = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: fast, creationTimestamp: null, finalizers: [a]}
provisioner: x
reclaimPolice: Retain
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: db, namespace: shop}
status: {phase: Bound}
spec: {resources: {requests: {storage: 1, cpu: 2}}, volumeMode: Block, selecter: {}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: pv}
spec: {persistentVolumeReclaimPolicy: Delete, claimRef: {apiVersion: v1, name: db, resourceVersion: '5'}, nfs: {server: a},
  csi: {driver: x, volumeHandle: a, fstype: xfs}}
---
apiVersion: example.org/v1
kind: VolumeSnapshot
metadata: {name: other}
---
apiVersion: v1
kind: Secret
metadata: {name: a}
stringdata: {userKey: abc}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  volumeClaimTemplates: [{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data, creationTimestamp: null}, status: {},
    spec: {accessMode: [ReadWriteOnce]}}]
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {volumes: [{name: cfg, csi: {driver: x}}, {name: d, persistentVolumeClaim: {claimName: nope}}]}
";
    let mut remarks = parse(text).unwrap().remarks;
    remarks.sort();
    let mut expected = [
        "ignored: StorageClass fast: reclaimPolice is not used",
        "ignored: PersistentVolumeClaim shop/db: spec.selecter is not used",
        "ignored: PersistentVolumeClaim shop/db: spec.resources.requests.cpu is not used",
        "ignored: PersistentVolume pv: spec.nfs is not used",
        "ignored: PersistentVolume pv: spec.csi.fstype is not used",
        "ignored: VolumeSnapshot other (nothing is done with this kind)",
        "ignored: Secret default/a: stringdata is not used",
        "StatefulSet default/db: its claims are default/data-db-0; no pod is started",
        "ignored: StatefulSet default/db: spec.volumeClaimTemplates.0.spec.accessMode is not used",
        "ignored: Pod default/web (it has no claims of its own, and no pod is started)",
        "ignored: Pod default/web: its volume cfg is inline (csi), which only kubelet makes",
        "ignored: Pod default/web: its claim default/nope is not in the file",
    ];
    expected.sort_unstable();
    assert_eq!(remarks, expected);
}

#[test]
fn a_claim_of_the_file_is_the_stateful_sets_own() {
    let set = "
kind: StatefulSet
metadata: {name: db}
spec: {replicas: 2, volumeClaimTemplates: [{metadata: {name: data}, spec: {}}]}
---
kind: PersistentVolumeClaim
metadata: {name: data-db-1}
spec: {volumeMode: Block}
";
    let bundle = parse(set).unwrap();
    let paths: Vec<_> = bundle.claims.iter().map(|claim| claim.metadata.path()).collect();
    assert_eq!(paths, ["default/data-db-1", "default/data-db-0"]);
    assert_eq!(bundle.claims[0].volume_mode(), "Block");
    assert!(bundle.former("default/data-db-4").is_some() && bundle.former("default/other").is_none());
    let pod = "
kind: Pod
metadata: {name: web}
spec: {volumes: [{name: tmp, ephemeral: {volumeClaimTemplate: {spec: {}}}}]}
---
kind: PersistentVolumeClaim
metadata: {name: web-tmp}
spec: {}
";
    assert!(error(pod).contains("Pod default/web: claim default/web-tmp is there already"), "{}", error(pod));
}

/// What the parser shows of the text may be a Secret's.
#[test]
fn a_syntax_error_shows_no_secret() {
    let text = "kind: Secret\nmetadata: {name: x}\nstringData:\n  userKey: s3cr3t\n  userKey: s3cr3t\n";
    let error = error(text);
    assert!(error.contains("not YAML") && error.contains("duplicate"), "{error}");
    assert!(!error.contains("s3cr3t") && !error.contains("Policy"), "{error}");
}
