//! Where in a configuration's text something is wrong.

/// `:line:column` of a key like `backends[1].socket` in the text, as far as it stands there.
pub(super) fn position(text: &str, path: &str) -> String {
    let key = path.rsplit('.').next().unwrap_or(path);
    let entry: Option<usize> =
        path.split_once('[').and_then(|(_, rest)| rest.split_once(']')?.0.parse().ok());
    let mut entries = text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("- "));
    let from = entry.and_then(|i| entries.nth(i)).map_or(0, |(line, _)| line);
    let found = text.lines().enumerate().skip(from).find_map(|(i, line)| {
        let at = line.find(&format!("{key}:"))?;
        line[..at].chars().all(|c| c == ' ' || c == '-').then_some((i + 1, at + 1))
    });
    match found {
        Some((line, column)) => format!(":{line}:{column}"),
        None => format!(":{}:1", from + 1),
    }
}

/// `:line:column: key: problem` of what the parser found.
pub(super) fn syntax_error(text: &str, error: &serde_saphyr::Error) -> String {
    let words = error.to_string();
    let first = words.lines().next().unwrap_or_default();
    // The parser repeats the place in words of its own.
    let problem = first.strip_prefix("error: ").unwrap_or(first);
    let problem = match problem.split_once(": ") {
        Some((place, rest)) if place.starts_with("line ") => rest,
        _ => problem,
    };
    // The library's advice is for programmers.
    let problem = if problem.starts_with("duplicate mapping key") { "is given twice" } else { problem };
    let Some(at) = error.location() else { return format!(": {problem}") };
    let line = usize::try_from(at.line()).ok().and_then(|n| text.lines().nth(n.saturating_sub(1)));
    let key =
        line.and_then(|l| l.split_once(':')).map(|(key, _)| key.trim_start_matches([' ', '-']).trim_end());
    let key = key.filter(|k| !k.is_empty()).map(|k| format!("{k}: ")).unwrap_or_default();
    format!(":{}:{}: {key}{problem}", at.line(), at.column())
}
