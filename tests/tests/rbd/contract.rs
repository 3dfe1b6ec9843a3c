//! The contract suite: as a file system and as a raw block device, mapped without the kernel's module.

use std::collections::BTreeMap;

use anyhow::Result;
use csi_proto::v1 as pb;
use e2e::ceph::Ceph;
use e2e::contract::Subject;
use e2e::drivers::InProcess;
use e2e::kubernetes::Api;
use e2e::requests::{self, MIB};
use e2e::scratch::Scratch;

async fn subject(case: &str, capability: pb::VolumeCapability, size: i64) -> Result<Option<Subject>> {
    let Some(ceph) = Ceph::shared(case)? else { return Ok(None) };
    let scratch = Scratch::new()?;
    let nodes = Api::start(scratch.path(), "node-1").await?;
    let config = nodes.config() + &ceph.config(case, scratch.path(), "")?.text;
    let driver = InProcess::start(&config).await?;
    let parameters = BTreeMap::from([("pool".to_owned(), "rbd".to_owned())]);
    let subject = Subject::new(driver.clients().await?, scratch, capability, size, driver);
    Ok(Some(Subject { parameters, mutable: ("lockRecovery", "auto"), ..subject }))
}

mod xfs {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        subject(case, requests::mount("xfs"), 320 * MIB).await
    }

    e2e::contract_suite!(setup);
}

mod ext4 {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        let subject = subject(case, requests::mount("ext4"), 64 * MIB).await?;
        Ok(subject.map(|s| Subject { grows_staged: e2e::can_grow_ext4_online(), ..s }))
    }

    e2e::contract_suite!(setup);
}

mod block {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        subject(case, requests::block(), 16 * MIB).await
    }

    e2e::contract_suite!(setup);
}
