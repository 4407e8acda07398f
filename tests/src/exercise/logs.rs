//! Reads the programs' logs as they grow: facts about generations, and lines that nobody expects.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// More than that at once is read in the next turn.
const READ_BYTES_MAX: u64 = 64 << 20;

/// A line of a log, and whose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Name of the file without its ending: `b-agent`.
    pub of: String,
    pub text: String,
}

pub struct Logs {
    folder: PathBuf,
    /// How far each file was read, to the end of a line.
    read: BTreeMap<PathBuf, u64>,
}

impl Logs {
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            read: BTreeMap::new(),
        }
    }

    /// Whole lines that came since the last call.
    pub fn fresh(&mut self) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        for entry in fs::read_dir(&self.folder).with_context(|| self.folder.display().to_string())? {
            let path = entry?.path();
            let of = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let from = self.read.entry(path.clone()).or_default();
            let text = whole_lines(&path, *from)?;
            *from += text.len() as u64;
            lines.extend(String::from_utf8_lossy(&text).lines().map(|line| Line {
                of: of.clone(),
                text: line.to_owned(),
            }));
        }
        Ok(lines)
    }
}

fn whole_lines(path: &Path, from: u64) -> Result<Vec<u8>> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
    let end = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    bytes.truncate(end);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_once_and_only_when_it_is_whole() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("a-agent.log");
        let mut logs = Logs::new(dir.path().to_owned());
        fs::write(&path, "one\ntw")?;
        let line = |text: &str| Line {
            of: "a-agent".to_owned(),
            text: text.to_owned(),
        };
        assert_eq!(logs.fresh()?, [line("one")]);
        assert_eq!(logs.fresh()?, []);
        fs::write(&path, "one\ntwo\nthree\n")?;
        assert_eq!(logs.fresh()?, [line("two"), line("three")]);
        Ok(())
    }
}
