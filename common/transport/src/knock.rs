//! Asks whether a QUIC endpoint answers, without a handshake: a long header with a version that
//! nobody speaks is answered by a list of those that are spoken (RFC 9000 §6, §17.2.1).
//!
//! Invariants: no I/O here. Only who saw the question can answer it, since the answer repeats its
//! connection ids. It says that the endpoint's program runs, not who it is.

/// Shorter ones are not answered (RFC 9000 §14.1).
const DATAGRAM_BYTES: usize = 1_200;
/// Reserved for exactly this (RFC 9000 §15): `0x?a?a?a?a`.
const VERSION: [u8; 4] = [0x5a, 0x6a, 0x7a, 0x8a];
const ID_BYTES: usize = 8;
const LONG_HEADER: u8 = 0x80;
const FIXED_BIT: u8 = 0x40;

#[derive(Clone, Debug)]
pub struct Knock {
    to: [u8; ID_BYTES],
    from: [u8; ID_BYTES],
}

impl Knock {
    /// `random` tells the answers to different knocks apart.
    pub fn new(random: u128) -> Self {
        let bytes = random.to_le_bytes();
        let half = |at: usize| std::array::from_fn(|n| bytes[at + n]);
        Self {
            to: half(0),
            from: half(ID_BYTES),
        }
    }

    pub fn datagram(&self) -> Vec<u8> {
        let mut datagram = vec![LONG_HEADER | FIXED_BIT];
        datagram.extend(VERSION);
        for id in [self.to, self.from] {
            datagram.push(ID_BYTES as u8);
            datagram.extend(id);
        }
        datagram.resize(DATAGRAM_BYTES, 0);
        datagram
    }

    /// Whether the datagram is a version negotiation that answers this knock.
    pub fn is_answered_by(&self, datagram: &[u8]) -> bool {
        let mut expected = vec![0; 4];
        for id in [self.from, self.to] {
            expected.push(ID_BYTES as u8);
            expected.extend(id);
        }
        datagram
            .split_first()
            .is_some_and(|(first, rest)| first & LONG_HEADER != 0 && rest.starts_with(&expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_to_this_very_knock_counts() {
        let (knock, other) = (Knock::new(7 << 64 | 9), Knock::new(8 << 64 | 9));
        let mut answer = vec![0xc0, 0, 0, 0, 0, 8];
        answer.extend(knock.from);
        answer.push(8);
        answer.extend(knock.to);
        answer.extend([0, 0, 0, 1]);
        assert!(knock.is_answered_by(&answer));
        assert!(!other.is_answered_by(&answer));
        assert!(!knock.is_answered_by(&knock.datagram()));
        for cut in 0..22 {
            assert!(!knock.is_answered_by(&answer[..cut]), "{cut}");
        }
    }
}
