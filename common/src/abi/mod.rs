//! Records shared by the eBPF programs and the agent: `repr(C)`, explicit padding, size asserts.
//!
//! Invariant: no pointers, no `bool`, no enums: every bit pattern is a valid value.

pub mod dirty;
pub mod gate;
pub mod telemetry;
