//! A small workload whose every promise can be checked: an append-only ledger of numbers.
//!
//! Invariants: an append is answered after write(2) returned, so what is answered was handed to the kernel
//! (`ack = "written"`); numbers only rise; each record carries a hash of all before it, and a ledger in which
//! any record does not fit is not opened.

mod client;
mod server;
mod store;

pub use client::{Connection, Said};
pub use server::serve;
pub use store::Ledger;

/// A request is its kind and one number, an answer is [`Answer`].
const REQUEST_BYTES: usize = 9;
const ANSWER_BYTES: usize = 18;
const PING: u8 = b'p';
const APPEND: u8 = b'a';
const DUMP: u8 = b'd';
const DONE: u8 = b'o';
const REFUSED: u8 = b'e';

/// Head of every answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    done: bool,
    /// Number of the host that answers.
    host: u8,
    /// Another for each start of the server.
    incarnation: u64,
    /// Records in the ledger.
    records: u64,
}

impl Answer {
    fn encode(self) -> [u8; ANSWER_BYTES] {
        let mut bytes = [0; ANSWER_BYTES];
        bytes[0] = if self.done { DONE } else { REFUSED };
        bytes[1] = self.host;
        bytes[2..10].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes[10..].copy_from_slice(&self.records.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; ANSWER_BYTES]) -> Option<Self> {
        let done = match bytes[0] {
            DONE => true,
            REFUSED => false,
            _ => return None,
        };
        Some(Self {
            done,
            host: bytes[1],
            incarnation: u64::from_le_bytes(bytes[2..10].try_into().ok()?),
            records: u64::from_le_bytes(bytes[10..].try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_back_as_it_was_sent_and_garbage_does_not() {
        let answer = Answer {
            done: true,
            host: 3,
            incarnation: 1 << 60,
            records: 77,
        };
        assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        assert_eq!(Answer::decode(&[0; ANSWER_BYTES]), None);
    }
}
