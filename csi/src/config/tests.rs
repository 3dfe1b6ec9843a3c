use super::*;

const GOOD: &str = "nodeId: worker-1
backends:
  - type: local
    roots: {default: /data}
  - type: local
    driverName: fast.csi.example.org
    socket: /tmp/fast.sock
    roots:
      ssd: /ssd
";

#[test]
fn defaults_are_filled_in() {
    let config = Config::parse(GOOD).unwrap();
    assert_eq!(config.backends[0].driver_name, "local.csi.volumectl.io");
    assert_eq!(config.backends[0].socket, Path::new("/run/volumectl/local.csi.volumectl.io.sock"));
    assert_eq!(config.shutdown_grace_seconds, 20);
    assert_eq!(config.cluster_id, "default");
}

#[test]
fn what_is_printed_can_be_read_back() {
    let config = Config::parse(GOOD).unwrap();
    let text = serde_saphyr::to_string(&config).unwrap();
    let again = Config::parse(&text).unwrap();
    assert_eq!(serde_saphyr::to_string(&again).unwrap(), text);
}

#[track_caller]
fn wrong(text: &str, words: &[&str]) {
    let error = Config::parse(text).unwrap_err();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn a_bad_file_is_refused_with_line_and_key() {
    wrong("nodeId: a\nbackend: []\n", &[":2:1: ", "backend"]);
    wrong("nodeId: a\nbackends:\n  - type: tape\n", &[":3:", "tape"]);
    wrong(
        &GOOD.replace("worker-1", "\"\"").replace("roots: {default", "root: {default"),
        &[":4:5: ", "root"],
    );
    wrong(&GOOD.replace("/tmp/fast.sock", "fast.sock"), &[":7:5: ", "backends[1].socket", "absolute"]);
    wrong(&GOOD.replace("fast.csi.example.org", "-fast-"), &[":6:5: ", "backends[1].driverName", "-fast-"]);
    let twice = GOOD.replace("fast.csi.example.org", "local.csi.volumectl.io");
    wrong(&twice, &["backends[1].driverName", "backends[0]"]);
    wrong("backends: []\n", &[":1:1: ", "backends", "at least one"]);
    wrong("backends:\n  - type: local\n", &["backends[0].roots", ":2:1"]);
    wrong("maxConcurrentOperations: 0\nbackends:\n  - type: local\n", &[":1:1: ", "maxConcurrentOperations"]);
    wrong("nodeId: [\n", &[":"]);
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/nonexistent/driver.yaml")).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/driver.yaml: "), "{error}");
}

#[test]
fn a_key_that_is_given_twice_is_named() {
    wrong("nodeId: a\nnodeId: b\nbackends: []\n", &[":2:1: ", "nodeId", "twice"]);
    let error = Config::parse("nodeId: a\nnodeId: b\nbackends: []\n").unwrap_err();
    assert!(!error.contains("Options") && !error.contains("Policy"), "{error}");
}

#[test]
fn a_node_name_that_is_no_label_value_is_refused() {
    for name in ["$(NODE_NAME)", "a/b", "-a", "a.", "a b", &"n".repeat(64)] {
        wrong(&GOOD.replace("worker-1", &format!("\"{name}\"")), &[":1:1: ", "nodeId", "label value"]);
    }
    for name in ["ip-10-0-0-1.eu-west-1.compute.internal", "Worker_2", "7", &"n".repeat(63)] {
        Config::parse(&GOOD.replace("worker-1", &format!("\"{name}\""))).unwrap();
    }
}

#[test]
fn a_root_belongs_to_one_backend() {
    for place in ["/data", "/data/", "//data/./", "/data/ssd", "/"] {
        wrong(&GOOD.replace("/ssd", place), &[":5:", "backends[1].roots", "ssd: ", "backends[0]", "default"]);
    }
    Config::parse(&GOOD.replace("/ssd", "/data-2")).unwrap();
}
