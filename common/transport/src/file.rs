//! Files that are replaced as a whole.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

/// Puts `bytes` in place of what `path` held. A crash leaves the one or the other.
///
/// # Errors
/// Of the file system; the old content stands, or the new one does but may not outlive a power cut.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = fs::File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    fs::File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
}
