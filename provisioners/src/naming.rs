//! Names: the key that a CSI name becomes, and `nameTemplate`.

use crate::{PvcMeta, Result};

/// A deterministic, safe name for a CSI `name` of up to 128 bytes: the name itself where it is short and safe, else
/// its start and a part of its SHA-256.
pub fn key_for(_name: &str) -> String {
    String::new()
}

/// A parsed `nameTemplate`, such as `${pvc.namespace}-${pvc.name}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameTemplate;

impl NameTemplate {
    /// Parses a template.
    pub fn parse(_text: &str) -> Result<Self> {
        Ok(Self)
    }

    /// Fills it in.
    pub fn render(&self, _pvc: &PvcMeta, _name: &str) -> Result<String> {
        Ok(String::new())
    }
}
