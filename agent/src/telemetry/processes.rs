//! The heaviest processes of the machine: what people look at first when a host was left.

use std::fmt;

use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

/// One row of the process table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub name: String,
    pub resident_bytes: u64,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}) {} MiB",
            self.name,
            self.pid,
            self.resident_bytes >> 20
        )
    }
}

/// The `most` processes with the most resident memory, the heaviest first. Reads all of `/proc`, which
/// takes milliseconds: not for a loop.
pub fn heaviest(most: usize) -> Vec<Process> {
    // Where there is no process table to read, nothing is known of it.
    let Ok(mut system) = System::new() else {
        return Vec::new();
    };
    let kind = ProcessRefreshKind::nothing().with_memory().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, kind);
    let mut found: Vec<Process> = system
        .processes()
        .values()
        .map(|process| Process {
            pid: process.pid().as_u32(),
            name: process.name().to_string_lossy().into_owned(),
            resident_bytes: process.memory(),
        })
        .collect();
    found.sort_by_key(|process| (std::cmp::Reverse(process.resident_bytes), process.pid));
    found.truncate(most);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_processes_come_first_and_a_heavy_one_is_among_them() {
        let weight = vec![1_u8; 64 << 20];
        let found = heaviest(usize::MAX);
        assert!(found.is_sorted_by(|a, b| a.resident_bytes >= b.resident_bytes));
        let me = found.iter().find(|process| process.pid == std::process::id());
        assert!(me.is_some_and(|me| me.resident_bytes >= weight.len() as u64));
        assert_eq!(heaviest(1).len(), 1);
    }
}
