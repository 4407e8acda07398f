//! The lease gate (DESIGN §7): lets a service address's traffic through only while its lease lasts.
//!
//! Invariants: the only policy is [`GateEntry::is_open`] against the kernel's boot clock, so a
//! frozen, killed or starved agent stops serving with nobody's help. An address without an entry
//! is none of our business on the interface; a workload whose address has no entry stays closed.
#![no_std]
#![no_main]

use aya_ebpf::Global;
use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::{cgroup_skb, classifier, map};
use aya_ebpf::maps::{HashMap, PerCpuArray};
use aya_ebpf::programs::{SkBuffContext, TcContext};
use understudy_common::abi::gate::{ADDRESSES_MAX, GateCounters, GateEntry};
use understudy_ebpf as _;

#[path = "../probes/reset.rs"]
mod reset;

#[map]
static GATE: HashMap<u32, GateEntry> = HashMap::with_max_entries(ADDRESSES_MAX, 0);

#[map]
static COUNTERS: PerCpuArray<GateCounters> = PerCpuArray::with_max_entries(1, 0);

/// Address of the service whose workload `gate_workload` is attached to, in network byte order.
#[unsafe(no_mangle)]
static ADDRESS: Global<u32> = Global::new(0);

/// `TCX_NEXT`: whatever else is attached to the interface has its say.
const NEXT: i32 = -1;
const DROP: i32 = TC_ACT_SHOT;
const CGROUP_DROP: i32 = 0;
const CGROUP_PASS: i32 = 1;

const ETH_HEADER: usize = 14;
const PROTOCOL_IPV4: u32 = 0x0800_u16.to_be() as u32;
const PROTOCOL_ARP: u32 = 0x0806_u16.to_be() as u32;
const IPV4_SOURCE: usize = ETH_HEADER + 12;
const IPV4_TARGET: usize = ETH_HEADER + 16;
const ARP_SENDER: usize = ETH_HEADER + 14;
const ARP_TARGET: usize = ETH_HEADER + 24;
/// Index of the loopback interface in every network namespace.
const LOOPBACK: u32 = 1;

#[derive(Clone, Copy)]
enum Verdict {
    NotGuarded,
    Open,
    /// Holds whether an agent is alive to vouch for an RST.
    Closed(bool),
}

#[inline(always)]
fn verdict(address: u32) -> Verdict {
    let Some(entry) = GATE.get_ptr(&address) else {
        return Verdict::NotGuarded;
    };
    // SAFETY: the verifier knows the value's size; all bit patterns are valid.
    let entry = unsafe { &*entry };
    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if entry.is_open(now) {
        Verdict::Open
    } else {
        Verdict::Closed(now < entry.reset_until_ns)
    }
}

#[inline(always)]
fn count(add: impl FnOnce(&mut GateCounters)) {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's own element.
        add(unsafe { &mut *counters });
    }
}

#[inline(always)]
fn protocol(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.skb.skb).protocol }
}

#[classifier]
pub fn gate_ingress(ctx: TcContext) -> i32 {
    match protocol(&ctx) {
        PROTOCOL_IPV4 => ingress_ipv4(&ctx).unwrap_or(NEXT),
        PROTOCOL_ARP => ingress_arp(&ctx).unwrap_or(NEXT),
        _ => NEXT,
    }
}

#[inline(always)]
fn ingress_ipv4(ctx: &TcContext) -> Result<i32, i64> {
    match verdict(ctx.load(IPV4_TARGET)?) {
        Verdict::NotGuarded => Ok(NEXT),
        Verdict::Open => {
            count(|c| c.passed += 1);
            Ok(NEXT)
        }
        Verdict::Closed(alive) => {
            if alive && let Some(redirected) = reset::answer(ctx) {
                count(|c| c.resets += 1);
                return Ok(redirected);
            }
            count(|c| c.dropped_ingress += 1);
            Ok(DROP)
        }
    }
}

/// Who asks for the address gets no answer. An announcement of the address's new holder names it as
/// sender and target alike: that one passes, or this host would go on using a stale neighbour.
#[inline(always)]
fn ingress_arp(ctx: &TcContext) -> Result<i32, i64> {
    let target: u32 = ctx.load(ARP_TARGET)?;
    let sender: u32 = ctx.load(ARP_SENDER)?;
    if sender == target {
        return Ok(NEXT);
    }
    Ok(arp(verdict(target)))
}

#[classifier]
pub fn gate_egress(ctx: TcContext) -> i32 {
    match protocol(&ctx) {
        PROTOCOL_IPV4 => egress_ipv4(&ctx).unwrap_or(NEXT),
        PROTOCOL_ARP => egress_arp(&ctx).unwrap_or(NEXT),
        _ => NEXT,
    }
}

#[inline(always)]
fn egress_ipv4(ctx: &TcContext) -> Result<i32, i64> {
    match verdict(ctx.load(IPV4_SOURCE)?) {
        Verdict::NotGuarded => Ok(NEXT),
        Verdict::Open => {
            count(|c| c.passed += 1);
            Ok(NEXT)
        }
        Verdict::Closed(_) if reset::is_ours(ctx) => Ok(NEXT),
        Verdict::Closed(_) => {
            count(|c| c.dropped_egress += 1);
            Ok(DROP)
        }
    }
}

#[inline(always)]
fn egress_arp(ctx: &TcContext) -> Result<i32, i64> {
    Ok(arp(verdict(ctx.load(ARP_SENDER)?)))
}

#[inline(always)]
fn arp(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::NotGuarded => NEXT,
        Verdict::Open => {
            count(|c| c.passed += 1);
            NEXT
        }
        Verdict::Closed(_) => {
            count(|c| c.dropped_arp += 1);
            DROP
        }
    }
}

/// A fenced workload must not write elsewhere either. Loopback stays open: it is how the agent asks
/// the workload whether it is well.
#[cgroup_skb(egress)]
pub fn gate_workload(ctx: SkBuffContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let interface = unsafe { (*ctx.skb.skb).ifindex };
    if interface == LOOPBACK || matches!(verdict(ADDRESS.load()), Verdict::Open) {
        return CGROUP_PASS;
    }
    count(|c| c.dropped_workload += 1);
    CGROUP_DROP
}
