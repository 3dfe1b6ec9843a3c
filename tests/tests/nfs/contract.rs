//! The contract suite: by each version of the protocol, on a server that has only version 4, and by helpers that have the
//! share mounted (bound, where the kernel has no NFS).

use std::collections::BTreeMap;
use std::sync::OnceLock;

use anyhow::Result;
use e2e::contract::Subject;
use e2e::drivers::InProcess;
use e2e::nfs::Nfs;
use e2e::requests::{self, MIB};
use e2e::scratch::Scratch;

async fn subject(case: &str, server: &Nfs, more: &str) -> Result<Option<Subject>> {
    let scratch = Scratch::new()?;
    let (share, dir) = server.share(case)?;
    // The controller speaks NFS; the node binds, unless its kernel has NFS.
    let local =
        if e2e::control::is_guest() { String::new() } else { format!(", localPath: {}", dir.display()) };
    let config = server.config(scratch.path(), &share, &format!("{more}{local}"))?;
    let driver = InProcess::start(&config).await?;
    let subject = Subject::new(driver.clients().await?, scratch, requests::mount(""), 16 * MIB, driver);
    Ok(Some(Subject {
        parameters: BTreeMap::from([("shareName".to_owned(), "main".to_owned())]),
        slip: ("onDelet", "onDelete"),
        mutable: ("mountPermissions", "0770"),
        guards_use: false,
        sized: false,
        patience: Nfs::patience(),
        ..subject
    }))
}

async fn on_shared(case: &str, more: &str) -> Result<Option<Subject>> {
    match Nfs::shared(case)? {
        Some(server) => subject(case, server, more).await,
        None => Ok(None),
    }
}

mod v3 {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        on_shared(case, &Nfs::version("3")).await
    }

    e2e::contract_suite!(setup);
}

mod v41 {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        on_shared(case, &Nfs::version("4.1")).await
    }

    e2e::contract_suite!(setup);
}

mod v42 {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        on_shared(case, &Nfs::version("4.2")).await
    }

    e2e::contract_suite!(setup);
}

mod by_mount {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        on_shared(case, ", client: mount").await
    }

    e2e::contract_suite!(setup);
}

mod only_version_4 {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        static SERVER: OnceLock<Nfs> = OnceLock::new();
        if !Nfs::possible(case) {
            return Ok(None);
        }
        let server = match SERVER.get() {
            Some(server) => server,
            None => {
                let started = Nfs::start("4", &[])?;
                SERVER.get_or_init(|| started)
            }
        };
        subject(case, server, "").await
    }

    e2e::contract_suite!(setup);
}
