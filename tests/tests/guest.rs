//! What only a kernel with NFS, RBD, disks to be plugged, and all capabilities can show: run in a guest, by
//! `scripts/test-kernel`. The contract suites are those that run outside; of them the node's part is run here.

#[path = "cinder/contract.rs"]
mod cinder_contract;
#[path = "contract_local.rs"]
mod local_contract;
#[path = "nfs/contract.rs"]
mod nfs_contract;
#[path = "rbd/contract.rs"]
mod rbd_contract;
