//! The texts that `-f` names, and how the user types them again.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::errors::Usage;

/// Standard input, as `-f -`.
const STDIN: &str = "-";

/// A text and its name for messages.
#[derive(Debug)]
pub struct Text {
    /// The file, or `standard input`.
    pub name: String,
    /// What is in it.
    pub text: String,
}

/// Reads all files; standard input can be one of them.
pub fn read(files: &[PathBuf]) -> Result<Vec<Text>> {
    if files.iter().filter(|file| is_stdin(file)).count() > 1 {
        return Err(Usage("-f -: standard input can be read once".into()).into());
    }
    files.iter().map(|file| one(file)).collect()
}

fn is_stdin(file: &Path) -> bool {
    file == Path::new(STDIN)
}

fn one(file: &Path) -> Result<Text> {
    let (name, text) = if is_stdin(file) {
        ("standard input".to_owned(), std::io::read_to_string(std::io::stdin()))
    } else {
        (file.display().to_string(), std::fs::read_to_string(file))
    };
    let text = text.with_context(|| format!("reading {name}"))?;
    Ok(Text { name, text })
}

/// The command that takes back what was run with these files.
pub fn undo_command(files: &[PathBuf], mount_dir: &Path) -> String {
    let mut words = vec!["volumectl".to_owned(), "csi".to_owned(), "undo".to_owned()];
    for file in files {
        words.extend(["-f".to_owned(), file.display().to_string()]);
    }
    words.extend(["--mount-dir".to_owned(), mount_dir.display().to_string()]);
    let quoted = words.iter().map(|word| shlex::try_quote(word).unwrap_or_else(|_| word.into()).into_owned());
    let command = quoted.collect::<Vec<_>>().join(" ");
    if files.iter().any(|file| is_stdin(file)) {
        format!("{command}  (with the same input)")
    } else {
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_can_be_pasted() {
        let command = undo_command(&["my claims.yaml".into()], Path::new("/mnt"));
        assert_eq!(command, "volumectl csi undo -f 'my claims.yaml' --mount-dir /mnt");
        assert!(undo_command(&["-".into()], Path::new("/mnt")).ends_with("(with the same input)"));
    }

    #[test]
    fn standard_input_is_read_once() {
        let error = read(&["-".into(), "-".into()]).unwrap_err();
        assert!(error.downcast_ref::<Usage>().is_some(), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        assert!(
            format!("{:#}", read(&["/nonexistent/a b".into()]).unwrap_err()).contains("/nonexistent/a b")
        );
    }
}
