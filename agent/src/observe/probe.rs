//! One question to one target, and what its answer or silence means.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use understudy_common::wire::Reach;
use understudy_transport::Knock;

use super::Probe;

/// A question without an answer in this time was dropped: less than a second, when a lost SYN would
/// be sent again.
pub const PROBE_MAX: Duration = Duration::from_millis(700);
/// Longer than any version negotiation.
const ANSWER_BYTES_MAX: usize = 1_500;

/// Asks once.
pub async fn reach(probe: Probe) -> Reach {
    let asked = async {
        match probe {
            Probe::Agent(at) => knock(at).await,
            Probe::Address(at) => TcpStream::connect(at).await.map(drop),
        }
    };
    match timeout(PROBE_MAX, asked).await {
        Ok(Ok(())) => Reach::Answered,
        Ok(Err(error)) => of_error(&error),
        Err(_) => Reach::Dropped,
    }
}

async fn knock(at: SocketAddr) -> io::Result<()> {
    let any: SocketAddr = if at.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(at).await?;
    let random = || u128::from(RandomState::new().build_hasher().finish());
    let knock = Knock::new(random() << 64 | random());
    socket.send(&knock.datagram()).await?;
    let mut answer = [0; ANSWER_BYTES_MAX];
    loop {
        let length = socket.recv(&mut answer).await?;
        if knock.is_answered_by(&answer[..length]) {
            return Ok(());
        }
    }
}

/// An RST or an ICMP "port unreachable" comes from a living machine. No neighbour or router that knows
/// the host is silence with other words. Anything else went wrong on this side.
fn of_error(error: &io::Error) -> Reach {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::ECONNRESET) => Reach::Refused,
        Some(libc::EHOSTUNREACH | libc::EHOSTDOWN | libc::ETIMEDOUT) => Reach::Dropped,
        _ => Reach::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_listens_answers_and_one_that_does_not_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        assert_eq!(reach(Probe::Address(at)).await, Reach::Answered);
        drop(listener);
        assert_eq!(reach(Probe::Address(at)).await, Reach::Refused);
    }

    #[tokio::test]
    async fn an_endpoint_that_is_gone_refuses_and_one_that_stands_still_drops() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = silent.local_addr().unwrap();
        assert_eq!(reach(Probe::Agent(at)).await, Reach::Dropped);
        drop(silent);
        assert_eq!(reach(Probe::Agent(at)).await, Reach::Refused);
    }

    #[test]
    fn what_fails_on_this_side_is_no_evidence() {
        for (code, expected) in [
            (libc::ECONNREFUSED, Reach::Refused),
            (libc::EHOSTUNREACH, Reach::Dropped),
            (libc::ENETUNREACH, Reach::Unreachable),
            (libc::ENETDOWN, Reach::Unreachable),
            (libc::EADDRNOTAVAIL, Reach::Unreachable),
            (libc::EPERM, Reach::Unreachable),
            (libc::EMFILE, Reach::Unreachable),
        ] {
            assert_eq!(of_error(&io::Error::from_raw_os_error(code)), expected, "{code}");
        }
    }
}
