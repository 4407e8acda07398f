//! Where in a TOML file an error stands, as a dotted key path.

use std::ops::Range;

/// The path of the key at `span` (bytes of `text`, as the parser's error gives them): the table header
/// above it and the key on its line; `line N` where there is none.
pub fn of(text: &str, span: Option<Range<usize>>) -> String {
    let Some(span) = span else {
        return "the file".to_owned();
    };
    let start = span.start.min(text.len());
    let before = text.get(..start).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text
        .get(line_start..)
        .unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default();
    let header = text
        .get(..line_start + line.len())
        .unwrap_or_default()
        .lines()
        .rev()
        .find_map(|l| l.trim().strip_prefix('['))
        .map(|l| {
            l.split(']')
                .next()
                .unwrap_or_default()
                .trim_start_matches('[')
                .trim()
        });
    let key = line.split_once('=').map(|(key, _)| key.trim());
    match (header, key) {
        (Some(header), Some(key)) => format!("{header}.{key}"),
        (Some(only), None) | (None, Some(only)) => only.to_owned(),
        (None, None) => format!("line {}", before.matches('\n').count() + 1),
    }
}
