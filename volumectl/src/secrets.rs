//! CSI secrets: from a file or the environment, never from the command line.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde::Deserialize;

/// Where secrets come from.
#[derive(Debug, Clone, Default, Args)]
pub struct SecretArgs {
    /// A file with secrets: a YAML or JSON map, or a Kubernetes Secret manifest. The environment variable CSI_SECRETS
    /// (a JSON map) is the other way; there is no flag for a secret itself.
    #[arg(long, value_name = "FILE", global = true, env = "CSI_SECRETS_FILE")]
    pub secrets_file: Option<PathBuf>,
}

/// A Kubernetes Secret, as far as it matters here.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub struct SecretManifest {
    data: BTreeMap<String, String>,
    string_data: BTreeMap<String, String>,
}

impl SecretManifest {
    /// Its values; `data` is base64.
    pub fn values(self) -> Result<BTreeMap<String, String>> {
        let decode = |(key, value): (String, String)| {
            let bytes = STANDARD.decode(value.trim()).with_context(|| format!("data.{key} is not base64"))?;
            let text = String::from_utf8(bytes).with_context(|| format!("data.{key} is not text"))?;
            Ok((key, text))
        };
        let mut values: BTreeMap<_, _> = self.data.into_iter().map(decode).collect::<Result<_>>()?;
        values.extend(self.string_data);
        Ok(values)
    }
}

impl SecretArgs {
    /// Reads them. Errors name the file and never have a value.
    pub fn load(&self) -> Result<BTreeMap<String, String>> {
        if let Some(file) = &self.secrets_file {
            return from_file(file);
        }
        match std::env::var("CSI_SECRETS") {
            // The parser's own error could quote the text.
            Ok(text) => serde_json::from_str(&text)
                .map_err(|_| anyhow::anyhow!("CSI_SECRETS is not a JSON map of texts")),
            Err(_) => Ok(BTreeMap::new()),
        }
    }
}

fn from_file(file: &Path) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    if std::fs::metadata(file).is_ok_and(|meta| meta.mode() & 0o077 != 0) {
        anstream::eprintln!("warning: {} can be read by other users; chmod 600 it", file.display());
    }
    let named = |what: &str| format!("{}: {what}", file.display());
    let value: serde_json::Value = match serde_saphyr::from_str(&text) {
        Ok(value) => value,
        Err(_) => bail!(named("is neither YAML nor JSON")),
    };
    if value["kind"] == "Secret" {
        let manifest = serde_json::from_value::<SecretManifest>(value);
        return manifest
            .map_err(|_| anyhow::anyhow!(named("is not a Secret manifest")))?
            .values()
            .with_context(|| named("Secret"));
    }
    serde_json::from_value(value).map_err(|_| anyhow::anyhow!(named("is not a map of texts")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<BTreeMap<String, String>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        from_file(file.path())
    }

    #[test]
    fn a_map_and_a_manifest_are_read() {
        assert_eq!(load("userKey: abc").unwrap()["userKey"], "abc");
        let manifest = "kind: Secret\ndata: {a: aGk=}\nstringData: {b: there}\n";
        assert_eq!(
            load(manifest).unwrap(),
            [("a", "hi"), ("b", "there")].map(|(k, v)| (k.into(), v.into())).into()
        );
    }

    #[test]
    fn errors_have_no_value() {
        for text in
            ["kind: Secret\ndata: {a: '%%TOPSECRET%%'}", "- TOPSECRET", "a: {b: TOPSECRET}", "a: [TOPSECRET"]
        {
            let error = format!("{:#}", load(text).unwrap_err());
            assert!(!error.contains("TOPSECRET"), "{error}");
        }
    }
}
