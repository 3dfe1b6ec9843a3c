use super::*;
use crate::run::input::Text;

const CLASS: &str = "kind: StorageClass
metadata: {name: fast, annotations: {storageclass.kubernetes.io/is-default-class: 'true'}}
provisioner: drv
allowVolumeExpansion: true
mountOptions: [noatime]
";

fn site() -> Site {
    let labels = [("zone", "a"), ("kubernetes.io/hostname", "n1")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    Site { driver: "drv".into(), labels, single_writer: false }
}

fn bundle(text: &str) -> Bundle {
    Bundle::parse(&[Text { name: "a.yaml".into(), text: text.to_owned() }]).unwrap()
}

fn claim(more: &str) -> String {
    format!(
        "---\nkind: PersistentVolumeClaim\nmetadata: {{name: db, namespace: shop}}\nspec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 2Gi}}}}{more}}}\n"
    )
}

/// A volume, with more metadata and more spec.
fn volume(name: &str, meta: &str, spec: &str) -> String {
    format!(
        "---\nkind: PersistentVolume\nmetadata: {{name: {name}{meta}}}\nspec: {{capacity: {{storage: 4Gi}}, accessModes: [ReadWriteOnce, ReadOnlyMany], csi: {{driver: drv, volumeHandle: 'default:{name}'}}{spec}}}\n"
    )
}

/// The volume that the first claim is bound to (`-`: one is made), or why not.
fn outcome(text: &str, known: &Known) -> Result<String, String> {
    let bundle = bundle(text);
    let plans = plans(&bundle, &site(), known).map_err(|error| format!("{error:#}"))?;
    Ok(match plans[0].origin {
        Origin::Volume(volume, _) => volume.metadata.name.clone(),
        Origin::Class(_) => "-".into(),
    })
}

fn bound(text: &str) -> Result<String, String> {
    outcome(text, &Known::new())
}

#[test]
fn a_claim_binds_the_volume_that_it_names() {
    let named = claim(", storageClassName: '', volumeName: old");
    assert_eq!(
        bound(&format!("{named}{}{}", volume("other", "", ""), volume("old", "", ""))),
        Ok("old".into())
    );
    let error = bound(&named).unwrap_err();
    assert!(error.contains("claim shop/db: PersistentVolume old is not in the file"), "{error}");
    let twice = format!("{named}{}{}", named.replace("name: db", "name: web"), volume("old", "", ""));
    let error = bound(&twice).unwrap_err();
    assert!(error.contains("claim shop/web") && error.contains("is bound to claim shop/db"), "{error}");
}

#[test]
fn what_does_not_fit_is_named() {
    for (spec, word) in [
        (", storageClassName: slow", "its storageClassName is \"slow\", the claim's is \"\""),
        (", volumeMode: Block", "its volumeMode is \"Block\", the claim's is \"Filesystem\""),
        (", claimRef: {name: web, namespace: shop}", "its claimRef is shop/web"),
        (", claimRef: {name: db, namespace: shop, uid: gone}", "remove claimRef.uid"),
        (
            ", nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [b]}]}]}}",
            "nodeAffinity excludes this node (kubernetes.io/hostname=n1, zone=a)",
        ),
        (", volumeAttributesClassName: gold", "its volumeAttributesClassName is \"gold\""),
    ] {
        let text = format!("{}{}", claim(", storageClassName: '', volumeName: old"), volume("old", "", spec));
        let error = bound(&text).unwrap_err();
        assert!(error.contains(word) && error.contains("nothing was changed"), "{word}: {error}");
    }
    let text = format!("{}{}", claim(", storageClassName: '', volumeName: old"), volume("old", "", ""));
    for (was, is, word) in [
        ("storage: 4Gi", "storage: 1Gi", "its capacity 1 GiB is less than the 2 GiB asked for"),
        ("capacity: {storage: 4Gi}", "capacity: {}", "no capacity.storage"),
        (
            "[ReadWriteOnce, ReadOnlyMany]",
            "[ReadOnlyMany]",
            "its accessModes (ReadOnlyMany) lack ReadWriteOnce",
        ),
        ("driver: drv", "driver: other", "it is of the driver other, this endpoint is drv"),
        ("csi: {driver: drv, volumeHandle: 'default:old'}", "nfs: {server: a}", "no CSI volume"),
        ("default:old", "", "volumeHandle is empty"),
    ] {
        let error = bound(&text.replace(was, is)).unwrap_err();
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn a_claim_without_a_class_has_a_volume_of_the_file_or_none() {
    let none = claim(", storageClassName: ''");
    let error = bound(&format!("{CLASS}{none}")).unwrap_err();
    assert!(error.contains("storageClassName is \"\"") && error.contains("no PersistentVolume"), "{error}");
    let error = bound(&format!("{CLASS}{none}{}", volume("pv", "", ", storageClassName: fast"))).unwrap_err();
    assert!(error.contains("pv: its storageClassName is \"fast\""), "{error}");
    // The one that is kept for it, else the smallest.
    let large = volume("large", "", "");
    let small = volume("small", "", "").replace("4Gi", "2Gi");
    assert_eq!(bound(&format!("{none}{large}{small}")), Ok("small".into()));
    let kept = volume("kept", "", ", claimRef: {name: db, namespace: shop}");
    assert_eq!(bound(&format!("{none}{small}{kept}")), Ok("kept".into()));
}

#[test]
fn an_absent_class_is_the_default_one() {
    assert_eq!(bound(&format!("{CLASS}{}", claim(""))), Ok("-".into()));
    let error = bound(&format!("{}{}", CLASS.replace("'true'", "'false'"), claim(""))).unwrap_err();
    assert!(error.contains("is-default-class"), "{error}");
    let both = format!("{CLASS}---\n{}{}", CLASS.replace("name: fast", "name: a"), claim(""));
    let both = bundle(&both);
    let plans = plans(&both, &site(), &Known::new()).unwrap();
    assert_eq!(plans[0].class, "a");
    assert_eq!(remarks(&both, &site(), &plans), ["2 classes are annotated as default: a is taken"]);
    // A volume of the class is there: nothing is made.
    let text = format!("{CLASS}{}{}", claim(""), volume("pv", "", ", storageClassName: fast"));
    assert_eq!(bound(&text), Ok("pv".into()));
}

#[test]
fn a_selector_finds_and_never_makes() {
    let selecting = claim(", selector: {matchLabels: {tier: gold}}");
    let of = |meta: &str| volume("pv", meta, ", storageClassName: fast");
    assert_eq!(bound(&format!("{CLASS}{selecting}{}", of(", labels: {tier: gold}"))), Ok("pv".into()));
    let error = bound(&format!("{CLASS}{selecting}{}", of(""))).unwrap_err();
    assert!(error.contains("spec.selector") && error.contains("labels do not fit"), "{error}");
}

#[test]
fn a_class_and_a_source_are_checked_before_anything_is_done() {
    for (class, more, word) in [
        (CLASS.replace("provisioner: drv", "provisioner: x"), "", "for the driver x, this endpoint is drv"),
        (format!("{CLASS}parameters: {{csi.storage.k8s.io/nope: a}}\n"), "", "which no sidecar knows"),
        (format!("{CLASS}parameters: {{fsType: xfs, csi.storage.k8s.io/fstype: xfs}}\n"), "", "twice"),
        (format!("{CLASS}reclaimPolicy: Keep\n"), "", "known: Delete, Retain"),
        (
            format!("{CLASS}allowedTopologies: [{{matchLabelExpressions: [{{key: zone, values: [b]}}]}}]\n"),
            "",
            "exclude this node",
        ),
        (
            format!("{CLASS}parameters: {{csi.storage.k8s.io/node-stage-secret-name: key}}\n"),
            "",
            "node-stage secret shop/key",
        ),
        (CLASS.into(), ", volumeMode: Tape", "\"Tape\" is neither"),
        (CLASS.into(), ", dataSource: {kind: VolumeSnapshot, name: s}", "needs apiGroup"),
        (CLASS.into(), ", dataSource: {kind: PersistentVolumeClaim, name: s}", "is not in the file"),
        (CLASS.into(), ", dataSourceRef: {apiGroup: example.org, kind: Image, name: s}", "volume populator"),
        (
            CLASS.into(),
            ", dataSourceRef: {kind: PersistentVolumeClaim, name: db, namespace: other}",
            "ReferenceGrant",
        ),
        (CLASS.into(), ", volumeAttributesClassName: gold", "VolumeAttributesClass gold is not in the file"),
    ] {
        let error = bound(&format!("{class}{}", claim(more))).unwrap_err();
        assert!(error.contains(word) && error.starts_with("claim shop/db: "), "{word}: {error}");
    }
    for modes in ["", "ReadWriteSometimes", "ReadWriteOncePod, ReadWriteOnce"] {
        let text = format!("{CLASS}{}", claim("").replace("ReadWriteOnce", modes));
        assert!(bound(&text).unwrap_err().contains("spec.accessModes"), "{modes}");
    }
}

fn noted(capacity: i64, requested: i64) -> Known {
    let text = format!("{CLASS}{}", claim(""));
    let bundle = bundle(&text);
    let plans = plans(&bundle, &site(), &Known::new()).unwrap();
    let bound = Bound {
        claim: "shop/db".into(),
        volume_id: "default:db".into(),
        driver: "drv".into(),
        class: "fast".into(),
        capacity_bytes: capacity << 30,
        requested_bytes: requested << 30,
        fixed: super::super::state::fixed(&plans[0]),
        ..Bound::default()
    };
    [("shop/db".to_owned(), bound)].into()
}

#[test]
fn a_volume_grows_where_its_class_says_so_and_never_shrinks() {
    let text = format!("{CLASS}{}", claim(""));
    assert_eq!(outcome(&text, &noted(2, 2)), Ok("-".into()));
    assert_eq!(outcome(&text, &noted(1, 1)), Ok("-".into()), "it grows");
    assert_eq!(outcome(&text, &noted(5, 2)), Ok("-".into()), "the driver has rounded up");
    assert_eq!(outcome(&text, &noted(1, 9)), Ok("-".into()), "back from a growth that failed");
    let error = outcome(&text, &noted(4, 4)).unwrap_err();
    assert!(error.contains("claim shop/db: it asks for 2 GiB, its volume default:db has 4 GiB"), "{error}");
    let error = outcome(&text.replace("allowVolumeExpansion: true", ""), &noted(1, 1)).unwrap_err();
    assert!(error.contains("allowVolumeExpansion"), "{error}");
}

#[test]
fn what_cannot_change_is_refused() {
    for (more, word) in [
        (", volumeMode: Block", "spec.volumeMode"),
        (", volumeName: pv, storageClassName: fast", "spec.volumeName"),
        (", dataSource: {kind: PersistentVolumeClaim, name: db}", "spec.dataSource"),
    ] {
        let error = outcome(&format!("{CLASS}{}", claim(more)), &noted(2, 2)).unwrap_err();
        assert!(error.contains(word) && error.contains("cannot change"), "{word}: {error}");
    }
    // Another default class does not matter to who has one.
    let text = format!("{}---\n{}{}", CLASS.replace("name: fast", "name: a"), CLASS, claim(""));
    assert_eq!(outcome(&text, &noted(2, 2)), Ok("-".into()));
}

#[test]
fn what_is_not_done_is_said() {
    let text = format!(
        "{CLASS}{}{}{}",
        claim(", volumeMode: Block"),
        volume("spare", "", ""),
        volume("kept", "", ", claimRef: {name: db, namespace: shop}")
    );
    let bundle = bundle(&text);
    let plans = plans(&bundle, &site(), &Known::new()).unwrap();
    let lines = remarks(&bundle, &site(), &plans);
    assert_eq!(lines[0], "ignored: claim shop/db: mountOptions of its class fast (it is a raw block device)");
    assert_eq!(lines[1], "ignored: PersistentVolume spare (no claim is bound to it)");
    assert!(
        lines[2].starts_with("ignored: PersistentVolume kept") && lines[2].contains("storageClassName"),
        "{lines:?}"
    );
}
