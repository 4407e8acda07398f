//! What the kernel programs share.
//!
//! Invariants: `no_std`; no policy; every loop and map is bounded; kernel offsets come from
//! `.rodata` globals that the loader fills in from the running kernel's BTF.
#![no_std]

/// The kernel refuses GPL-only helpers to programs without a compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
