//! Create, delete, expand, modify and validate a volume.

use csi_proto::v1 as pb;
use provisioners::{Capability, CapacityRange, Ctx, Error, Result, Secrets, Source, VolumeSpec};

use crate::convert;
use crate::driver::Service;
use crate::flight::{Hold, Mode};
use crate::validate::{self, MAX_STRING};

impl Service {
    /// CreateVolume: validated here, prepared by the backend without I/O, run in single flight by the handle that the
    /// volume will have, so that it excludes a delete of the same volume.
    pub(super) async fn create(
        &self,
        mut request: pb::CreateVolumeRequest,
    ) -> Result<pb::CreateVolumeResponse> {
        let secrets = Secrets::new(std::mem::take(&mut request.secrets));
        let spec = self.spec(&request, secrets)?;
        let range = spec.range;
        let mut holds: Vec<_> = spec.source.iter().map(|source| self.source_hold(source)).collect();
        let creation = self.backend.provisioner.prepare(spec)?;
        validate::ordered(range)?;
        holds.push(self.hold_volume(Mode::Alone, creation.id()));
        let volume = self
            .single("CreateVolume", &request, holds, |ctx| async move { creation.run(&ctx).await })
            .await?;
        Ok(pb::CreateVolumeResponse { volume: Some(convert::volume(&volume)) })
    }

    fn spec(&self, request: &pb::CreateVolumeRequest, secrets: Secrets) -> Result<VolumeSpec> {
        validate::text("name", &request.name, MAX_STRING)?;
        let capabilities = validate::capabilities("volume_capabilities", &request.volume_capabilities)?;
        self.supports("volume_capabilities", &capabilities)?;
        let range = validate::range(request.capacity_range.as_ref())?;
        validate::map("parameters", &request.parameters)?;
        validate::map("mutable_parameters", &request.mutable_parameters)?;
        let source = convert::source(request.volume_content_source.as_ref())?;
        self.supports_source(source.as_ref())?;
        let (pvc, parameters) = convert::split_parameters(&request.parameters);
        Ok(VolumeSpec {
            name: request.name.clone(),
            range,
            capabilities,
            parameters,
            mutable_parameters: request.mutable_parameters.clone(),
            source,
            topology: convert::topology(request.accessibility_requirements.clone()),
            pvc,
            secrets,
        })
    }

    pub(super) fn supports(&self, field: &str, capabilities: &[Capability]) -> Result<()> {
        for (i, capability) in capabilities.iter().enumerate() {
            self.backend
                .provisioner
                .supports(capability)
                .map_err(|e| Error::invalid(format!("{field}[{i}]"), e.to_string()))?;
        }
        Ok(())
    }

    fn supports_source(&self, source: Option<&Source>) -> Result<()> {
        let kind = self.backend.provisioner.kind();
        let missing = match source {
            Some(Source::Snapshot(_)) if self.backend.snapshots.is_none() => "restore snapshots",
            Some(Source::Volume(_)) if self.backend.clones.is_none() => "clone volumes",
            _ => return Ok(()),
        };
        Err(Error::invalid("volume_content_source", format!("the backend {kind} cannot {missing}")))
    }

    /// A source may be read by several creations at once, but not deleted or grown meanwhile.
    fn source_hold(&self, source: &Source) -> Hold {
        match source {
            Source::Volume(id) => self.hold_volume(Mode::Read, id),
            Source::Snapshot(id) => self.hold_snapshot(Mode::Read, id),
        }
    }

    pub(super) async fn delete(
        &self,
        mut request: pb::DeleteVolumeRequest,
    ) -> Result<pb::DeleteVolumeResponse> {
        let secrets = Secrets::new(std::mem::take(&mut request.secrets));
        let id = validate::volume_id(&request.volume_id)?.into();
        let provisioner = self.backend.provisioner.clone();
        let holds = vec![self.hold_volume(Mode::Alone, &id)];
        self.single("DeleteVolume", &request, holds, |ctx| async move {
            provisioner.delete(&ctx.with_secrets(secrets), &id).await
        })
        .await?;
        Ok(pb::DeleteVolumeResponse {})
    }

