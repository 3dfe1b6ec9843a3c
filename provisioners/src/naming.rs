//! Names: the key that a CSI name becomes, and `nameTemplate`.

use sha2::{Digest, Sha256};

use crate::{Error, PvcMeta, Result, StringMap};

#[cfg(test)]
mod tests;

/// The longest key, in bytes.
const KEY_MAX: usize = 63;
/// How many characters of the name a hashed key starts with.
const PREFIX_MAX: usize = 30;
/// How many hexadecimal digits of the SHA-256 it ends with: 128 bits.
const HASH_DIGITS: usize = 32;
/// The longest directory name a template may make, in bytes.
const RENDERED_MAX: usize = 100;
/// The longest path below a share, in bytes.
const PATH_MAX: usize = 1024;
/// What the names of the driver's own directories begin with.
const OWN: &str = ".volumectl";

/// A deterministic, safe name for a CSI `name` of up to 128 bytes: the name itself where it is short and safe, else
/// its start and a part of its SHA-256. At most 63 bytes of `[A-Za-z0-9._-]`, the first a letter or digit.
///
/// Two names never get the same key: a name that has the form of a hashed key is hashed itself.
pub fn key_for(name: &str) -> String {
    if name.len() <= KEY_MAX && is_safe_component(name) && !looks_hashed(name) {
        return name.to_owned();
    }
    let safe: String = name.chars().filter(|c| is_safe(*c)).collect();
    let mut prefix = safe.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    prefix = &prefix[..prefix.len().min(PREFIX_MAX)];
    let prefix = if prefix.is_empty() { "x" } else { prefix };
    format!("{prefix}-{}", sha256_start(name))
}

/// Whether a text is one harmless path component: `[A-Za-z0-9][A-Za-z0-9._-]*`.
pub(crate) fn is_safe_component(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(is_safe)
}

fn is_safe(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

fn looks_hashed(name: &str) -> bool {
    name.rsplit_once('-').is_some_and(|(_, end)| {
        end.len() == HASH_DIGITS && end.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn sha256_start(name: &str) -> String {
    let hash = Sha256::digest(name.as_bytes());
    let mut text = String::with_capacity(HASH_DIGITS);
    for byte in hash.iter().take(HASH_DIGITS / 2) {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    text
}

/// A parsed `nameTemplate`, such as `${pvc.namespace}-${pvc.name}`.
///
/// Variables: `pvc.namespace`, `pvc.name`, `pv.name`, `pvc.labels.<key>`, `pvc.annotations.<key>`; the spellings of the
/// NFS drivers are understood, too (`pvc.metadata.name`, `.PVC.name` and so on).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameTemplate {
    parts: Vec<Part>,
    shape: Shape,
}

/// What a template makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// One directory's name.
    Name,
    /// A path below a share.
    Path,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Variable(Variable),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Variable {
    Namespace,
    Name,
    PvName,
    Label(String),
    Annotation(String),
}

/// Every plain variable, under its first name and the other drivers' names.
const VARIABLES: [(&str, Variable); 8] = [
    ("pvc.namespace", Variable::Namespace),
    ("pvc.name", Variable::Name),
    ("pv.name", Variable::PvName),
    ("pvc.metadata.namespace", Variable::Namespace),
    ("pvc.metadata.name", Variable::Name),
    ("pv.metadata.name", Variable::PvName),
    (".PVC.namespace", Variable::Namespace),
    (".PVC.name", Variable::Name),
];

impl NameTemplate {
    /// Parses a template. Empty, an unclosed `${`, an unknown variable or a character that no directory name may have:
    /// [`Error::Invalid`].
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_as(text, Shape::Name).map_err(|problem| Shape::Name.refuse(problem))
    }

    /// Parses a template for a path below a share, such as `${pvc.namespace}/${pvc.name}`.
    pub fn parse_path(text: &str) -> Result<Self> {
        Self::parse_as(text, Shape::Path).map_err(|problem| Shape::Path.refuse(problem))
    }

    fn parse_as(text: &str, shape: Shape) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            push_text(&mut parts, before, shape)?;
            let (name, tail) = after
                .split_once('}')
                .ok_or_else(|| format!("`${{{after}` is never closed; write it as ${{{after}}}"))?;
            parts.push(Part::Variable(variable(name)?));
            rest = tail;
        }
        push_text(&mut parts, rest, shape)?;
        if parts.is_empty() {
            return Err("is empty; leave it out, or write such as ${pvc.namespace}-${pvc.name}".into());
        }
        Ok(Self { parts, shape })
    }

    /// Fills it in for a claim; `name` is the CSI name, which stands in for the volume's name in Kubernetes where that
    /// is not known. A value that was not passed, or a result that is not one safe directory name of at most 100
    /// bytes: [`Error::Invalid`]; nothing is ever replaced silently.
    ///
    /// Of a path template: a path whose parts are not empty, not `.` or `..`, do not begin with `.volumectl`, have at
    /// most 255 bytes and no control characters.
    pub fn render(&self, pvc: &PvcMeta, name: &str) -> Result<String> {
        let filled = self.fill(pvc, name).and_then(|filled| match self.shape {
            Shape::Name => check_name(filled),
            Shape::Path => check_path(filled),
        });
        filled.map_err(|problem| self.shape.refuse(problem))
    }

    fn fill(&self, pvc: &PvcMeta, name: &str) -> Result<String, String> {
        let mut result = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => result.push_str(text),
                Part::Variable(variable) => result.push_str(variable.value(pvc, name)?),
            }
        }
        Ok(result)
    }
}

