//! What people need after a failed run, copied out before the test bed goes.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Cluster;

/// Larger files of a service are named and not copied.
const FILE_BYTES_MAX: u64 = 1 << 20;

impl Cluster {
    /// Copies the logs of all programs; and of each host with a disk, what its workloads said and the
    /// copies of the services' files that are directories on it, as they are now.
    pub fn keep(&self, to: &Path) -> Result<()> {
        self.bed.save_logs(to)?;
        let mount = self.bed.disk_mount_point();
        for host in &self.hosts {
            let from = host.path(&mount);
            let beside = to.join(host.name());
            let kept = || -> io::Result<()> {
                // Of a host that is without power nothing can be read.
                let Ok(entries) = fs::read_dir(&from) else {
                    return Ok(());
                };
                for entry in entries {
                    let entry = entry?;
                    let name = entry.file_name();
                    if name == "understudy" {
                        copy(&entry.path().join("log"), &beside.join("log"))?;
                    } else if name != "lost+found" && entry.file_type()?.is_dir() {
                        copy(&entry.path(), &beside.join(name))?;
                    }
                }
                Ok(())
            };
            kept().with_context(|| format!("keeping what {} has", host.name()))?;
        }
        Ok(())
    }
}

/// A tree of small files; what goes away meanwhile is left out.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    fs::create_dir_all(to)?;
    for entry in entries {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let copied = match entry.metadata() {
            Ok(meta) if meta.is_dir() => copy(&from, &to),
            Ok(meta) if meta.is_file() && meta.len() <= FILE_BYTES_MAX => fs::copy(&from, &to).map(drop),
            Ok(meta) => fs::write(to.with_added_extension("left-out"), format!("{meta:?}\n")),
            Err(error) => Err(error),
        };
        match copied {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            copied => copied?,
        }
    }
    Ok(())
}
