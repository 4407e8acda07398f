//! Which programs give which features, and what they need of the kernel.

use understudy_common::beacon::Feature;

/// How a signal of a family is told apart within a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeKind {
    Tasks,
    Devices,
    Files,
    Sockets,
    /// By the program itself, whatever the scope.
    Watched,
}

impl ScopeKind {
    /// Fields that are read only when there is a scope.
    pub const fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Tasks => &[
                "TASK_CGROUPS",
                "CSS_SET_CGROUP",
                "CGROUP_LEVEL",
                "CGROUP_NODE",
                "CGROUP_ANCESTORS",
                "NODE_ID",
            ],
            Self::Devices => &[
                "REQUEST_PART",
                "REQUEST_QUEUE",
                "PART_DEV",
                "QUEUE_DISK",
                "DISK_MAJOR",
                "DISK_MINOR",
            ],
            // Read with and without a scope.
            Self::Files | Self::Watched => &[],
            Self::Sockets => &["SOCK_NET", "NET_INUM"],
        }
    }
}

#[derive(Debug)]
pub struct ProgramSpec {
    pub name: &'static str,
    /// Where it can be attached, best first; kernels differ.
    pub tracepoints: &'static [&'static str],
    /// Structures that the arguments point to; `""` is not looked at.
    pub arguments: &'static [&'static str],
    /// Its family is whole without it on kernels that lack the tracepoint.
    pub optional: bool,
}

#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    pub features: &'static [Feature],
    pub scope: ScopeKind,
    pub programs: &'static [ProgramSpec],
    pub fields: &'static [&'static str],
}

const fn program(
    name: &'static str,
    tracepoints: &'static [&'static str],
    arguments: &'static [&'static str],
) -> ProgramSpec {
    ProgramSpec {
        name,
        tracepoints,
        arguments,
        optional: false,
    }
}

