//! The RST that a closed gate answers, byte by byte, to frames that carry a checksum of their own (as
//! from a network card) rather than one left to the hardware (as between containers).

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use super::testnet::{CLIENT, INTERFACE, Net, PATIENCE, SERVICE, boot_now};
use super::*;

const PORT: u16 = 40_000;
const SEQUENCE: u32 = 0xffff_fff0;
const ACKNOWLEDGED: u32 = 0x0102_0304;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A raw socket on the client's interface.
fn raw(net: &Net) -> OwnedFd {
    net.client.run(|| {
        let protocol = i32::from((libc::ETH_P_IP as u16).to_be());
        // SAFETY: plain numbers, then a valid address of its own size.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, protocol);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let fd = OwnedFd::from_raw_fd(fd);
            let mut at: libc::sockaddr_ll = std::mem::zeroed();
            at.sll_family = libc::AF_PACKET as u16;
            at.sll_protocol = protocol as u16;
            at.sll_ifindex = nix::net::if_::if_nametoindex(INTERFACE).unwrap() as i32;
            let size = size_of::<libc::sockaddr_ll>() as u32;
            assert_eq!(libc::bind(fd.as_raw_fd(), (&raw const at).cast(), size), 0);
            fd
        }
    })
}

fn mac(text: &str) -> Vec<u8> {
    text.split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

fn tcp_checksum(ip: &[u8], tcp: &[u8]) -> u16 {
    checksum(&[&ip[12..20], &[0, 6], &(tcp.len() as u16).to_be_bytes(), tcp])
}

fn segment(net: &Net, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = (40 + payload.len()) as u16;
    let mut ip = [
        &[0x45, 0][..],
        &length.to_be_bytes(),
        &[0, 7, 0x40, 0, 64, 6, 0, 0],
    ]
    .concat();
    ip.extend([CLIENT.octets(), SERVICE.octets()].concat());
    let sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut tcp = [PORT.to_be_bytes(), 7000_u16.to_be_bytes()].concat();
    tcp.extend([SEQUENCE.to_be_bytes(), ACKNOWLEDGED.to_be_bytes()].concat());
    tcp.extend([0x50, flags, 0x10, 0, 0, 0, 0, 0]);
    tcp.extend(payload);
    let sum = tcp_checksum(&ip, &tcp);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    [
        mac(&net.a.mac()),
        mac(&net.client.mac()),
        vec![0x08, 0x00],
        ip,
        tcp,
    ]
    .concat()
}

/// Sends the frame; what comes back to its port within `limit`.
fn answer(net: &Net, frame: &[u8], limit: Duration) -> Option<Vec<u8>> {
    let socket = raw(net);
    let deadline = Instant::now() + limit;
    // SAFETY: both buffers outlive their calls and the lengths are theirs.
    unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    while Instant::now() < deadline {
        let mut buffer = [0_u8; 2_048];
        // SAFETY: as above.
        let got = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let Ok(got) = usize::try_from(got) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        if got >= 54 && buffer[26..30] == SERVICE.octets() && buffer[36..38] == PORT.to_be_bytes() {
            return Some(buffer[..got].to_vec());
        }
    }
    None
}

#[test]
fn a_reset_names_what_was_sent_and_its_checksums_are_right() {
    let Some(net) = Net::new() else { return };
    let gate = net.a.run(|| {
        let gate = KernelGate::load(&net.pin_dir()).unwrap();
        gate.guard_interface(SERVICE, INTERFACE).unwrap();
        gate
    });
    gate.keep_alive(boot_now() + Duration::from_secs(3_600)).unwrap();
    let cases = [
        (SYN, &b""[..], 0, SEQUENCE.wrapping_add(1), RST | ACK),
        (SYN, b"odd", 0, SEQUENCE.wrapping_add(4), RST | ACK),
        (
            FIN,
            b"twelve bytes and over the wrap",
            0,
            SEQUENCE.wrapping_add(31),
            RST | ACK,
        ),
        (ACK, b"data", ACKNOWLEDGED, 0, RST),
        (ACK | FIN, b"", ACKNOWLEDGED, 0, RST),
    ];
    for (flags, payload, sequence, acknowledged, answered) in cases {
        let asked = segment(&net, flags, payload);
        let frame = answer(&net, &asked, PATIENCE).expect("it is answered");
        let (ip, tcp) = (&frame[14..34], &frame[34..54]);
        assert_eq!((&frame[..6], &frame[6..12]), (&asked[6..12], &asked[..6]));
        assert_eq!(checksum(&[ip]), 0, "IP checksum");
        assert_eq!(tcp_checksum(ip, tcp), 0, "TCP checksum of {flags:#x}");
        assert_eq!(tcp[4..8], sequence.to_be_bytes());
        assert_eq!(tcp[8..12], acknowledged.to_be_bytes());
        assert_eq!(tcp[13], answered);
    }
    let quiet = Duration::from_millis(200);
    assert_eq!(
        answer(&net, &segment(&net, RST, b""), quiet),
        None,
        "an RST is never answered"
    );
    let mut flooded = segment(&net, SYN, b"");
    flooded[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    assert_eq!(
        answer(&net, &flooded, quiet),
        None,
        "nor is what was sent to another machine"
    );
}
