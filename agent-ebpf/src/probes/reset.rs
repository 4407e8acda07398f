//! Answers a TCP segment to a closed address with RST: a client that hears nothing waits a second
//! before it tries again, a refused one retries at once.
//!
//! Invariants: only a whole segment that was sent to this very machine is answered, never an RST, so
//! that neither a flooded frame for the new holder nor another RST provokes one.

use aya_ebpf::helpers::{bpf_redirect, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;

use super::ETH_HEADER;

/// Marks the answer on its way through our own egress program.
const MARK: u32 = 0x5553_5254;
const PACKET_HOST: u32 = 0;
const IP_HEADER: usize = 20;
const TCP: usize = ETH_HEADER + IP_HEADER;
const FRAME: usize = TCP + 20;
const PROTOCOL_TCP: u8 = 6;
/// More fragments, or not the first.
const FRAGMENT: u16 = 0x3fff;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// `BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH`
const REWRITE: u64 = 3;

#[inline(always)]
fn u16_at(frame: &[u8; FRAME], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[inline(always)]
fn u32_at(frame: &[u8; FRAME], at: usize) -> u32 {
    u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
}

#[inline(always)]
fn put<const N: usize>(frame: &mut [u8; FRAME], at: usize, bytes: [u8; N]) {
    let mut i = 0;
    while i < N {
        frame[at + i] = bytes[i];
        i += 1;
    }
}

/// Sum of the 16-bit words in `from..to` of the frame.
#[inline(always)]
fn sum(frame: &[u8; FRAME], from: usize, to: usize) -> u32 {
    let mut total = 0;
    let mut at = from;
    while at < to {
        total += u32::from(u16_at(frame, at));
        at += 2;
    }
    total
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// The frame becomes its own answer and leaves by the interface it came from. After `None` the caller
/// drops it: it may have been cut already.
#[inline(always)]
pub fn answer(ctx: &TcContext) -> Option<i32> {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs.
    let (kind, interface) = unsafe { ((*skb).pkt_type, (*skb).ifindex) };
    if kind != PACKET_HOST {
        return None;
    }
    let asked: [u8; FRAME] = ctx.load(0).ok()?;
    let flags = asked[TCP + 13];
    if asked[ETH_HEADER] != 0x45
        || asked[ETH_HEADER + 9] != PROTOCOL_TCP
        || u16_at(&asked, ETH_HEADER + 6) & FRAGMENT != 0
        || flags & RST != 0
    {
        return None;
    }
    let segment = u32::from(u16_at(&asked, ETH_HEADER + 2)).checked_sub(IP_HEADER as u32)?;
    let answer = build(&asked, segment);
    // SAFETY: the context is valid while the program runs. This also linearises and unshares the frame.
    if unsafe { bpf_skb_change_tail(skb, FRAME as u32, 0) } != 0 {
        return None;
    }
    ctx.store(0, &answer, REWRITE).ok()?;
    ctx.set_mark(MARK);
    // SAFETY: the helper takes plain numbers.
    Some(unsafe { bpf_redirect(interface, 0) } as i32)
}

/// `segment` is the length of the TCP header and payload that were received.
#[inline(always)]
fn build(asked: &[u8; FRAME], segment: u32) -> [u8; FRAME] {
    let mut frame = [0_u8; FRAME];
    let mut i = 0;
    while i < 6 {
        frame[i] = asked[6 + i];
        frame[6 + i] = asked[i];
        i += 1;
    }
    let (source, target) = (u32_at(asked, ETH_HEADER + 12), u32_at(asked, ETH_HEADER + 16));
    put(&mut frame, 12, [0x08, 0x00, 0x45, 0x00, 0x00, 40]);
    // Do not fragment, 64 hops.
    put(&mut frame, ETH_HEADER + 6, [0x40, 0x00, 64, PROTOCOL_TCP]);
    put(&mut frame, ETH_HEADER + 12, target.to_be_bytes());
    put(&mut frame, ETH_HEADER + 16, source.to_be_bytes());
    let header = !fold(sum(&frame, ETH_HEADER, TCP));
    put(&mut frame, ETH_HEADER + 10, header.to_be_bytes());

    put(
        &mut frame,
        TCP,
        [asked[TCP + 2], asked[TCP + 3], asked[TCP], asked[TCP + 1]],
    );
    let flags = asked[TCP + 13];
    // RFC 9293 §3.10.7.1: the sequence is what the other side acknowledged, or else zero with an
    // acknowledgement of all that it sent.
    if flags & ACK != 0 {
        put(&mut frame, TCP + 4, u32_at(asked, TCP + 8).to_be_bytes());
        put(&mut frame, TCP + 12, [0x50, RST]);
    } else {
        let header = u32::from(asked[TCP + 12] >> 4) * 4;
        let length = segment.wrapping_sub(header) + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        put(
            &mut frame,
            TCP + 8,
            u32_at(asked, TCP + 4).wrapping_add(length).to_be_bytes(),
        );
        put(&mut frame, TCP + 12, [0x50, RST | ACK]);
    }
    let addresses = sum(&frame, ETH_HEADER + 12, TCP) + u32::from(PROTOCOL_TCP);
    // A frame whose checksum the sender left to the hardware (veth, virtio, after GRO) carries the sum
    // of the pseudo-header alone, and the kernel will complete the answer's the same way.
    let checksum = if u16_at(asked, TCP + 16) == fold(addresses + segment) {
        fold(addresses + 20)
    } else {
        !fold(addresses + 20 + sum(&frame, TCP, FRAME))
    };
    put(&mut frame, TCP + 16, checksum.to_be_bytes());
    frame
}

/// Whether an outgoing frame is one of our answers.
#[inline(always)]
pub fn is_ours(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    let mark = unsafe { (*ctx.skb.skb).mark };
    let flags: Result<u8, _> = ctx.load(TCP + 13);
    mark == MARK && flags.is_ok_and(|flags| flags & RST != 0)
}