    pub(super) async fn expand(
        &self,
        mut request: pb::ControllerExpandVolumeRequest,
    ) -> Result<pb::ControllerExpandVolumeResponse> {
        let secrets = Secrets::new(std::mem::take(&mut request.secrets));
        let id = validate::volume_id(&request.volume_id)?.into();
        let range = required_range(request.capacity_range.as_ref())?;
        if let Some(capability) = &request.volume_capability {
            let capability = validate::capability("volume_capability", Some(capability))?;
            self.supports("volume_capability", &[capability])?;
        }
        let expansion = self.feature(self.backend.expansion.as_ref(), "ControllerExpandVolume")?.clone();
        if expansion.is_on_node() {
            return Err(Error::Unsupported(
                "ControllerExpandVolume: this driver's volumes are grown by NodeExpandVolume on their node (`expansion: node` in its configuration)".into(),
            ));
        }
        validate::ordered(range)?;
        let holds = vec![self.hold_volume(Mode::Alone, &id)];
        let outcome = self
            .single("ControllerExpandVolume", &request, holds, |ctx| async move {
                expansion.expand(&ctx.with_secrets(secrets), &id, range).await
            })
            .await?;
        Ok(pb::ControllerExpandVolumeResponse {
            capacity_bytes: convert::bytes(outcome.capacity),
            node_expansion_required: outcome.node_expansion_required,
        })
    }

    pub(super) async fn modify(
        &self,
        mut request: pb::ControllerModifyVolumeRequest,
    ) -> Result<pb::ControllerModifyVolumeResponse> {
        let secrets = Secrets::new(std::mem::take(&mut request.secrets));
        let id = validate::volume_id(&request.volume_id)?.into();
        let parameters = validate::map("mutable_parameters", &request.mutable_parameters)?.clone();
        let modify = self.feature(self.backend.modify.as_ref(), "ControllerModifyVolume")?.clone();
        let holds = vec![self.hold_volume(Mode::Alone, &id)];
        self.single("ControllerModifyVolume", &request, holds, |ctx| async move {
            modify.modify(&ctx.with_secrets(secrets), &id, &parameters).await
        })
        .await?;
        Ok(pb::ControllerModifyVolumeResponse {})
    }

    /// ValidateVolumeCapabilities: what cannot be is not an error here, but an answer without `confirmed`.
    pub(super) async fn validate(
        &self,
        mut request: pb::ValidateVolumeCapabilitiesRequest,
    ) -> Result<pb::ValidateVolumeCapabilitiesResponse> {
        let ctx = Ctx::new().with_secrets(Secrets::new(std::mem::take(&mut request.secrets)));
        let id = validate::volume_id(&request.volume_id)?.into();
        let capabilities = validate::capabilities("volume_capabilities", &request.volume_capabilities)?;
        validate::map("volume_context", &request.volume_context)?;
        validate::map("parameters", &request.parameters)?;
        validate::map("mutable_parameters", &request.mutable_parameters)?;
        let provisioner = &self.backend.provisioner;
        let (_, mut parameters) = convert::split_parameters(&request.parameters);
        parameters.extend(request.mutable_parameters.clone());
        // The volume is looked for whatever is asked of it.
        let difference = provisioner.differs(&ctx, &id, &parameters).await?;
        let refusal = capabilities.iter().find_map(|c| provisioner.supports(c).err()).map(|e| e.to_string());
        Ok(match refusal.or(difference) {
            Some(message) => pb::ValidateVolumeCapabilitiesResponse { confirmed: None, message },
            None => pb::ValidateVolumeCapabilitiesResponse {
                confirmed: Some(confirmed(request)),
                message: String::new(),
            },
        })
    }
}

fn confirmed(
    request: pb::ValidateVolumeCapabilitiesRequest,
) -> pb::validate_volume_capabilities_response::Confirmed {
    pb::validate_volume_capabilities_response::Confirmed {
        volume_context: request.volume_context,
        volume_capabilities: request.volume_capabilities,
        parameters: request.parameters,
        mutable_parameters: request.mutable_parameters,
    }
}

fn required_range(range: Option<&pb::CapacityRange>) -> Result<CapacityRange> {
    if range.is_none() {
        return Err(Error::invalid("capacity_range", "is required and was missing"));
    }
    validate::range(range)
}
