//! The UDP socket under an endpoint.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};

/// What the kernel keeps of datagrams that were not read yet; what overflows is lost. With its default of some 200 KiB
/// handshakes with a busy coordinator timed out on the way to 5,000 hosts; with this, one core takes 10,000
/// (`cargo xtask bench fleet`).
const RECEIVE_BYTES: usize = 8 << 20;

pub(crate) fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(addr)?;
    // Without the privilege it becomes what `net.core.rmem_max` allows, and the default serves as well in all but
    // large clusters.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BYTES).is_err() {
        let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BYTES);
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;

    #[test]
    fn a_socket_takes_no_less_than_the_kernels_default() {
        let (plain, own) = (
            UdpSocket::bind("127.0.0.1:0").unwrap(),
            bind("127.0.0.1:0".parse().unwrap()).unwrap(),
        );
        let bytes = |socket| getsockopt(socket, sockopt::RcvBuf).unwrap();
        assert!(bytes(&own) >= bytes(&plain));
        if nix::unistd::geteuid().is_root() {
            assert!(bytes(&own) >= RECEIVE_BYTES);
        }
    }
}
