//! Snapshots travel on streams of their own: a head, then chunks, then one answer.
//!
//! Invariants: no frame grows with the state. The receiver takes in what the head announces, no more,
//! and hands on only what its checksum confirms; whatever is interrupted begins anew. Each side
//! waits for the other: QUIC's windows bound what is under way, so that heartbeats on the other
//! streams of the link go on.

use std::sync::Arc;
use std::time::Duration;

use protobuf::Message as _;
use raft::eraftpb::Message;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use understudy_common::id::CoordinatorId;
use understudy_common::wire::{self, Refusal, Response, StreamKind};
use understudy_transport::{FrameReceiver, FrameSender, Link, TransportError};

use crate::coordinator::Event;

/// Longest chunk.
const CHUNK_BYTES: usize = 64 << 10;
/// A bigger state is no state of this program.
const SNAPSHOT_BYTES_MAX: u64 = 512 << 20;
/// A side that takes longer for one chunk, or for the answer, is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Taken in at once; more are refused, and sent again later.
pub(super) const AT_ONCE: usize = 1;

/// What comes first.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Head {
    /// raft's message without the snapshot's data.
    message: Vec<u8>,
    bytes: u64,
    /// BLAKE3 over all chunks.
    checksum: [u8; 32],
}

/// Sends the message; true when the other side took it.
pub(super) async fn send(link: Link, message: Message) -> bool {
    let to = link.principal();
    match try_send(&link, message).await {
        Ok(Response::Done) => true,
        Ok(other) => {
            tracing::warn!(%to, answer = ?other, "the snapshot was not taken");
            false
        }
        Err(error) => {
            tracing::warn!(%to, %error, "the snapshot did not arrive");
            false
        }
    }
}

async fn try_send(link: &Link, mut message: Message) -> Result<Response, TransportError> {
    let data = std::mem::take(&mut message.mut_snapshot().data);
    let head = Head {
        message: message.write_to_bytes().map_err(unreadable)?,
        bytes: data.len() as u64,
        checksum: blake3::hash(&data).into(),
    };
    let (mut sender, mut answer) = link.open_bi(StreamKind::Snapshot).await?;
    sender.set_priority(-1);
    within(sender.send(&wire::encode(&head))).await?;
    for chunk in data.chunks(CHUNK_BYTES) {
        within(sender.send(chunk)).await?;
    }
    sender.finish();
    let frame = within(answer.receive()).await?;
    let frame = frame.ok_or_else(|| TransportError::Closed("no answer".to_owned()))?;
    Ok(wire::decode(&frame)?)
}

/// Takes a snapshot in and hands it to the loop.
pub(super) async fn receive(
    from: CoordinatorId,
    mut sender: FrameSender,
    mut receiver: FrameReceiver,
    room: Arc<Semaphore>,
    events: mpsc::Sender<Event>,
) -> Result<(), TransportError> {
    let Ok(_room) = room.try_acquire() else {
        let busy = Response::Refused(Refusal::Busy("snapshots".to_owned()));
        return sender.send(&wire::encode(&busy)).await;
    };
    let outcome = take_in(&mut receiver).await?;
    let answer = match outcome {
        Ok(message) if message.from == from.0 => {
            // Fails only when the process stops.
            let _ = events.send(Event::Snapshot { from, message }).await;
            Response::Done
        }
        Ok(_) => Response::Refused(Refusal::Invalid("it is not of who sent it".to_owned())),
        Err(why) => Response::Refused(Refusal::Invalid(why.to_owned())),
    };
    sender.send(&wire::encode(&answer)).await?;
    sender.finish();
    Ok(())
}

async fn take_in(receiver: &mut FrameReceiver) -> Result<Result<Message, &'static str>, TransportError> {
    let Some(frame) = within(receiver.receive()).await? else {
        return Ok(Err("it has no head"));
    };
    let head: Head = wire::decode(&frame)?;
    if head.bytes > SNAPSHOT_BYTES_MAX {
        return Ok(Err("it is longer than any state"));
    }
    let mut data = Vec::new();
    while let Some(chunk) = within(receiver.receive()).await? {
        if (data.len() + chunk.len()) as u64 > head.bytes {
            return Ok(Err("it is longer than its head says"));
        }
        data.extend_from_slice(&chunk);
    }
    if data.len() as u64 != head.bytes || *blake3::hash(&data).as_bytes() != head.checksum {
        return Ok(Err("its checksum is wrong"));
    }
    let mut message = Message::parse_from_bytes(&head.message).map_err(unreadable)?;
    message.mut_snapshot().set_data(data.into());
    Ok(Ok(message))
}

async fn within<T>(step: impl Future<Output = Result<T, TransportError>>) -> Result<T, TransportError> {
    timeout(PATIENCE, step)
        .await
        .unwrap_or(Err(TransportError::Timeout(PATIENCE)))
}

