//! A volume that is staged and written to while a snapshot of it is taken: what the snapshot has is a moment that was.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::random::Random;
use e2e::requests as ask;

use crate::calls::Caller;
use crate::pods::{Pod, call, file_of};

/// Behind what else the soak writes (two MiB at most, and a little), in bytes.
const NEAR: u64 = 4 << 20;
/// A copy that walks forward while both are written meets this one later.
const FAR: u64 = 8 << 20;
const LENGTH: usize = 4096;

impl Caller {
    /// Writes the near block durably, then the far one, while a snapshot is being taken; a snapshot with the far one and
    /// without the near one shows what never was. The volume is not mounted before and after.
    pub async fn check_moving(&self, pod: &Pod, random: &mut Random, step: usize) -> Result<()> {
        let mark = u8::try_from(1 + random.below(250))?;
        self.mount(pod).await?;
        self.mark(pod, NEAR, 0).await?;
        self.mark(pod, FAR, 0).await?;
        self.unmount(pod).await?;
        let source = &pod.volume.volume_id;
        let request = ask::snapshot(source, &format!("{}-moving-{step}", pod.name));
        let delay = Duration::from_millis(u64::try_from(random.below(400))?);
        let moving = async {
            tokio::time::sleep(delay).await;
            self.mount(pod).await?;
            self.mark(pod, NEAR, mark).await?;
            self.mark(pod, FAR, mark).await?;
            self.unmount(pod).await
        };
        let (taken, moved) = tokio::join!(
            async { call!(self, "CreateSnapshot", controller.create_snapshot(request)) },
            moving
        );
        moved?;
        let id = taken?.snapshot.context("no snapshot")?.snapshot_id;
        let name = format!("{}-moment-{step}", pod.name);
        let copy = self.create(&name, pod.shape.clone(), ask::from_snapshot(&id)).await?;
        self.mount(&copy).await?;
        let (near, far) = (self.marked(&copy, NEAR).await?, self.marked(&copy, FAR).await?);
        let was = [(0, 0), (mark, 0), (mark, mark)].contains(&(near, far));
        ensure!(was, "a snapshot of {} has {near} near and {far} far; {mark} was written to both", pod.name);
        self.unmount(&copy).await?;
        self.delete(&copy.volume.volume_id).await?;
        let request = ask::delete_snapshot(&id);
        call!(self, "DeleteSnapshot", controller.delete_snapshot(request)).map(drop)
    }

    /// Fills one block with a byte, durably.
    async fn mark(&self, pod: &Pod, at: u64, mark: u8) -> Result<()> {
        self.durably(pod, move |file| file.write_all_at(&[mark; LENGTH], at)).await
    }

    /// What one block was filled with.
    async fn marked(&self, pod: &Pod, at: u64) -> Result<u8> {
        let path = file_of(pod);
        let read = move || {
            let mut block = [0; LENGTH];
            std::fs::File::open(&path)?.read_exact_at(&mut block, at).map(|()| block)
        };
        let block = tokio::task::spawn_blocking(read).await??;
        ensure!(block.iter().all(|byte| *byte == block[0]), "half a block in {}", file_of(pod).display());
        Ok(block[0])
    }
}
