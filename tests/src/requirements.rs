//! Whether this machine can carry a test bed.

use std::env;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::cgroup::CgroupRoots;

const PROGRAMS: [&str; 2] = ["ip", "mkfs.ext4"];

/// The first thing that is missing, in words; none when a test bed can be built.
pub fn missing() -> Option<String> {
    // SAFETY: no memory is involved.
    if unsafe { libc::geteuid() } != 0 {
        return Some("a test bed needs root (namespaces, loop disks, cgroups)".to_owned());
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("this kernel has no loop devices".to_owned());
    }
    let roots = match CgroupRoots::discover() {
        Ok(roots) => roots,
        Err(why) => return Some(why.to_string()),
    };
    if !writable(&roots.unified) {
        return Some(format!("{} is read-only", roots.unified.display()));
    }
    for program in PROGRAMS {
        if !in_path(program) {
            return Some(format!("the program `{program}` is not installed"));
        }
    }
    if !Path::new("/proc/self/ns/net").exists() {
        return Some("this kernel has no network namespaces".to_owned());
    }
    None
}

pub(crate) fn in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(program).exists())
}

fn writable(directory: &Path) -> bool {
    let Ok(path) = CString::new(directory.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: the string lives through the call.
    unsafe { libc::access(path.as_ptr(), libc::W_OK) == 0 }
}
