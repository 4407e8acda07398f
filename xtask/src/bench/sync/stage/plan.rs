//! What a stage is built from.

use std::path::PathBuf;

use anyhow::Result;
use understudy_testbed::FileSystem;

use crate::bench::Wanted;

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// `understudy-load`
    pub(crate) load: PathBuf,
    /// Empty.
    pub(crate) directory: PathBuf,
    /// Of each file.
    pub(crate) bytes: u64,
    pub(crate) files: u64,
    /// Of the disks of both hosts; none: the primary's files are where the repository is, the shadow's on ext4.
    pub(crate) disks: Option<FileSystem>,
    /// False: what the primary cuts goes nowhere.
    pub(crate) shadow: bool,
    /// Whether cuts freeze the cgroup of the workload.
    pub(crate) freezes: bool,
    pub(crate) seed: u64,
}

impl Plan {
    pub(crate) const fn new(load: PathBuf, directory: PathBuf, bytes: u64, files: u64) -> Self {
        Self {
            load,
            directory,
            bytes,
            files,
            disks: None,
            shadow: true,
            freezes: false,
            seed: 0x5EED,
        }
    }

    pub(in crate::bench::sync) fn of(wanted: &Wanted, bytes: u64, files: u64) -> Result<Self> {
        let load = wanted.programs.path("understudy-load");
        Ok(Self::new(load, wanted.directory("sync")?, bytes, files))
    }

    /// With the primary's files on a disk of its host as well.
    pub(crate) fn on(self, file_system: FileSystem) -> Self {
        Self {
            disks: Some(file_system),
            ..self
        }
    }

    pub(super) const fn mib(&self) -> u64 {
        (self.bytes * self.files) >> 20
    }
}
