//! The workload's output: a file that the workload itself appends to, so that it outlives the agent.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

/// A longer log is copied to `<log>.1`, over the last copy, and cut.
pub const LOG_BYTES_MAX: u64 = 8 << 20;

/// Opened for appending: after a cut the workload goes on at the new end.
pub(super) fn open(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    bound(path)?;
    OpenOptions::new().create(true).append(true).open(path)
}

/// Cuts the log when it is too long. What is written between the copy and the cut is lost.
pub(super) fn bound(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > LOG_BYTES_MAX => {
            let mut copy = path.as_os_str().to_owned();
            copy.push(".1");
            fs::copy(path, copy)?;
            OpenOptions::new().write(true).open(path)?.set_len(0)
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_long_log_is_cut_and_its_writer_goes_on_at_the_new_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("service.log");
        let mut writer = open(&path).unwrap();
        writer.write_all(&vec![b'x'; LOG_BYTES_MAX as usize + 1]).unwrap();
        bound(&path).unwrap();
        writer.write_all(b"after").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"after");
        assert_eq!(
            fs::metadata(dir.path().join("service.log.1")).unwrap().len(),
            LOG_BYTES_MAX + 1
        );
    }
}
