use super::*;

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_double() {
    let bench = Bench::with(&["a", "a-b", "default"], |_| {});
    let mut all = Vec::new();
    for (n, root) in ["a", "a-b", "default", "a", "a-b", "default", "default"].iter().enumerate() {
        let template = format!("z{}", 9 - n);
        let parameters = [("root", *root), ("nameTemplate", template.as_str())];
        let parameters = if n % 2 == 0 { &parameters[..] } else { &parameters[..1] };
        all.push(bench.create(spec_with(&format!("v{n}"), parameters)).await.unwrap().id.0);
    }
    all.sort();
    for max in 1..9 {
        let (mut seen, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = bench.local.list(after.as_deref(), max).await.unwrap();
            assert!(page.items.len() <= max);
            assert!(page.next.is_none() || page.items.len() == max);
            seen.extend(page.items.into_iter().map(|it| it.id.0));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, all);
    }
    assert_eq!(bench.local.list(None, 0).await.unwrap().items.len(), 7);
    refused(bench.local.list(Some("junk"), 0).await, "bad_token", "junk");
    let after_deleted = bench.local.list(Some("a:zzzz"), 0).await.unwrap();
    // `a-b:` sorts before `a:`.
    assert_eq!(after_deleted.items.len(), 3);
}

#[tokio::test]
async fn only_the_records_of_the_page_are_read() {
    let bench = Bench::new();
    for n in 0..5 {
        bench.make(&format!("v{n}")).await;
    }
    // A record that is a FIFO would block whoever reads it; one that is a directory is damaged.
    std::fs::remove_file(bench.root().join("v4/volume.json")).unwrap();
    std::fs::create_dir(bench.root().join("v4/volume.json")).unwrap();
    let page = bench.local.list(Some("default:v0"), 2).await.unwrap();
    assert_eq!(page.next.as_deref(), Some("default:v2"));
    assert!(page.items.iter().all(|volume| !volume.condition.abnormal));
}

#[tokio::test]
async fn damage_is_shown_and_does_not_end_the_listing() {
    let bench = Bench::new();
    for name in ["a", "b", "c", "d"] {
        bench.make(name).await;
    }
    std::fs::create_dir(bench.root().join("foreign")).unwrap();
    std::fs::write(bench.root().join("b/volume.json"), "garbage").unwrap();
    std::fs::remove_file(bench.root().join("c/disk.img")).unwrap();
    let short = std::fs::OpenOptions::new().write(true).open(bench.root().join("d/disk.img")).unwrap();
    short.set_len(MIB).unwrap();
    let items = bench.local.list(None, 0).await.unwrap().items;
    let shown: Vec<_> = items.iter().map(|it| (it.id.0.as_str(), it.condition.abnormal)).collect();
    assert_eq!(shown, [("default:a", false), ("default:b", true), ("default:c", true), ("default:d", true)]);
    assert!(items[1].condition.message.contains("b/volume.json is damaged"));
    assert_eq!(items[1].capacity, 16 * MIB);
    assert!(items[2].condition.message.contains("is missing"));
    assert!(items[3].condition.message.contains("has 1048576 bytes, less than the 16777216"));
    assert_eq!(bench.local.get(&"default:c".into()).await.unwrap().condition, items[2].condition);
    bench.delete(&"default:c".into()).await.unwrap();
}

#[tokio::test]
async fn snapshots_are_listed_by_page_and_source() {
    let bench = Bench::new();
    let (v, w) = (bench.make("v").await.id, bench.make("w").await.id);
    for (name, source) in [("s1", &v), ("s2", &w), ("s3", &v), ("s4", &v)] {
        bench.snapshot(name, source).await.unwrap();
    }
    let ids = |page: &crate::Page<Snapshot>| page.items.iter().map(|it| it.id.0.clone()).collect::<Vec<_>>();
    let first = bench.local.list_snapshots(&Ctx::new(), Some(&v), None, 2).await.unwrap();
    assert_eq!(ids(&first), ["default:s1", "default:s3"]);
    let last = bench.local.list_snapshots(&Ctx::new(), Some(&v), first.next.as_deref(), 2).await.unwrap();
    assert_eq!((ids(&last), last.next), (vec!["default:s4".to_owned()], None));
    std::fs::write(bench.own("snapshots/s2/snapshot.json"), "garbage").unwrap();
    let rest = bench.local.list_snapshots(&Ctx::new(), None, None, 0).await.unwrap();
    assert_eq!(ids(&rest), ["default:s1", "default:s3", "default:s4"]);
}

#[tokio::test]
async fn capacity_is_what_is_free_here_less_the_reserve() {
    let bench = Bench::with(&["default"], |config| {
        config.reserve = super::super::Reserve::Bytes(0);
    });
    let ask = async |query: CapacityQuery| bench.local.capacity(&query).await;
    let query = CapacityQuery::default();
    let all = ask(query.clone()).await.unwrap();
    assert!(all.available > 0 && all.maximum.unwrap() <= all.available);
    assert_eq!(all.minimum, Some(16 * MIB));
    let xfs = CapacityQuery {
        capabilities: vec![mounted("xfs")],
        topology: Some(bench.local.topology()),
        ..query.clone()
    };
    assert_eq!(ask(xfs).await.unwrap().minimum, Some(300 * MIB));
    let elsewhere = CapacityQuery {
        topology: Some(Topology::from([("topology.local.csi.volumectl.io/node".into(), "x".into())])),
        ..query.clone()
    };
    assert_eq!(ask(elsewhere).await.unwrap().available, 0);
    let block_directory = CapacityQuery {
        capabilities: vec![raw()],
        parameters: map(&[("type", "directory")]),
        ..query.clone()
    };
    assert_eq!(ask(block_directory).await.unwrap().available, 0);
    // What is wrong with a class is said when a volume is created; until then its node is not full.
    for wrong in [("rot", "x"), ("root", "x"), ("type", "x")] {
        let unknown = CapacityQuery { parameters: map(&[wrong]), ..query.clone() };
        assert!(ask(unknown).await.unwrap().available > 0, "{wrong:?}");
        assert!(bench.create(spec_with("v", &[wrong])).await.is_err(), "{wrong:?}");
    }
}
