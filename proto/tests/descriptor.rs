//! The compiled descriptor against the specification's table (`csi-1.12.golden`): services, RPCs, every field number,
//! every enum value, and the options.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
};

const GOLDEN: &str = include_str!("csi-1.12.golden");

fn pool() -> DescriptorPool {
    DescriptorPool::decode(csi_proto::DESCRIPTOR).unwrap()
}

/// The names of the options of csi.proto that are set.
fn options(options: &DynamicMessage) -> Vec<String> {
    let set = options.extensions().filter(|(_, value)| value.as_bool() == Some(true));
    let mut names: Vec<_> = set.map(|(extension, _)| extension.name().to_owned()).collect();
    // The table writes csi_secret first.
    names.sort_by_key(|name| (name != "csi_secret", name.clone()));
    names
}

fn line(parts: &[&str], options: &[String]) -> String {
    let mut line = parts.iter().filter(|p| !p.is_empty()).copied().collect::<Vec<_>>().join(" ");
    if !options.is_empty() {
        line += &format!(" {}", options.join(","));
    }
    line
}

fn short(full: &str) -> &str {
    full.strip_prefix("csi.v1.").unwrap_or(full)
}

fn type_name(field: &FieldDescriptor) -> String {
    if field.is_map() {
        return "map<string,string>".into();
    }
    let name = match field.kind() {
        Kind::Message(m) => short(m.full_name()).replace("google.protobuf.", "google."),
        Kind::Enum(e) => short(e.full_name()).into(),
        Kind::String => "string".into(),
        Kind::Int64 => "int64".into(),
        Kind::Int32 => "int32".into(),
        Kind::Bool => "bool".into(),
        other => format!("{other:?}"),
    };
    if field.is_list() { format!("repeated_{name}") } else { name }
}

fn message_lines(message: &MessageDescriptor, lines: &mut BTreeSet<String>) {
    let name = short(message.full_name());
    lines.insert(line(&["message", name], &options(&message.options())));
    for field in message.fields() {
        let oneof = field.containing_oneof().map(|o| format!("oneof:{}", o.name())).unwrap_or_default();
        let (full, number) = (format!("{name}.{}", field.name()), field.number().to_string());
        lines
            .insert(line(&["field", &full, &number, &type_name(&field), &oneof], &options(&field.options())));
    }
    for child in message.child_messages().filter(|m| !m.is_map_entry()) {
        message_lines(&child, lines);
    }
    message.child_enums().for_each(|e| enum_lines(&e, lines));
}

fn enum_lines(e: &EnumDescriptor, lines: &mut BTreeSet<String>) {
    for value in e.values() {
        let full = format!("{}.{}", short(e.full_name()), value.name());
        lines.insert(line(&["value", &full, &value.number().to_string()], &options(&value.options())));
    }
}

fn service_lines(pool: &DescriptorPool, lines: &mut BTreeSet<String>) {
    for service in pool.services().filter(|s| s.package_name() == "csi.v1") {
        for method in service.methods() {
            let stream = if method.is_server_streaming() { "stream" } else { "" };
            let name = format!("{}.{}", service.name(), method.name());
            let (input, output) = (method.input(), method.output());
            let parts = ["rpc", &name, short(input.full_name()), stream, short(output.full_name())];
            lines.insert(line(&parts, &options(&method.options())));
        }
    }
}

#[test]
fn the_interface_is_that_of_the_specification() {
    let (pool, mut lines) = (pool(), BTreeSet::new());
    service_lines(&pool, &mut lines);
    let file = pool.get_file_by_name("csi.proto").unwrap();
    file.messages().for_each(|m| message_lines(&m, &mut lines));
    file.enums().for_each(|e| enum_lines(&e, &mut lines));
    let golden: BTreeSet<_> = GOLDEN.lines().map(str::to_owned).collect();
    let missing: Vec<_> = golden.difference(&lines).collect();
    let extra: Vec<_> = lines.difference(&golden).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "in the table only: {missing:#?}\nin csi.proto only: {extra:#?}"
    );
    let count = |kind: &str| lines.iter().filter(|l| l.starts_with(kind)).count();
    assert_eq!((count("rpc "), count("field ")), (32, 196));
    assert_eq!(pool.services().filter(|s| s.package_name() == "csi.v1").count(), 5);
}

#[test]
fn the_options_have_their_numbers() {
    let pool = pool();
    let number = |name: &str| pool.get_extension_by_name(&format!("csi.v1.{name}")).unwrap().number();
    assert_eq!(number("csi_secret"), 1059);
    for name in
        ["alpha_enum", "alpha_enum_value", "alpha_field", "alpha_message", "alpha_method", "alpha_service"]
    {
        assert_eq!(number(name), 1060, "{name}");
    }
}