fn unreadable(error: protobuf::ProtobufError) -> TransportError {
    TransportError::Decode(understudy_common::wire::DecodeError {
        expected: "raft message",
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, Validity};
    use raft::eraftpb::MessageType;
    use time::OffsetDateTime;
    use understudy_common::identity::{Credentials, Principal};
    use understudy_transport::Endpoint;

    const FROM: CoordinatorId = CoordinatorId(1);
    const TO: CoordinatorId = CoordinatorId(2);

    fn endpoint(authority: &Authority, id: CoordinatorId) -> Endpoint {
        let validity = Validity::days_from(OffsetDateTime::now_utc(), 1);
        let pair = authority.issue(Principal::Coordinator(id), validity).unwrap();
        let ca = authority.pair().certificate.as_bytes();
        let credentials =
            Credentials::from_pem(ca, pair.certificate.as_bytes(), pair.key.as_bytes()).unwrap();
        Endpoint::bind("127.0.0.1:0".parse().unwrap(), &credentials).unwrap()
    }

    /// A link whose other end takes snapshots in, and what is handed on there.
    async fn linked() -> (Link, mpsc::Receiver<Event>, Vec<Endpoint>) {
        let authority = Authority::new(Validity::days_from(OffsetDateTime::now_utc(), 1)).unwrap();
        let (from, to) = (endpoint(&authority, FROM), endpoint(&authority, TO));
        let addr = to.local_addr().unwrap();
        let (events, handed_on) = mpsc::channel(4);
        let accepting = to.clone();
        tokio::spawn(async move {
            let link = accepting.accept().await.unwrap().handshake().await.unwrap();
            let room = Arc::new(Semaphore::new(AT_ONCE));
            while let Ok(stream) = link.accept_bi().await {
                let (kind, sender, receiver) = stream.kind().await.unwrap();
                assert_eq!(kind, StreamKind::Snapshot);
                let (room, events) = (Arc::clone(&room), events.clone());
                tokio::spawn(receive(FROM, sender, receiver, room, events));
            }
        });
        let link = from.dial(addr, Principal::Coordinator(TO)).await.unwrap();
        (link, handed_on, vec![from, to])
    }

    fn snapshot(from: CoordinatorId, bytes: usize) -> Message {
        let mut message = Message {
            from: from.0,
            to: TO.0,
            term: 3,
            ..Message::default()
        };
        message.set_msg_type(MessageType::MsgSnapshot);
        let data: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
        message.mut_snapshot().set_data(data.into());
        message.mut_snapshot().mut_metadata().index = 9;
        message
    }

    async fn answer_to(link: &Link, head: Head, chunks: &[&[u8]]) -> Option<Response> {
        let (mut sender, mut answer) = link.open_bi(StreamKind::Snapshot).await.unwrap();
        sender.send(&wire::encode(&head)).await.unwrap();
        for chunk in chunks {
            sender.send(chunk).await.unwrap();
        }
        sender.finish();
        Some(wire::decode(&answer.receive().await.unwrap()?).unwrap())
    }

    fn head(bytes: u64, data: &[u8]) -> Head {
        Head {
            message: snapshot(FROM, 0).write_to_bytes().unwrap(),
            bytes,
            checksum: blake3::hash(data).into(),
        }
    }

    #[tokio::test]
    async fn a_snapshot_much_longer_than_a_frame_arrives_whole() {
        let (link, mut handed_on, _endpoints) = linked().await;
        for bytes in [0, 1, CHUNK_BYTES, 9 * wire::CONTROL_FRAME_MAX + 17] {
            let message = snapshot(FROM, bytes);
            assert!(send(link.clone(), message.clone()).await);
            match handed_on.recv().await {
                Some(Event::Snapshot {
                    from: FROM,
                    message: taken,
                }) => assert_eq!(taken, message),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn what_its_checksum_or_length_does_not_confirm_is_refused_in_words() {
        let (link, mut handed_on, _endpoints) = linked().await;
        for (head, chunks, why) in [
            (head(4, b"good"), &[&b"evil"[..]][..], "its checksum is wrong"),
            (head(4, b"good"), &[b"go"], "its checksum is wrong"),
            (head(4, b"good"), &[b"good", b"!"], "longer than its head says"),
            (
                head(SNAPSHOT_BYTES_MAX + 1, b"good"),
                &[b"good"],
                "longer than any state",
            ),
        ] {
            let answer = answer_to(&link, head, chunks).await;
            assert!(
                matches!(&answer, Some(Response::Refused(refusal)) if refusal.to_string().contains(why)),
                "{why}: {answer:?}"
            );
        }
        assert!(!send(link.clone(), snapshot(CoordinatorId(3), 10)).await);
        assert!(handed_on.try_recv().is_err(), "nothing was handed on");
    }

    #[tokio::test]
    async fn an_interrupted_snapshot_is_forgotten_and_the_next_one_taken() {
        let (link, mut handed_on, _endpoints) = linked().await;
        let (mut sender, answer) = link.open_bi(StreamKind::Snapshot).await.unwrap();
        sender.send(&wire::encode(&head(8, b"complete"))).await.unwrap();
        sender.send(b"comp").await.unwrap();
        // Without a finish: the stream is reset.
        drop((sender, answer));
        // Until the receiver has seen the end, its room is taken.
        while !send(link.clone(), snapshot(FROM, 100)).await {}
        match handed_on.recv().await {
            Some(Event::Snapshot { message, .. }) => assert_eq!(message, snapshot(FROM, 100)),
            other => panic!("{other:?}"),
        }
    }
}