const fn optional(name: &'static str, tracepoints: &'static [&'static str]) -> ProgramSpec {
    ProgramSpec {
        name,
        tracepoints,
        arguments: &[],
        optional: true,
    }
}

pub const FAMILIES: [Family; 9] = [
    Family {
        name: "run queue",
        features: &[Feature::RunQueueP50, Feature::RunQueueP99],
        scope: ScopeKind::Tasks,
        programs: &[
            program("sched_wakeup", &["sched_wakeup"], &["task_struct"]),
            program("sched_wakeup_new", &["sched_wakeup_new"], &["task_struct"]),
            program(
                "sched_switch",
                &["sched_switch"],
                &["", "task_struct", "task_struct"],
            ),
        ],
        fields: &["TASK_PID", "TASK_STATE"],
    },
    Family {
        name: "block latency",
        features: &[
            Feature::BlockReadP50,
            Feature::BlockReadP99,
            Feature::BlockWriteP50,
            Feature::BlockWriteP99,
        ],
        scope: ScopeKind::Devices,
        programs: &[program(
            "block_io_done",
            &["block_io_done", "block_rq_complete"],
            &["request"],
        )],
        fields: &["REQUEST_FLAGS", "REQUEST_START"],
    },
    Family {
        name: "block errors",
        features: &[Feature::BlockErrorsPerSecond],
        scope: ScopeKind::Devices,
        programs: &[program("block_rq_error", &["block_rq_error"], &["request"])],
        fields: &["REQUEST_FLAGS"],
    },
    Family {
        name: "fsync",
        features: &[Feature::FsyncP50, Feature::FsyncP99, Feature::FsyncsPerSecond],
        scope: ScopeKind::Files,
        programs: &[
            program("ext4_sync_file_enter", &["ext4_sync_file_enter"], &["file"]),
            program("ext4_sync_file_exit", &["ext4_sync_file_exit"], &["inode"]),
        ],
        fields: &["TASK_PID", "FILE_INODE", "INODE_SUPER", "SUPER_DEV"],
    },
    Family {
        name: "reclaim",
        features: &[Feature::ReclaimStallsPerSecond, Feature::ReclaimStallMicros],
        scope: ScopeKind::Tasks,
        programs: &[
            program("reclaim_begin", &["mm_vmscan_direct_reclaim_begin"], &[]),
            program("reclaim_end", &["mm_vmscan_direct_reclaim_end"], &[]),
            optional("cgroup_reclaim_begin", &["mm_vmscan_memcg_reclaim_begin"]),
            optional("cgroup_reclaim_end", &["mm_vmscan_memcg_reclaim_end"]),
        ],
        fields: &["TASK_PID"],
    },
    Family {
        name: "out of memory",
        features: &[Feature::OomKillsPerSecond],
        scope: ScopeKind::Tasks,
        programs: &[program("oom_victim", &["mark_victim"], &["task_struct"])],
        fields: &["TASK_PID"],
    },
    Family {
        name: "TCP retransmits",
        features: &[Feature::TcpRetransmitsPerSecond],
        scope: ScopeKind::Sockets,
        programs: &[program("tcp_retransmit", &["tcp_retransmit_skb"], &["sock"])],
        fields: &[],
    },
    Family {
        name: "process exits",
        features: &[Feature::ExitsPerSecond, Feature::ExitsBySignalPerSecond],
        scope: ScopeKind::Tasks,
        programs: &[program("process_exit", &["sched_process_exit"], &["task_struct"])],
        fields: &["TASK_PID", "TASK_TGID", "TASK_EXIT_CODE"],
    },
    Family {
        name: "ends of workloads",
        features: &[],
        scope: ScopeKind::Watched,
        programs: &[
            program("workload_exit", &["sched_process_exit"], &["task_struct"]),
            ProgramSpec {
                optional: true,
                ..program("workload_victim", &["mark_victim"], &["task_struct"])
            },
        ],
        fields: &[
            "TASK_PID",
            "TASK_TGID",
            "TASK_EXIT_CODE",
            "TASK_CGROUPS",
            "CSS_SET_CGROUP",
            "CGROUP_NODE",
            "NODE_ID",
        ],
    },
];

/// Globals of the programs: structure, and the names that the field has had, newest first.
pub const FIELDS: &[(&str, &str, &[&str])] = &[
    ("TASK_PID", "task_struct", &["pid"]),
    ("TASK_TGID", "task_struct", &["tgid"]),
    ("TASK_STATE", "task_struct", &["__state", "state"]),
    ("TASK_EXIT_CODE", "task_struct", &["exit_code"]),
    ("TASK_CGROUPS", "task_struct", &["cgroups"]),
    ("CSS_SET_CGROUP", "css_set", &["dfl_cgrp"]),
    ("CGROUP_LEVEL", "cgroup", &["level"]),
    ("CGROUP_NODE", "cgroup", &["kn"]),
    ("CGROUP_ANCESTORS", "cgroup", &["ancestors"]),
    ("NODE_ID", "kernfs_node", &["id"]),
    ("REQUEST_FLAGS", "request", &["cmd_flags"]),
    ("REQUEST_START", "request", &["start_time_ns"]),
    ("REQUEST_PART", "request", &["part"]),
    ("REQUEST_QUEUE", "request", &["q"]),
    ("PART_DEV", "block_device", &["bd_dev"]),
    ("QUEUE_DISK", "request_queue", &["disk"]),
    ("DISK_MAJOR", "gendisk", &["major"]),
    ("DISK_MINOR", "gendisk", &["first_minor"]),
    ("FILE_INODE", "file", &["f_inode"]),
    ("INODE_SUPER", "inode", &["i_sb"]),
    ("SUPER_DEV", "super_block", &["s_dev"]),
    ("SOCK_NET", "sock", &["__sk_common.skc_net.net"]),
    ("NET_INUM", "net", &["ns.inum"]),
];
