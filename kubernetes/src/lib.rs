//! What is asked of the Kubernetes API: how nodes are, and which pods use a claim.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use provisioners::{NodeState, Nodes};

/// How long one question may take.
const ANSWER: Duration = Duration::from_secs(5);
/// What the kubelet sets in every container.
const IN_POD: &str = "KUBERNETES_SERVICE_HOST";
/// The taint by which an administrator says that a node is shut down (Kubernetes, "Non-graceful node shutdown").
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A Kubernetes API server.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl Cluster {
    /// The server of a kubeconfig; without one that of the pod that this process is in. Neither: `None`.
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Option<Self>> {
        let mut config = match kubeconfig {
            Some(file) => {
                let text =
                    Kubeconfig::read_from(file).with_context(|| format!("reading {}", file.display()))?;
                Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()).await?
            }
            None if std::env::var_os(IN_POD).is_some() => Config::incluster()?,
            None => return Ok(None),
        };
        config.connect_timeout = Some(ANSWER);
        config.read_timeout = Some(ANSWER);
        Ok(Some(Self { client: Client::try_from(config)? }))
    }

    /// The pods that use a claim and have not ended: `<namespace>/<name> on <node>`.
    pub async fn pods_of_claim(&self, namespace: &str, claim: &str) -> Result<Vec<String>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let all = pods.list(&ListParams::default()).await?;
        let uses = |pod: &Pod| {
            let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
            let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            !matches!(ended, Some("Succeeded" | "Failed"))
                && volumes.is_some_and(|volumes| {
                    volumes.iter().any(|v| {
                        v.persistent_volume_claim.as_ref().is_some_and(|source| source.claim_name == claim)
                    })
                })
        };
        let show = |pod: Pod| {
            let name = pod.metadata.name.unwrap_or_default();
            let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_else(|| "no node yet".into());
            format!("{namespace}/{name} on {node}")
        };
        Ok(all.items.into_iter().filter(uses).map(show).collect())
    }
}

#[async_trait]
impl Nodes for Cluster {
    async fn state(&self, node: &str) -> NodeState {
        let nodes: Api<Node> = Api::all(self.client.clone());
        match tokio::time::timeout(ANSWER, nodes.get_opt(node)).await {
            Err(_) => NodeState::Unknown(format!("the API server did not answer in {} s", ANSWER.as_secs())),
            Ok(Err(error)) => NodeState::Unknown(error.to_string()),
            Ok(Ok(None)) => NodeState::Gone,
            Ok(Ok(Some(node))) => state_of(&node),
        }
    }
}

/// A cluster that is connected to when it is first asked.
pub struct Later {
    kubeconfig: Option<PathBuf>,
    cluster: tokio::sync::OnceCell<Cluster>,
}

impl Later {
    /// The cluster of a kubeconfig, else of the pod that this process is in; `None`: it is in no pod.
    pub fn new(kubeconfig: Option<PathBuf>) -> Option<Self> {
        let known = kubeconfig.is_some() || std::env::var_os(IN_POD).is_some();
        known.then(|| Self { kubeconfig, cluster: tokio::sync::OnceCell::new() })
    }
}

#[async_trait]
impl Nodes for Later {
    async fn state(&self, node: &str) -> NodeState {
        let connect = || async {
            let cluster = Cluster::connect(self.kubeconfig.as_deref()).await?;
            cluster.context("no kubeconfig, and this process is in no pod")
        };
        match self.cluster.get_or_try_init(connect).await {
            Ok(cluster) => cluster.state(node).await,
            Err(error) => NodeState::Unknown(format!("{error:#}")),
        }
    }
}

fn state_of(node: &Node) -> NodeState {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    if taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)) {
        return NodeState::OutOfService;
    }
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"));
    if ready.is_some_and(|ready| ready.status == "True") { NodeState::Ready } else { NodeState::NotReady }
}

/// The same for programs that wait for each answer.
pub struct Kubernetes {
    cluster: Cluster,
    runtime: tokio::runtime::Runtime,
}

impl Kubernetes {
    /// The cluster of `KUBECONFIG`, of ~/.kube/config or of this pod, if it answers; without one the commands do
    /// without.
    pub fn at_hand() -> Option<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        let named = std::env::var_os("KUBECONFIG").map(PathBuf::from);
        let usual = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".kube/config"));
        let file = named.or_else(usual).filter(|file| file.exists());
        let connected = runtime.block_on(Cluster::connect(file.as_deref()));
        match connected {
            Ok(cluster) => cluster.map(|cluster| Self { cluster, runtime }),
            Err(error) => {
                tracing::warn!("Kubernetes is left out: {error:#}");
                None
            }
        }
    }

    /// How a node is.
    pub fn node_state(&self, node: &str) -> NodeState {
        self.runtime.block_on(self.cluster.state(node))
    }

    /// The pods that use a claim; none if that cannot be learned.
    pub fn pods_of_claim(&self, namespace: &str, claim: &str) -> Vec<String> {
        // A time-out is of the runtime that it is made in.
        let asked =
            async { tokio::time::timeout(ANSWER, self.cluster.pods_of_claim(namespace, claim)).await };
        self.runtime.block_on(asked).ok().and_then(Result::ok).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