impl Shape {
    fn refuse(self, problem: impl Into<String>) -> Error {
        let field = match self {
            Self::Name => "parameters[\"nameTemplate\"]",
            Self::Path => "parameters[\"subDir\"]",
        };
        Error::invalid(field, problem)
    }
}

fn push_text(parts: &mut Vec<Part>, text: &str, shape: Shape) -> Result<(), String> {
    let allowed = |c: char| match shape {
        Shape::Name => is_safe(c),
        Shape::Path => !c.is_control(),
    };
    if let Some(bad) = text.chars().find(|c| !allowed(*c)) {
        return Err(format!(
            "{bad:?} cannot be in a directory name; allowed are letters, digits, `.`, `_`, `-` and variables as ${{pvc.name}}"
        ));
    }
    if !text.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
    Ok(())
}

fn variable(name: &str) -> Result<Variable, String> {
    if let Some((_, variable)) = VARIABLES.iter().find(|(known, _)| *known == name) {
        return Ok(variable.clone());
    }
    for prefix in ["pvc.labels.", "pvc.metadata.labels.", ".PVC.labels."] {
        if let Some(key) = name.strip_prefix(prefix).filter(|key| !key.is_empty()) {
            return Ok(Variable::Label(key.to_owned()));
        }
    }
    for prefix in ["pvc.annotations.", "pvc.metadata.annotations.", ".PVC.annotations."] {
        if let Some(key) = name.strip_prefix(prefix).filter(|key| !key.is_empty()) {
            return Ok(Variable::Annotation(key.to_owned()));
        }
    }
    Err(format!(
        "unknown variable `${{{name}}}`; known: ${{pvc.namespace}}, ${{pvc.name}}, ${{pv.name}}, ${{pvc.labels.KEY}}, ${{pvc.annotations.KEY}}"
    ))
}

impl Variable {
    fn value<'a>(&self, pvc: &'a PvcMeta, csi_name: &'a str) -> Result<&'a str, String> {
        const EXTRA: &str = "run the external-provisioner with --extra-create-metadata";
        match self {
            Self::Namespace => given(pvc.namespace.as_deref(), "pvc.namespace", EXTRA),
            Self::Name => given(pvc.name.as_deref(), "pvc.name", EXTRA),
            Self::PvName => Ok(pvc.pv_name.as_deref().unwrap_or(csi_name)),
            Self::Label(key) => from_map(&pvc.labels, "labels", key),
            Self::Annotation(key) => from_map(&pvc.annotations, "annotations", key),
        }
    }
}

fn given<'a>(value: Option<&'a str>, variable: &str, remedy: &str) -> Result<&'a str, String> {
    value
        .filter(|value| !value.is_empty())
        .ok_or_else(|| format!("the caller did not pass a value for `${{{variable}}}`; {remedy}"))
}

fn from_map<'a>(map: &'a StringMap, what: &str, key: &str) -> Result<&'a str, String> {
    let remedy = format!(
        "set it on the claim, run the external-provisioner with --extra-create-metadata, and have the caller pass csi.volumectl.io/pvc/{what}/{key}"
    );
    given(map.get(key).map(String::as_str), &format!("pvc.{what}.{key}"), &remedy)
}

fn check_name(result: String) -> Result<String, String> {
    if result.len() > RENDERED_MAX {
        return Err(format!(
            "makes a name of {} bytes, more than {RENDERED_MAX}: {result:?}; use fewer variables",
            result.len()
        ));
    }
    if !is_safe_component(&result) {
        return Err(format!(
            "makes {result:?}, which is not a safe directory name: letters, digits, `.`, `_`, `-`, and a letter or digit first"
        ));
    }
    Ok(result)
}

fn check_path(result: String) -> Result<String, String> {
    let problem = if result.len() > PATH_MAX {
        format!("it has {} bytes, more than {PATH_MAX}", result.len())
    } else if result.starts_with('/') || result.ends_with('/') {
        "it must be relative, without a slash at the ends".into()
    } else if result.chars().any(char::is_control) {
        "it has control characters".into()
    } else if let Some(part) = result.split('/').find(|part| ["", ".", ".."].contains(part)) {
        format!("{part:?} cannot be a part of it")
    } else if let Some(part) = result.split('/').find(|part| part.len() > 255) {
        format!("the part {part:.40}… has more than 255 bytes")
    } else if result.split('/').any(|part| part.starts_with(OWN)) {
        format!("names that begin with {OWN} are the driver's own")
    } else {
        return Ok(result);
    };
    Err(format!("makes {result:?}, which is no path below the share: {problem}"))
}
