//! A Kubernetes API server that knows nodes, and in each name space a pod that uses the claim `db`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::extract::Path as Of;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::json;

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// `Ready`.
    Ready,
    /// Not `Ready`, for nobody hears of it.
    Silent,
    /// Tainted `node.kubernetes.io/out-of-service`.
    OutOfService,
}

/// The server, as long as this process lives.
#[derive(Debug, Clone)]
pub struct Api {
    nodes: Arc<Mutex<BTreeMap<String, Node>>>,
    /// A kubeconfig for it.
    pub kubeconfig: PathBuf,
}

impl Api {
    /// Starts it with one node that is ready; its kubeconfig is written into `dir`.
    pub async fn start(dir: &Path, node: &str) -> Result<Self> {
        let nodes = Arc::new(Mutex::new(BTreeMap::from([(node.to_owned(), Node::Ready)])));
        let known = nodes.clone();
        let answer = move |Of(name): Of<String>| async move {
            let state = known.lock().unwrap_or_else(PoisonError::into_inner).get(&name).copied();
            show(&name, state)
        };
        let app = Router::new()
            .route("/api/v1/nodes/{name}", get(answer))
            .route("/api/v1/namespaces/{namespace}/pods", get(|| async { axum::Json(pods()) }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let server = format!("http://{}", listener.local_addr()?);
        tokio::spawn(async move { axum::serve(listener, app).await });
        let kubeconfig = dir.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- {{name: c, cluster: {{server: '{server}'}}}}\n\
             contexts:\n- {{name: c, context: {{cluster: c, user: u}}}}\nusers:\n- {{name: u, user: {{}}}}\n"
        );
        std::fs::write(&kubeconfig, text)?;
        Ok(Self { nodes, kubeconfig })
    }

    /// Says how a node is from now on; `None`: it is gone.
    pub fn set(&self, node: &str, state: Option<Node>) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        match state {
            Some(state) => nodes.insert(node.to_owned(), state),
            None => nodes.remove(node),
        };
    }

    /// The line for the driver's configuration.
    pub fn config(&self) -> String {
        format!("kubeconfig: {}\n", self.kubeconfig.display())
    }
}

fn pods() -> serde_json::Value {
    let volume = json!({"name": "data", "persistentVolumeClaim": {"claimName": "db"}});
    let pod = json!({"metadata": {"name": "postgres-0"}, "spec": {"nodeName": "node-1", "containers": [], "volumes": [volume]},
                     "status": {"phase": "Running"}});
    json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": [pod]})
}

fn show(name: &str, state: Option<Node>) -> Response {
    let Some(state) = state else {
        let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
                          "reason": "NotFound", "message": format!("nodes {name:?} not found")});
        return (StatusCode::NOT_FOUND, axum::Json(body).into_response()).into_response();
    };
    let ready = if state == Node::Ready { "True" } else { "Unknown" };
    let taint =
        json!([{"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}]);
    let taints = if state == Node::OutOfService { taint } else { json!([]) };
    let body = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"taints": taints},
                      "status": {"conditions": [{"type": "Ready", "status": ready}]}});
    axum::Json(body).into_response()
}
