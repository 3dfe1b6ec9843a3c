//! How results are printed: a table for people, JSON or YAML for programs.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use comfy_table::{Table, presets};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

use crate::quantity;

/// `-o`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// JSON with the field names of CSI.
    Json,
    /// YAML with the field names of CSI.
    Yaml,
}

/// An object that is wider is shown a line a column.
const WIDTH: usize = 100;

/// One column: its title, where its value is (a JSON pointer), and how it is shown.
#[derive(Debug, Clone, Copy)]
pub struct Column(pub &'static str, pub &'static str, pub Show);

/// How a value is shown in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// As it is.
    Plain,
    /// Bytes as `1.5 GiB`.
    Size,
    /// Only with `-o wide`.
    Wide,
}

/// A CSI message as JSON with camelCase names, by its descriptor.
pub fn json(name: &str, message: &impl Message) -> Result<Value> {
    let pool = DescriptorPool::decode(csi_proto::DESCRIPTOR).context("csi.proto's descriptor")?;
    let descriptor =
        pool.get_message_by_name(&format!("csi.v1.{name}")).with_context(|| format!("no message {name}"))?;
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())?;
    let options = SerializeOptions::new().stringify_64_bit_integers(false).skip_default_fields(false);
    Ok(dynamic.serialize_with_options(serde_json::value::Serializer, &options)?)
}

/// Prints a value, an array a row an item.
pub fn print(format: Format, value: &Value, columns: &[Column]) -> Result<()> {
    let text = match format {
        Format::Json => format!("{}\n", serde_json::to_string_pretty(value)?),
        Format::Yaml => serde_saphyr::to_string(value)?,
        Format::Table | Format::Wide => table(value, columns, format == Format::Wide),
    };
    anstream::stdout().write_all(text.as_bytes()).context("writing to standard output")
}

fn table(value: &Value, columns: &[Column], wide: bool) -> String {
    let columns: Vec<_> = columns.iter().filter(|c| wide || c.2 != Show::Wide).collect();
    let rows = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
    let cells = rows.iter().map(|row| columns.iter().map(|c| cell(row, c)).collect::<Vec<_>>());
    let text = lines(&columns.iter().map(|c| c.0).collect::<Vec<_>>(), cells);
    let fits = text.lines().all(|line| line.chars().count() <= WIDTH);
    if fits || value.is_array() { text } else { fields(value, &columns) }
}

/// One object whose columns do not fit beside each other: a line a column, its value in as many lines as it needs.
fn fields(row: &Value, columns: &[&Column]) -> String {
    let width = columns.iter().map(|c| c.0.len()).max().unwrap_or(0);
    let mut text = String::new();
    for column in columns {
        let mut title = column.0;
        for line in wrapped(&cell(row, column), WIDTH - width - 3) {
            text += &format!(" {title:width$}  {line}\n");
            title = "";
        }
    }
    text
}

/// A text in lines of at most so many characters, broken after commas.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for item in text.split_inclusive(',') {
        let line = lines.last_mut().filter(|line| line.is_empty() || line.len() + item.len() <= width);
        match line {
            Some(line) => line.push_str(item),
            None => lines.push(item.to_owned()),
        }
    }
    lines
}

/// A table of texts: titles, then rows.
pub fn lines(titles: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(titles.iter().map(ToString::to_string));
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    let text = table.to_string();
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn cell(row: &Value, column: &Column) -> String {
    match row.pointer(column.1) {
        None | Some(Value::Null) => "-".into(),
        Some(Value::Number(n)) if column.2 == Show::Size => {
            n.as_i64().map_or_else(|| n.to_string(), quantity::human)
        }
        Some(Value::String(text)) if text.is_empty() => "-".into(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) if items.is_empty() => "-".into(),
        Some(Value::Array(items)) => items
            .iter()
            .map(|i| i.as_str().map_or_else(|| i.to_string(), ToOwned::to_owned))
            .collect::<Vec<_>>()
            .join(","),
        Some(Value::Object(map)) => {
            let pair = |(k, v): (&String, &Value)| format!("{k}={}", v.as_str().unwrap_or(&v.to_string()));
            map.iter().map(pair).collect::<Vec<_>>().join(",")
        }
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use csi_proto::v1 as pb;

    use super::*;

    #[test]
    fn messages_have_the_names_of_csi() {
        let volume = pb::Volume { capacity_bytes: 1 << 30, volume_id: "a".into(), ..pb::Volume::default() };
        let value = json("Volume", &volume).unwrap();
        assert_eq!((value["volumeId"].as_str(), value["capacityBytes"].as_i64()), (Some("a"), Some(1 << 30)));
        let columns = [Column("ID", "/volumeId", Show::Plain), Column("SIZE", "/capacityBytes", Show::Size)];
        let text = table(&value, &columns, false);
        assert!(text.contains("ID") && text.contains("1 GiB"), "{text}");
    }

    #[test]
    fn what_is_wider_than_a_terminal_is_shown_a_line_a_column() {
        let names: Vec<_> = (0..20).map(|i| format!("CAPABILITY_{i}")).collect();
        let value = serde_json::json!({"name": "local.csi.volumectl.io", "all": names});
        let columns = [Column("DRIVER", "/name", Show::Plain), Column("CONTROLLER", "/all", Show::Plain)];
        let text = table(&value, &columns, false);
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(
            text.starts_with(" DRIVER      local.csi.volumectl.io\n CONTROLLER  CAPABILITY_0,"),
            "{text}"
        );
        assert!(names.iter().all(|name| text.contains(name.as_str())), "{text}");
        assert!(
            table(&serde_json::json!([value]), &columns, false).lines().count() == 2,
            "lists stay tables"
        );
    }
}
