//! Block device counters and file system fill.

use std::collections::BTreeSet;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use procfs::process::Process;
use procfs::{Current, DiskStat, DiskStats};
use understudy_common::beacon::{Feature, Source};

use super::fold::{Sample, Signal};
use super::scope::Device;

/// The kernel counts sectors of this size whatever the device's own is.
const SECTOR: u64 = 512;

/// The devices watched.
#[derive(Debug)]
pub enum Disks {
    /// Every disk with hardware behind it, found anew at each full sample.
    Physical(BTreeSet<Device>),
    Named(BTreeSet<Device>),
}

impl Disks {
    pub fn physical() -> Self {
        Self::Physical(BTreeSet::new())
    }

    pub fn named(devices: &[Device]) -> Self {
        Self::Named(devices.iter().copied().collect())
    }

    pub fn sample(&mut self, all: bool, sample: &mut Sample) {
        let Ok(DiskStats(stats)) = DiskStats::current() else {
            return;
        };
        if all && let Self::Physical(devices) = self {
            *devices = stats
                .iter()
                .filter(|disk| is_physical(&disk.name))
                .filter_map(device)
                .collect();
        }
        let (Self::Physical(devices) | Self::Named(devices)) = &*self;
        let disks: Vec<_> = stats
            .iter()
            .filter(|disk| device(disk).is_some_and(|device| devices.contains(&device)))
            .collect();
        if disks.is_empty() {
            return;
        }
        let sum =
            |of: fn(&DiskStat) -> u64| disks.iter().fold(0_u64, |sum, disk| sum.saturating_add(of(disk)));
        let total = |value, scale| Signal::Total { value, scale };
        // Milliseconds in which a device had work, over all devices.
        let busy = 1e-3 / disks.len() as f64;
        for (feature, signal) in [
            (
                Feature::DiskReadBytesPerSecond,
                total(sum(|disk| disk.sectors_read), SECTOR as f64),
            ),
            (
                Feature::DiskWriteBytesPerSecond,
                total(sum(|disk| disk.sectors_written), SECTOR as f64),
            ),
            (Feature::DiskReadOpsPerSecond, total(sum(|disk| disk.reads), 1.0)),
            (
                Feature::DiskWriteOpsPerSecond,
                total(sum(|disk| disk.writes), 1.0),
            ),
            (
                Feature::DiskInFlight,
                Signal::Level(sum(|disk| disk.in_progress) as f64),
            ),
            (
                Feature::DiskBusyShare,
                total(sum(|disk| disk.time_in_progress), busy),
            ),
        ] {
            sample.put(feature, Source::Procfs, signal);
        }
        if all {
            self.sample_fill(sample);
        }
    }

    /// The fullest file system on the devices.
    fn sample_fill(&self, sample: &mut Sample) {
        let Ok(mounts) = Process::myself().and_then(|me| me.mountinfo()) else {
            return;
        };
        let mut seen = BTreeSet::new();
        let fullest = mounts
            .iter()
            .filter(|mount| match self {
                // Partitions and volumes of physical disks are devices of their own. Read-only images are always full.
                Self::Physical(_) => {
                    mount
                        .mount_source
                        .as_deref()
                        .is_some_and(|source| source.starts_with("/dev/"))
                        && !matches!(mount.fs_type.as_str(), "squashfs" | "iso9660" | "erofs")
                }
                Self::Named(devices) => mount.majmin.parse().is_ok_and(|device| devices.contains(&device)),
            })
            .filter(|mount| seen.insert(mount.majmin.clone()))
            .filter_map(|mount| used_share(&mount.mount_point))
            .reduce(f64::max);
        if let Some(share) = fullest {
            sample.put(Feature::DiskUsedShare, Source::Syscall, Signal::Level(share));
        }
    }
}

fn device(disk: &DiskStat) -> Option<Device> {
    Some(Device {
        major: u32::try_from(disk.major).ok()?,
        minor: u32::try_from(disk.minor).ok()?,
    })
}

/// A whole disk with hardware behind it: not a partition, loop, RAM or mapped device.
fn is_physical(name: &str) -> bool {
    // A name with a slash (`cciss/c0d0`) has an exclamation mark in sysfs.
    Path::new("/sys/block")
        .join(name.replace('/', "!"))
        .join("device")
        .exists()
}

/// As `df` counts: what is left to users without privilege.
fn used_share(mount_point: &Path) -> Option<f64> {
    let found = statvfs(mount_point).ok()?;
    let used = found.blocks().checked_sub(found.blocks_free())?;
    let whole = used.checked_add(found.blocks_available())?;
    (whole > 0).then(|| used as f64 / whole as f64)
}
