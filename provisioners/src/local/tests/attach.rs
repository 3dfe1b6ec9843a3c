use super::*;

fn request(node: &str, read_only: bool) -> PublishRequest {
    PublishRequest { node: NodeId::from(node), capability: mounted(""), read_only }
}

#[tokio::test]
async fn publishing_is_noted_once_and_keeps_the_volume() {
    let bench = Bench::new();
    let volume = bench.make("v").await;
    let publish = async |r: &PublishRequest| bench.local.publish(&Ctx::new(), &volume.id, r).await;
    assert!(publish(&request("worker-1", false)).await.unwrap().is_empty());
    publish(&request("worker-1", false)).await.unwrap();
    refused(publish(&request("worker-1", true)).await, "already_exists", "unpublish it first");
    refused(publish(&request("worker-2", false)).await, "not_found", "node worker-2 does not have");
    let published = bench.local.get(&volume.id).await.unwrap().published;
    assert_eq!(published.into_iter().collect::<Vec<_>>(), [NodeId::from("worker-1")]);
    refused(bench.delete(&volume.id).await, "refused", "published to worker-1");
    let node = NodeId::from("worker-1");
    for node in [Some(&node), Some(&node), None] {
        bench.local.unpublish(&Ctx::new(), &volume.id, node).await.unwrap();
    }
    bench.delete(&volume.id).await.unwrap();
    bench.local.unpublish(&Ctx::new(), &volume.id, Some(&node)).await.unwrap();
    refused(publish(&request("worker-1", false)).await, "not_found", "default:v");
}

#[tokio::test]
async fn unpublishing_everywhere_needs_no_node() {
    let bench = Bench::new();
    let volume = bench.make("v").await;
    bench.local.publish(&Ctx::new(), &volume.id, &request("worker-1", true)).await.unwrap();
    bench.local.unpublish(&Ctx::new(), &volume.id, None).await.unwrap();
    assert!(bench.local.get(&volume.id).await.unwrap().published.is_empty());
    bench.local.unpublish(&Ctx::new(), &"junk".into(), None).await.unwrap();
}

#[test]
fn a_backend_attaches_only_if_configured() {
    for attach in [true, false] {
        let bench = Bench::with(&["default"], |config| config.attach = attach);
        let backend = bench.local.clone().backend();
        assert_eq!(backend.has(crate::Feature::Attachment), attach);
        assert!(backend.has(crate::Feature::GroupSnapshots) && backend.has(crate::Feature::Topology));
    }
}

#[tokio::test]
async fn a_publication_from_before_attachment_was_turned_off_keeps_nothing() {
    let mut bench = Bench::new();
    let volume = bench.make("v").await;
    bench.local.publish(&Ctx::new(), &volume.id, &request("worker-1", true)).await.unwrap();
    bench.restart(|config| config.attach = false);
    bench.delete(&volume.id).await.unwrap();
}
