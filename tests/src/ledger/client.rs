//! One connection to a ledger.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{ANSWER_BYTES, APPEND, Answer, DUMP, PING};

/// More than any run appends.
const RECORDS_MAX: u64 = 100_000_000;

pub struct Connection(TcpStream);

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    pub host: u8,
    pub incarnation: u64,
    /// An append that was refused was not made.
    pub done: bool,
}

impl Connection {
    /// # Errors
    /// When nobody accepts in time.
    pub fn open(at: SocketAddr, connect: Duration, answer: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&at, connect)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(answer))?;
        stream.set_write_timeout(Some(answer))?;
        Ok(Self(stream))
    }

    /// # Errors
    /// When there is no answer in time: the connection is of no more use.
    pub fn ping(&mut self) -> Result<Said> {
        Ok(said(self.ask(PING, 0)?))
    }

    /// # Errors
    /// When there is no answer in time: it may have been appended.
    pub fn append(&mut self, id: u64) -> Result<Said> {
        Ok(said(self.ask(APPEND, id)?))
    }

    /// All numbers in the ledger.
    ///
    /// # Errors
    /// When the answer does not come whole.
    pub fn dump(&mut self) -> Result<(Said, Vec<u64>)> {
        let answer = self.ask(DUMP, 0)?;
        ensure!(
            answer.records <= RECORDS_MAX,
            "{} records cannot be",
            answer.records
        );
        let mut bytes = vec![0; answer.records as usize * 8];
        self.0.read_exact(&mut bytes)?;
        let (words, _) = bytes.as_chunks::<8>();
        Ok((
            said(answer),
            words.iter().map(|word| u64::from_le_bytes(*word)).collect(),
        ))
    }

    fn ask(&mut self, kind: u8, number: u64) -> Result<Answer> {
        let request = [&[kind][..], &number.to_le_bytes()].concat();
        self.0.write_all(&request)?;
        let mut bytes = [0; ANSWER_BYTES];
        self.0.read_exact(&mut bytes)?;
        Answer::decode(&bytes).context("what answers is not a ledger")
    }
}

fn said(answer: Answer) -> Said {
    Said {
        host: answer.host,
        incarnation: answer.incarnation,
        done: answer.done,
    }
}
