//! The admission policy of deploy/local, evaluated as an API server does: what a node's account may do to
//! PersistentVolumes.

#![allow(clippy::unwrap_used)]

use cel::{Context, Program, Value as Cel};
use serde_json::{Value, json};

const NODE: &str = "authentication.kubernetes.io/node-name";
const PROVISIONER: &str = "system:serviceaccount:volumectl:csi-provisioner";

/// The policy as it is in the manifest.
fn policy() -> Value {
    let text = include_str!("../../deploy/local/csi-driver.yaml");
    let documents = text.split("\n---\n").map(|document| serde_saphyr::from_str::<Value>(document).unwrap());
    documents.into_iter().find(|it| it["kind"] == "ValidatingAdmissionPolicy").unwrap()
}

/// `Err` has why it cannot be evaluated: with `failurePolicy: Fail`, that refuses the request.
fn evaluate(expression: &Value, known: &Value) -> Result<Value, String> {
    let program = Program::compile(expression.as_str().unwrap()).unwrap();
    let mut context = Context::default();
    for (name, value) in known.as_object().unwrap() {
        context.add_variable(name.as_str(), value).unwrap();
    }
    let value = program.execute(&context).map_err(|error| error.to_string())?;
    Ok(plain(&value))
}

/// Of the kinds that the policy's variables have.
fn plain(value: &Cel) -> Value {
    match value {
        Cel::Bool(it) => json!(it),
        Cel::String(it) => json!(it.as_str()),
        Cel::List(all) => all.iter().map(plain).collect(),
        Cel::Map(map) => map.map.iter().map(|(key, value)| (key.to_string(), plain(value))).collect(),
        other => panic!("{other:?}"),
    }
}

/// Whether a request is let through; else with which message (Kubernetes, "Validating Admission Policy").
fn review(user: &Value, object: &Value, old: &Value) -> Result<(), String> {
    let policy = policy();
    let spec = &policy["spec"];
    assert_eq!(spec["failurePolicy"], "Fail", "what cannot be evaluated is refused");
    let request = json!({"userInfo": user});
    let mut known = json!({"request": request, "object": object, "oldObject": old, "variables": {}});
    for condition in spec["matchConditions"].as_array().unwrap() {
        if evaluate(&condition["expression"], &known)? != true {
            return Ok(());
        }
    }
    for variable in spec["variables"].as_array().unwrap() {
        known["variables"][variable["name"].as_str().unwrap()] = evaluate(&variable["expression"], &known)?;
    }
    for validation in spec["validations"].as_array().unwrap() {
        if evaluate(&validation["expression"], &known)? != true {
            return Err(validation["message"].as_str().unwrap().to_owned());
        }
    }
    Ok(())
}

fn user(node: &str) -> Value {
    json!({"username": PROVISIONER, "groups": ["system:serviceaccounts"], "extra": {NODE: [node]}})
}

fn term(node: &str) -> Value {
    let key = "topology.local.csi.volumectl.io/node";
    json!({"matchExpressions": [{"key": key, "operator": "In", "values": [node]}]})
}

/// A PersistentVolume of a driver, for the nodes of some terms.
fn volume(driver: &str, terms: &[Value]) -> Value {
    let affinity = json!({"required": {"nodeSelectorTerms": terms}});
    json!({"metadata": {"name": "pv"}, "spec": {"csi": {"driver": driver, "volumeHandle": "default:pv"}, "nodeAffinity": affinity}})
}

fn own(node: &str) -> Value {
    volume("local.csi.volumectl.io", &[term(node)])
}

const NOTHING: Value = Value::Null;

#[test]
fn e21_a_nodes_account_makes_changes_and_deletes_its_own_nodes_volumes() {
    let user = user("node-a");
    for (object, old) in [(own("node-a"), NOTHING), (own("node-a"), own("node-a")), (NOTHING, own("node-a"))]
    {
        assert_eq!(review(&user, &object, &old), Ok(()), "{object} {old}");
    }
}

#[test]
fn e21_a_nodes_account_has_no_other_nodes_volumes() {
    let user = user("node-a");
    let message = Err("this account handles volumes of its own node only".to_owned());
    let mut without = own("node-a");
    without["spec"].as_object_mut().unwrap().remove("nodeAffinity");
    let mut wider = own("node-a");
    let term_of_a = &mut wider["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0];
    term_of_a["matchExpressions"][0]["values"] = json!(["node-a", "node-b"]);
    let mut opposite = own("node-a");
    let term_of_a = &mut opposite["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0];
    term_of_a["matchExpressions"][0]["operator"] = json!("NotIn");
    let driver = "local.csi.volumectl.io";
    let others = [
        own("node-b"),
        without,
        wider,
        opposite,
        volume(driver, &[]),
        // Terms are alternatives.
        volume(driver, &[term("node-a"), term("node-b")]),
        volume(driver, &[term("node-a"), json!({"matchFields": []})]),
    ];
    for other in others {
        for (object, old) in
            [(&other, &NOTHING), (&NOTHING, &other), (&own("node-a"), &other), (&other, &own("node-a"))]
        {
            assert_eq!(review(&user, object, old), message, "{object} {old}");
        }
    }
}

#[test]
fn e21_a_nodes_account_has_no_other_drivers_volumes() {
    let user = user("node-a");
    let message = Err("this account handles volumes of the driver local.csi.volumectl.io only".to_owned());
    let foreign = volume("rbd.csi.volumectl.io", &[term("node-a")]);
    let mut in_tree = own("node-a");
    in_tree["spec"].as_object_mut().unwrap().remove("csi");
    in_tree["spec"]["hostPath"] = json!({"path": "/"});
    for other in [foreign, in_tree] {
        for (object, old) in [(&other, &NOTHING), (&NOTHING, &other), (&own("node-a"), &other)] {
            assert_eq!(review(&user, object, old), message, "{object} {old}");
        }
    }
}

/// Tokens that were made by hand, or before Kubernetes names nodes in them.
#[test]
fn e21_a_token_of_no_node_is_good_for_nothing() {
    let message = Err("this account handles volumes of its own node only".to_owned());
    let other_extra =
        json!({"username": PROVISIONER, "extra": {"authentication.kubernetes.io/pod-name": ["p"]}});
    let no_extra = json!({"username": PROVISIONER});
    let empty = json!({"username": PROVISIONER, "extra": {NODE: []}});
    for user in [other_extra, no_extra, empty, user("")] {
        assert_eq!(review(&user, &own("node-a"), &NOTHING), message, "{user}");
        assert_eq!(review(&user, &own(""), &NOTHING), message, "{user}");
    }
}

#[test]
fn e21_other_accounts_are_not_judged_by_it() {
    let admin = json!({"username": "admin", "groups": ["system:masters"]});
    assert_eq!(review(&admin, &volume("rbd.csi.volumectl.io", &[]), &NOTHING), Ok(()));
}
