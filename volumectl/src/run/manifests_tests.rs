use super::*;

const FILE: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: fast, annotations: {storageclass.kubernetes.io/is-default-class: \"true\"}}
provisioner: local.csi.volumectl.io
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

#[test]
fn several_documents_and_lists_are_read() {
    let bundle = Bundle::parse(FILE).unwrap();
    let claim = &bundle.claims[0];
    let class = bundle.class(claim).unwrap();
    assert_eq!(class.provisioner, "local.csi.volumectl.io");
    assert_eq!(bundle.secrets("provisioner", &class.parameters, &claim.metadata).unwrap()["userKey"], "abc");
    assert!(bundle.secrets("node-stage", &class.parameters, &claim.metadata).unwrap().is_empty());
    assert_eq!(bundle.ignored, ["Deployment web"]);
}

#[test]
fn a_uid_is_kept_or_made_of_the_name() {
    let claim = &Bundle::parse(FILE).unwrap().claims[0];
    assert_eq!(claim.metadata.uid(), claim.metadata.uid());
    assert_eq!(claim.metadata.uid().len(), 36);
    let given = FILE.replace("namespace: shop}\n  spec", "namespace: shop, uid: abc}\n  spec");
    assert_eq!(Bundle::parse(&given).unwrap().claims[0].metadata.uid(), "abc");
}

#[test]
fn what_is_missing_is_named() {
    let error = |text: &str| format!("{:#}", Bundle::parse(text).err().unwrap());
    assert!(error("a: [").contains("not YAML"));
    assert!(error("kind: StorageClass\nmetadata: {name: x}\n").contains("StorageClass x"));
    assert!(error("metadata: {name: x}\n").contains("no kind"));
    assert!(error("kind: Pod\nmetadata: {name: x}\n").contains("nothing to do"));
    let bundle =
        Bundle::parse(&FILE.replace("spec: {accessModes", "spec: {storageClassName: slow, accessModes"))
            .unwrap();
    let text = bundle.class(&bundle.claims[0]).unwrap_err().to_string();
    assert!(text.contains("shop/db") && text.contains("slow"), "{text}");
}

/// What the parser shows of the text may be a Secret's.
#[test]
fn a_syntax_error_shows_no_secret() {
    let text = "kind: Secret\nmetadata: {name: x}\nstringData:\n  userKey: s3cr3t\n  userKey: s3cr3t\n";
    let error = format!("{:#}", Bundle::parse(text).err().unwrap());
    assert!(error.contains("not YAML") && error.contains("duplicate"), "{error}");
    assert!(!error.contains("s3cr3t") && !error.contains("Policy"), "{error}");
}
