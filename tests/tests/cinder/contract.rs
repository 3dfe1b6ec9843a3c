//! The contract suite: as a file system and as a raw block device, attached by Nova; of ext4 the part about data, for
//! Cinder does the same for both.

use anyhow::Result;
use csi_proto::v1 as pb;
use e2e::contract::Subject;
use e2e::drivers::InProcess;
use e2e::openstack::OpenStack;
use e2e::requests::{self, MIB};
use e2e::scratch::Scratch;

/// Cinder's sizes are whole GiB.
const GIB: i64 = 1024 * MIB;

async fn subject(case: &str, capability: pb::VolumeCapability) -> Result<Option<Subject>> {
    let Some(cloud) = OpenStack::shared(case)? else { return Ok(None) };
    let scratch = Scratch::new()?;
    let owner = format!("{case}-{:?}", capability.access_type).replace('"', "");
    let config = cloud.config(&owner, &cloud.node()?, scratch.path(), "", "");
    let driver = InProcess::start(&config).await?;
    let subject = Subject::new(driver.clients().await?, scratch, capability, GIB, driver);
    Ok(Some(Subject { attached: true, mutable: ("type", "__DEFAULT__"), ..subject }))
}

mod xfs {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        subject(case, requests::mount("xfs")).await
    }

    e2e::contract_suite!(setup);
}

mod ext4 {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        let subject = subject(case, requests::mount("ext4")).await?;
        Ok(subject.map(|s| Subject { grows_staged: e2e::can_grow_ext4_online(), ..s }))
    }

    e2e::contract_suite!(data setup);
}

mod block {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        subject(case, requests::block()).await
    }

    e2e::contract_suite!(setup);
}
