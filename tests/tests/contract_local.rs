//! The contract suite against the local backend, in each way its volumes are used, through the real kernel.

use std::collections::BTreeMap;

use anyhow::Result;
use csi_proto::v1 as pb;
use e2e::contract::Subject;
use e2e::drivers::{InProcess, local_config};
use e2e::requests::{self, MIB};
use e2e::scratch::Scratch;

async fn subject(
    case: &str,
    parameters: &[(&str, &str)],
    capability: pb::VolumeCapability,
    size: i64,
) -> Result<Option<Subject>> {
    if !e2e::is_root(case) {
        return Ok(None);
    }
    let scratch = Scratch::new()?;
    let driver = InProcess::start(&local_config(scratch.path(), "")).await?;
    let sized = !parameters.contains(&("type", "directory"));
    let parameters = parameters.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect::<BTreeMap<_, _>>();
    let subject = Subject::new(driver.clients().await?, scratch, capability, size, driver);
    Ok(Some(Subject { parameters, sized, ..subject }))
}

mod xfs {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        if !e2e::has_program(case, "mkfs.xfs") {
            return Ok(None);
        }
        subject(case, &[], requests::mount("xfs"), 320 * MIB).await
    }

    e2e::contract_suite!(setup);
}

mod ext4 {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        let subject = subject(case, &[("type", "file")], requests::mount("ext4"), 64 * MIB).await?;
        Ok(subject.map(|s| Subject { grows_staged: e2e::can_grow_ext4_online(), ..s }))
    }

    e2e::contract_suite!(setup);
}

mod btrfs {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        if !e2e::has_program(case, "mkfs.btrfs") {
            return Ok(None);
        }
        subject(case, &[], requests::mount("btrfs"), 256 * MIB).await
    }

    e2e::contract_suite!(setup);
}

mod block {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        subject(case, &[("thick", "true")], requests::block(), 16 * MIB).await
    }

    e2e::contract_suite!(setup);
}

mod directory {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        subject(case, &[("type", "directory"), ("mode", "0770")], requests::mount(""), 16 * MIB).await
    }

    e2e::contract_suite!(setup);
}
