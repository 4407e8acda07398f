//! Just enough of the Redis protocol to write, read back and load.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest bulk answer that is read; ours are numbers and INFO sections.
const BULK_MAX: usize = 1 << 20;
/// Most elements of an array answer.
const ARRAY_MAX: usize = 1 << 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Status(String),
    Error(String),
    Number(i64),
    Bulk(Option<Vec<u8>>),
    Array(Vec<Reply>),
}

impl Reply {
    pub(super) fn is_ok(&self) -> bool {
        *self == Self::Status("OK".to_owned())
    }

    /// A stored decimal number.
    pub(super) fn stored_number(&self) -> Option<u64> {
        match self {
            Self::Bulk(Some(text)) => std::str::from_utf8(text).ok()?.parse().ok(),
            _ => None,
        }
    }
}

pub(super) struct Redis {
    stream: BufReader<TcpStream>,
    out: Vec<u8>,
}

impl Redis {
    pub(super) fn connect(at: SocketAddr, connect: Duration, answer: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&at, connect)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(answer))?;
        stream.set_write_timeout(Some(answer))?;
        Ok(Self {
            stream: BufReader::new(stream),
            out: Vec::new(),
        })
    }

    /// Sends one command and waits for its answer. After an error the connection is of no use.
    pub(super) fn ask(&mut self, words: &[&[u8]]) -> io::Result<Reply> {
        self.queue(words);
        self.flush()?;
        self.answer()
    }

    /// Adds a command to what [`Redis::flush`] sends.
    pub(super) fn queue(&mut self, words: &[&[u8]]) {
        encode(words, &mut self.out);
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        let sent = self.stream.get_mut().write_all(&self.out);
        self.out.clear();
        sent
    }

    pub(super) fn answer(&mut self) -> io::Result<Reply> {
        decode(&mut self.stream)
    }
}

fn encode(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

fn decode(from: &mut impl BufRead) -> io::Result<Reply> {
    let line = line(from)?;
    let (kind, rest) = line.split_at_checked(1).ok_or_else(|| garbled("an empty line"))?;
    Ok(match kind {
        "+" => Reply::Status(rest.to_owned()),
        "-" => Reply::Error(rest.to_owned()),
        ":" => Reply::Number(rest.parse().map_err(|_| garbled("a number"))?),
        "$" if rest == "-1" => Reply::Bulk(None),
        "$" => {
            let length = length(rest, BULK_MAX)?;
            let mut bytes = vec![0; length + 2];
            from.read_exact(&mut bytes)?;
            bytes.truncate(length);
            Reply::Bulk(Some(bytes))
        }
        "*" => {
            let length = length(rest, ARRAY_MAX)?;
            Reply::Array((0..length).map(|_| decode(from)).collect::<io::Result<_>>()?)
        }
        _ => return Err(garbled("an unknown kind of answer")),
    })
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut bytes = Vec::new();
    from.take(BULK_MAX as u64).read_until(b'\n', &mut bytes)?;
    let Some(text) = bytes.strip_suffix(b"\r\n") else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    String::from_utf8(text.to_vec()).map_err(|_| garbled("a line that is not text"))
}

fn length(text: &str, max: usize) -> io::Result<usize> {
    text.parse()
        .ok()
        .filter(|length| *length <= max)
        .ok_or_else(|| garbled("a length"))
}

fn garbled(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("Redis answered with {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: Reply) {
        assert_eq!(decode(&mut &bytes[..]).expect("well-formed"), expected);
    }

    #[test]
    fn answers_are_read() {
        check(b"+OK\r\n", Reply::Status("OK".to_owned()));
        check(b"-LOADING x\r\n", Reply::Error("LOADING x".to_owned()));
        check(b":7\r\n", Reply::Number(7));
        check(b"$-1\r\n", Reply::Bulk(None));
        check(
            b"*2\r\n$2\r\n42\r\n$-1\r\n",
            Reply::Array(vec![Reply::Bulk(Some(b"42".to_vec())), Reply::Bulk(None)]),
        );
    }

    #[test]
    fn garbage_is_an_error() {
        for bytes in [
            &b"+OK"[..],
            b"",
            b"$99999999999\r\n",
            b"?\r\n",
            b"\r\n",
            b"$x\r\n",
        ] {
            assert!(decode(&mut &bytes[..]).is_err());
        }
    }

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        let mut out = Vec::new();
        encode(&[b"GET", b"mark"], &mut out);
        assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$4\r\nmark\r\n");
    }
}
