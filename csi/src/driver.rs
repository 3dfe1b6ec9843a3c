//! One CSI driver: a backend under a name, with what its services share.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use provisioners::{Backend, Ctx, Error, Identity, Result, SnapshotId, VolumeId};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::cli;
use crate::flight::{Flights, Hold, Mode, Operation};
use crate::health::Health;
use crate::host::Host;
use crate::metrics::Metrics;
use crate::{status, telemetry};

/// What a driver is made of.
pub struct Driver {
    /// CSI driver name, such as `local.csi.volumectl.io`.
    pub name: String,
    /// CSI `node_id` of this node.
    pub node_id: String,
    /// Which services are served.
    pub mode: cli::Mode,
    /// The backend.
    pub backend: Backend,
    /// The node's kernel.
    pub host: Host,
    /// Running operations.
    pub flights: Flights,
    /// Running questions about volumes of this node, which may hang with them.
    pub questions: Flights,
    /// Metrics of the process.
    pub metrics: Metrics,
    /// The cached answer to Probe.
    pub health: Health,
}

/// The services of a driver are thin views of it. Clones share it.
#[derive(Clone)]
pub struct Service(pub Arc<Driver>);

impl std::ops::Deref for Service {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        &self.0
    }
}

impl Driver {
    /// Answers one call: timed, logged with a request id, bounded by the caller's deadline (without one: by what an
    /// operation may take), errors turned into codes.
    /// `subject` is the volume, snapshot or name that the call is about.
    pub async fn answer<T>(
        &self,
        method: &'static str,
        metadata: &MetadataMap,
        subject: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<Response<T>, Status> {
        let timer = self.metrics.start(&self.name, method);
        let log = telemetry::Call::new(&self.name, method, subject);
        // No call waits for ever, also where the caller would.
        let limit = deadline(metadata).unwrap_or_else(|| self.flights.patience());
        let result = tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            Err(Error::Deadline(format!(
                "{method} {subject}: not done in {:.1} s; the work goes on, repeat the call to join it",
                limit.as_secs_f64()
            )))
        });
        match result {
            Ok(value) => {
                timer.done("OK");
                log.ok();
                Ok(Response::new(value))
            }
            Err(error) => {
                let status = status::status(&error);
                timer.done(status::code_name(status.code()));
                log.failed(status::code_name(status.code()), &error);
                Err(status)
            }
        }
    }

    /// Runs an operation in single flight; `request` without its secrets is what makes a repeat the same call.
    pub async fn single<T, F, W>(
        &self,
        name: &'static str,
        request: &impl Message,
        holds: Vec<Hold>,
        work: F,
    ) -> Result<T>
    where
        T: Clone + Send + Sync + 'static,
        F: FnOnce(Ctx) -> W,
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let operation = Operation { name, request: request.encode_to_vec(), holds };
        self.flights.run(operation, work).await
    }

    /// A hold of the volume that a handle names.
    pub fn hold_volume(&self, mode: Mode, handle: &VolumeId) -> Hold {
        Hold::volume(mode, &self.identity(&handle.0))
    }

    /// A hold of the snapshot that a handle names.
    pub fn hold_snapshot(&self, mode: Mode, handle: &SnapshotId) -> Hold {
        Hold::snapshot(mode, &self.identity(&handle.0))
    }

    /// What a handle names.
    pub fn identity(&self, handle: &str) -> Identity {
        self.backend.provisioner.identity(handle)
    }

    /// A feature that the backend may lack: [`Error::Unsupported`] then.
    pub fn feature<'a, T: ?Sized>(&self, feature: Option<&'a Arc<T>>, method: &str) -> Result<&'a Arc<T>> {
        let kind = self.backend.provisioner.kind();
        feature.ok_or_else(|| Error::Unsupported(format!("{method}: the backend {kind} cannot do this")))
    }
}

/// Splits a request into what [`Driver::answer`] and the work need.
pub fn open<T>(request: Request<T>) -> (MetadataMap, T) {
    let (metadata, _, message) = request.into_parts();
    (metadata, message)
}

/// The caller's deadline: `grpc-timeout` (gRPC over HTTP/2, "Requests"), less a fiftieth and a second at most, so that the
/// answer still arrives and says what is going on.
fn deadline(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    let limit = match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    };
    Some(limit.saturating_sub(limit.mul_f64(0.02).min(Duration::from_secs(1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_deadline_is_read_in_every_unit() {
        let limit = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            deadline(&metadata)
        };
        assert_eq!(limit("10S"), Some(Duration::from_millis(9800)));
        assert_eq!(limit("100m"), Some(Duration::from_millis(98)));
        assert_eq!(limit("1H"), Some(Duration::from_secs(3599)));
        for wrong in ["", "S", "10", "10x", "999999999S", "-1S"] {
            assert_eq!(limit(wrong), None, "{wrong:?}");
        }
    }
}
