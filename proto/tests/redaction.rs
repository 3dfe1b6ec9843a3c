//! No secret is ever printed: every field that the specification marks `csi_secret` is covered.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use csi_proto::v1 as pb;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MapKey, MessageDescriptor, Value};

const SECRET: &str = "S3CRET-VALUE";
const VISIBLE: &str = "visible-text";

/// Decodes into the concrete type and prints it in every way that a log could.
fn printed<T: Message + Default + Debug>(bytes: &[u8]) -> String {
    let message = T::decode(bytes).unwrap();
    let text = format!("{message:?}{message:#?}");
    text + &format!("{:?}", tonic::Request::new(message))
}

macro_rules! types {
    ($($name:ident),* $(,)?) => {
        /// The messages that this test knows, and how each is printed.
        fn types() -> BTreeMap<&'static str, fn(&[u8]) -> String> {
            BTreeMap::from([$((stringify!($name), printed::<pb::$name> as fn(&[u8]) -> String)),*])
        }
    };
}

types!(
    CreateVolumeRequest,
    DeleteVolumeRequest,
    ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest,
    ValidateVolumeCapabilitiesRequest,
    ControllerModifyVolumeRequest,
    CreateSnapshotRequest,
    DeleteSnapshotRequest,
    ListSnapshotsRequest,
    GetSnapshotRequest,
    ControllerExpandVolumeRequest,
    NodeStageVolumeRequest,
    NodePublishVolumeRequest,
    NodeExpandVolumeRequest,
    CreateVolumeGroupSnapshotRequest,
    DeleteVolumeGroupSnapshotRequest,
    GetVolumeGroupSnapshotRequest,
    GetMetadataAllocatedRequest,
    GetMetadataDeltaRequest,
);

/// Messages with a secret field, and the names of those fields, by the descriptor.
fn secret_messages() -> Vec<(MessageDescriptor, Vec<String>)> {
    let pool = DescriptorPool::decode(csi_proto::DESCRIPTOR).unwrap();
    let option = pool.get_extension_by_name("csi.v1.csi_secret").unwrap();
    let secret = |m: &MessageDescriptor| {
        let marked = m.fields().filter(|f| f.options().get_extension(&option).as_bool() == Some(true));
        marked.map(|f| f.name().to_owned()).collect::<Vec<_>>()
    };
    pool.all_messages().map(|m| (m.clone(), secret(&m))).filter(|(_, fields)| !fields.is_empty()).collect()
}

/// A message with a secret in each secret field, and a text in each other string field.
fn filled(message: &MessageDescriptor, secrets: &[String]) -> (Vec<u8>, bool) {
    let (mut dynamic, mut has_text) = (DynamicMessage::new(message.clone()), false);
    for field in message.fields() {
        if secrets.iter().any(|s| s == field.name()) {
            let map = [(MapKey::String("key".into()), Value::String(SECRET.into()))].into();
            dynamic.set_field(&field, Value::Map(map));
        } else if field.kind() == Kind::String && !field.is_list() && !field.is_map() {
            dynamic.set_field(&field, Value::String(VISIBLE.into()));
            has_text = true;
        }
    }
    (dynamic.encode_to_vec(), has_text)
}

#[test]
fn every_secret_of_the_specification_is_redacted_and_the_rest_is_shown() {
    let (types, messages) = (types(), secret_messages());
    let known: BTreeSet<_> = types.keys().map(ToString::to_string).collect();
    let marked: BTreeSet<_> = messages.iter().map(|(m, _)| m.name().to_owned()).collect();
    assert_eq!(known, marked, "the messages with secrets have changed");
    for (message, secrets) in messages {
        let (bytes, has_text) = filled(&message, &secrets);
        assert!(bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes()), "the secret is in the message");
        let text = types[message.name()](&bytes);
        assert!(!text.contains(SECRET), "{} prints its secret: {text}", message.name());
        assert!(text.contains("<1 redacted>"), "{text}");
        assert!(!has_text || text.contains(VISIBLE), "{} hides too much: {text}", message.name());
    }
}

#[test]
fn a_map_that_is_no_secret_is_printed() {
    let parameters = [("type".to_owned(), SECRET.to_owned())].into();
    let request = pb::CreateVolumeRequest { parameters, ..pb::CreateVolumeRequest::default() };
    assert!(format!("{request:?}").contains(SECRET), "this test could not fail otherwise");
}
