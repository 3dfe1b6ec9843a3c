use axum::Router;
use axum::extract::Path as Of;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use super::*;

/// An API server with a few nodes and pods, and a kubeconfig for it.
async fn server() -> (tempfile::NamedTempFile, Cluster) {
    let node = |Of(name): Of<String>| async move { node(&name) };
    let pods = || async {
        let volume = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "db"}}]);
        let pod = |name: &str, phase: &str| {
            json!({"metadata": {"name": name}, "spec": {"nodeName": "a", "containers": [], "volumes": volume},
                   "status": {"phase": phase}})
        };
        let items = json!([pod("postgres-0", "Running"), pod("backup-1", "Succeeded")]);
        json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items}).to_string()
    };
    let app = Router::new()
        .route("/api/v1/nodes/{name}", get(node))
        .route("/api/v1/namespaces/shop/pods", get(move || async move { text(&pods().await) }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- {{name: c, cluster: {{server: 'http://{address}'}}}}\n\
         contexts:\n- {{name: c, context: {{cluster: c, user: u}}}}\nusers:\n- {{name: u, user: {{}}}}\n"
    );
    std::fs::write(file.path(), config).unwrap();
    let cluster = Cluster::connect(Some(file.path())).await.unwrap().unwrap();
    (file, cluster)
}

fn text(body: &str) -> Response {
    ([("content-type", "application/json")], body.to_owned()).into_response()
}

fn node(name: &str) -> Response {
    let ready = |status: &str| json!({"conditions": [{"type": "Ready", "status": status}]});
    let taint = json!({"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute", "value": "nodeshutdown"}]});
    let (spec, status) = match name {
        "ready" => (json!({}), ready("True")),
        "silent" => (json!({}), ready("Unknown")),
        "shut" => (taint, ready("Unknown")),
        _ => {
            let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                              "reason": "NotFound", "message": "no such node", "metadata": {}});
            return (StatusCode::NOT_FOUND, text(&body.to_string())).into_response();
        }
    };
    text(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec, "status": status}).to_string())
}

#[tokio::test]
async fn nodes_are_ready_silent_shut_down_or_gone() {
    let (_file, cluster) = server().await;
    assert_eq!(cluster.state("ready").await, NodeState::Ready);
    assert_eq!(cluster.state("silent").await, NodeState::NotReady);
    assert_eq!(cluster.state("shut").await, NodeState::OutOfService);
    assert_eq!(cluster.state("no-such").await, NodeState::Gone);
}

#[tokio::test]
async fn a_claims_pods_are_those_that_run() {
    let (_file, cluster) = server().await;
    assert_eq!(cluster.pods_of_claim("shop", "db").await.unwrap(), ["shop/postgres-0 on a"]);
    assert_eq!(cluster.pods_of_claim("shop", "other").await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unknown() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- {name: c, cluster: {server: 'http://127.0.0.1:1'}}\n\
                  contexts:\n- {name: c, context: {cluster: c, user: u}}\nusers:\n- {name: u, user: {}}\n";
    std::fs::write(file.path(), config).unwrap();
    let cluster = Cluster::connect(Some(file.path())).await.unwrap().unwrap();
    assert!(matches!(cluster.state("ready").await, NodeState::Unknown(_)));
}

/// As a command has it, which is in no runtime.
#[test]
fn programs_that_wait_for_each_answer_get_it() {
    let servers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (_file, cluster) = servers.block_on(server());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let kubernetes = Kubernetes { cluster, runtime };
    assert_eq!(kubernetes.pods_of_claim("shop", "db"), ["shop/postgres-0 on a"]);
    assert!(kubernetes.pods_of_claim("elsewhere", "db").is_empty());
    assert_eq!(kubernetes.node_state("ready"), NodeState::Ready);
}
