//! The README's table of backends, generated from the traits that each implements.

use std::fmt::Write as _;

use provisioners::{Backend, Feature};

/// A Markdown table: a row a backend, a column a feature.
pub fn markdown(backends: &[Backend]) -> String {
    let mut text = String::from("| backend | create, delete, mount |");
    for feature in Feature::ALL {
        let _ = write!(text, " {} |", feature.title());
    }
    text.push_str("\n|---|---|");
    text.push_str(&"---|".repeat(Feature::ALL.len()));
    for backend in backends {
        let _ = write!(text, "\n| `{}` | yes |", backend.provisioner.kind());
        for feature in Feature::ALL {
            text.push_str(if backend.has(feature) { " yes |" } else { " no |" });
        }
    }
    text.push('\n');
    text
}

/// A Markdown table of a backend's StorageClass parameters: docs/parameters.md has it.
pub fn parameters(backend: &Backend) -> String {
    let mut text = String::from("| parameter | meaning | default | can be changed |\n|---|---|---|---|\n");
    for p in backend.provisioner.parameters() {
        let mutable = if p.mutable { "yes" } else { "no" };
        let _ = writeln!(text, "| `{}` | {} | {} | {mutable} |", p.name, p.meaning, p.default);
    }
    text
}
