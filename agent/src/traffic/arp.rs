//! Gratuitous ARP: tells the network at once which machine has an address. Without it neighbours
//! keep the old one for more than 40 s.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// When announcements are sent, after the address was taken. One lost in a busy switch is made up
/// for by the next.
pub const ANNOUNCEMENTS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_millis(1_000),
];

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const FRAME: usize = 42;

/// A raw socket on one interface of the calling thread's network namespace.
#[derive(Debug)]
pub(super) struct Announcer {
    socket: OwnedFd,
    index: i32,
    mac: [u8; 6],
    address: Ipv4Addr,
}

impl Announcer {
    pub(super) fn open(index: u32, address: Ipv4Addr) -> io::Result<Self> {
        // No protocol: it sends and receives nothing.
        // SAFETY: plain numbers; the result is a new descriptor of ours or an error.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave it to us.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let index = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mac = hardware_address(&socket, index)?;
        Ok(Self {
            socket,
            index,
            mac,
            address,
        })
    }

    /// Both forms that are in use: some neighbours heed only the one or the other.
    pub(super) fn announce(&self) -> io::Result<()> {
        for operation in [REQUEST, REPLY] {
            self.send(&frame(operation, self.mac, self.address))?;
        }
        Ok(())
    }

    /// The announcements after the first, which has been sent already.
    pub(super) async fn announce_rest(self) {
        let start = Instant::now();
        for after in ANNOUNCEMENTS.iter().skip(1) {
            sleep_until(start + *after).await;
            if let Err(error) = self.announce() {
                tracing::warn!(address = %self.address, %error, "cannot announce the address");
            }
        }
    }

    fn send(&self, frame: &[u8; FRAME]) -> io::Result<()> {
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut target: libc::sockaddr_ll = unsafe { zeroed() };
        target.sll_family = libc::AF_PACKET as u16;
        target.sll_ifindex = self.index;
        target.sll_halen = 6;
        target.sll_addr[..6].fill(0xff);
        // SAFETY: both buffers outlive the call and their lengths are theirs.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                FRAME,
                libc::MSG_DONTWAIT,
                (&raw const target).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

fn hardware_address(socket: &OwnedFd, index: i32) -> io::Result<[u8; 6]> {
    // SAFETY: all-zero is a valid ifreq; the kernel fills in the name, then the address.
    unsafe {
        let mut request: libc::ifreq = zeroed();
        request.ifr_ifru.ifru_ifindex = index;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFNAME, &mut request) < 0
            || libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &mut request) < 0
        {
            return Err(io::Error::last_os_error());
        }
        let bytes = request.ifr_ifru.ifru_hwaddr.sa_data;
        Ok(std::array::from_fn(|i| bytes[i] as u8))
    }
}

/// An ARP message in which sender and target are both `address`.
fn frame(operation: u8, mac: [u8; 6], address: Ipv4Addr) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    // ARP; Ethernet, IPv4, 6 and 4 bytes.
    frame[12..21].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0]);
    frame[21] = operation;
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&address.octets());
    if operation == REPLY {
        frame[32..38].copy_from_slice(&mac);
    }
    frame[38..42].copy_from_slice(&address.octets());
    frame
}
