//! Length-prefixed frames on QUIC streams.

use std::pin::pin;
use std::task::{Context, Waker};

use quinn::{ReadExactError, RecvStream, SendStream};

use crate::TransportError;

/// Frames up to this length travel with their length prefix in one write, so that both leave in one packet.
const TOGETHER_MAX: usize = 16 << 10;

/// Sends frames in order. Dropping it without [`finish`](Self::finish) resets the stream.
#[derive(Debug)]
pub struct FrameSender {
    stream: SendStream,
    max: usize,
}

impl FrameSender {
    pub(crate) const fn new(stream: SendStream, max: usize) -> Self {
        Self { stream, max }
    }

    /// # Errors
    /// [`TransportError::FrameTooLong`] before anything is sent, [`TransportError::Closed`] when the link ended.
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), TransportError> {
        let len = prefix(frame, self.max)?;
        if frame.len() <= TOGETHER_MAX {
            let whole = [&len[..], frame].concat();
            return self.stream.write_all(&whole).await.map_err(closed);
        }
        self.stream.write_all(&len).await.map_err(closed)?;
        self.stream.write_all(frame).await.map_err(closed)
    }

    /// Lower priorities are sent later when the link is the bottleneck; 0 is the default.
    pub fn set_priority(&self, priority: i32) {
        // Fails only on a closed stream, which the next send reports.
        let _ = self.stream.set_priority(priority);
    }

    pub fn finish(mut self) {
        // Fails only on a stream that is closed already.
        let _ = self.stream.finish();
    }
}

/// Receives frames in order.
#[derive(Debug)]
pub struct FrameReceiver {
    stream: RecvStream,
    max: usize,
}

impl FrameReceiver {
    pub(crate) const fn new(stream: RecvStream, max: usize) -> Self {
        Self { stream, max }
    }

    /// The next frame, or `None` when the peer finished the stream.
    ///
    /// Cancel-unsafe: a dropped future may have consumed part of a frame.
    ///
    /// # Errors
    /// [`TransportError::FrameTooLong`] for a length over the stream kind's limit (nothing is allocated for
    /// it), [`TransportError::Closed`] when the link ended in mid-frame.
    pub async fn receive(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        let mut len = [0; 4];
        match self.stream.read_exact(&mut len).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
            Err(error) => return Err(closed(error)),
        }
        let len = u32::from_le_bytes(len) as usize;
        if len > self.max {
            return Err(TransportError::FrameTooLong { len, max: self.max });
        }
        let mut frame = vec![0; len];
        self.stream.read_exact(&mut frame).await.map_err(closed)?;
        Ok(Some(frame))
    }
}

/// A stream whose end is here counts as read to its end. Otherwise the peer is told to stop sending, which costs
/// each request and each response a packet.
impl Drop for FrameReceiver {
    fn drop(&mut self) {
        let mut byte = [0];
        let end = pin!(self.stream.read(&mut byte));
        // Whatever it is: nobody reads on.
        let _ = end.poll(&mut Context::from_waker(Waker::noop()));
    }
}

/// The length in front of a frame.
pub(crate) fn prefix(frame: &[u8], max: usize) -> Result<[u8; 4], TransportError> {
    let len = frame.len();
    if len > max {
        return Err(TransportError::FrameTooLong { len, max });
    }
    Ok(u32::try_from(len)
        .expect("frame limits fit in 32 bits")
        .to_le_bytes())
}

pub(crate) fn closed(error: impl std::fmt::Display) -> TransportError {
    TransportError::Closed(error.to_string())
}
