//! What the machine is.

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};
use understudy_common::wire::Inventory;

/// What `sysinfo` cannot find out stays empty or zero.
pub fn of_machine(ebpf_programs: u32, ebpf_source: &str) -> Inventory {
    let wanted = RefreshKind::nothing()
        .with_cpu(CpuRefreshKind::nothing())
        .with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(wanted);
    let system = system.as_ref();
    Inventory {
        kernel: System::kernel_version().unwrap_or_default(),
        os: System::long_os_version().unwrap_or_default(),
        cpus: system.map_or(0, |system| system.cpus().len() as u32),
        memory_bytes: system.map_or(0, System::total_memory),
        ebpf_programs,
        ebpf_source: ebpf_source.to_owned(),
    }
}
