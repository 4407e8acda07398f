//! What leaves a replica, in order. Messages that wait here for the shell grow together: a follower is sent one
//! append instead of many, and a leader is told of the newest entry that is durable instead of each.
//!
//! Invariants: a merged append says what the appends said one after another, and is no longer than raft's own;
//! bounded by [`OUTPUTS_MAX`]: more messages and orders are dropped, since both are sent again, and replies are
//! bounded by the requests that were taken in.

use std::collections::{BTreeMap, VecDeque};

use raft::eraftpb::MessageType;
use understudy_common::id::CoordinatorId;

use super::{APPEND_BYTES_MAX, Message, OUTPUTS_MAX, Output};

#[derive(Default)]
pub(super) struct Outputs {
    queue: VecDeque<Output>,
    /// How many have left, so that places in the queue have lasting numbers.
    left: u64,
    /// The last message to each coordinator of the kinds that can grow: its place, and the bytes of its entries.
    last: BTreeMap<(CoordinatorId, Kind), (u64, u64)>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Append,
    Appended,
}

impl Kind {
    fn of(message: &Message) -> Option<Self> {
        match message.get_msg_type() {
            MessageType::MsgAppend => Some(Self::Append),
            MessageType::MsgAppendResponse if !message.reject => Some(Self::Appended),
            _ => None,
        }
    }
}

impl Outputs {
    pub(super) fn pop(&mut self) -> Option<Output> {
        let first = self.queue.pop_front()?;
        self.left += 1;
        Some(first)
    }

    /// A reply is never dropped: exactly one is owed.
    pub(super) fn reply(&mut self, reply: Output) {
        self.queue.push_back(reply);
    }

    pub(super) fn push(&mut self, output: Output) {
        let Output::Send { to, message } = output else {
            self.push_back(output);
            return;
        };
        let Some(kind) = Kind::of(&message) else {
            self.push_back(Output::Send { to, message });
            return;
        };
        let bytes = bytes(&message);
        if let Some((place, waiting)) = self.last.get_mut(&(to, kind))
            && let Some(at) = place.checked_sub(self.left)
            && let Some(Output::Send { message: before, .. }) =
                usize::try_from(at).ok().and_then(|at| self.queue.get_mut(at))
            && *waiting + bytes <= APPEND_BYTES_MAX
            && continues(before, &message)
        {
            *waiting += bytes;
            merge(before, message);
            return;
        }
        let place = self.left + self.queue.len() as u64;
        if self.push_back(Output::Send { to, message }) {
            self.last.insert((to, kind), (place, bytes));
        }
    }

    fn push_back(&mut self, output: Output) -> bool {
        let room = self.queue.len() < OUTPUTS_MAX;
        if room {
            self.queue.push_back(output);
        }
        room
    }
}

fn bytes(message: &Message) -> u64 {
    message.entries.iter().map(|entry| entry.data.len() as u64).sum()
}

/// Whether `next` says the same when its entries stand behind those of `before`.
fn continues(before: &Message, next: &Message) -> bool {
    if before.term != next.term || before.from != next.from {
        return false;
    }
    if next.get_msg_type() == MessageType::MsgAppendResponse {
        return before.index <= next.index;
    }
    let end = before
        .entries
        .last()
        .map_or((before.index, before.log_term), |last| (last.index, last.term));
    end == (next.index, next.log_term)
}

fn merge(before: &mut Message, mut next: Message) {
    before.commit = before.commit.max(next.commit);
    if next.get_msg_type() == MessageType::MsgAppendResponse {
        before.index = next.index;
    } else {
        before.mut_entries().extend(next.take_entries());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::{Entry, RequestId};
    use understudy_common::wire::Response;

    const B: CoordinatorId = CoordinatorId(2);
    const C: CoordinatorId = CoordinatorId(3);

    fn message(kind: MessageType, term: u64, index: u64, commit: u64) -> Message {
        let mut message = Message::default();
        message.set_msg_type(kind);
        message.from = 1;
        (message.term, message.log_term) = (term, term);
        (message.index, message.commit) = (index, commit);
        message
    }

    /// Entries behind `index`, with `bytes` each.
    fn append(to: CoordinatorId, index: u64, entries: u64, bytes: usize) -> Output {
        let mut message = message(MessageType::MsgAppend, 7, index, index);
        for n in 1..=entries {
            let mut entry = Entry::default();
            (entry.term, entry.index) = (7, index + n);
            entry.data = vec![0; bytes].into();
            message.mut_entries().push(entry);
        }
        Output::Send { to, message }
    }

    fn appended(term: u64, index: u64, reject: bool) -> Output {
        let mut message = message(MessageType::MsgAppendResponse, term, index, index);
        message.reject = reject;
        Output::Send { to: B, message }
    }

    fn reply(id: u64) -> Output {
        Output::Reply {
            id: RequestId(id),
            response: Response::Done,
        }
    }

    fn all(mut outputs: Outputs) -> Vec<Output> {
        std::iter::from_fn(move || outputs.pop()).collect()
    }

    fn of(pushed: impl IntoIterator<Item = Output>) -> Vec<Output> {
        let mut outputs = Outputs::default();
        for output in pushed {
            outputs.push(output);
        }
        all(outputs)
    }

    #[test]
    fn appends_that_follow_each_other_are_one() {
        let mut outputs = Outputs::default();
        outputs.push(append(B, 10, 2, 8));
        outputs.push(append(C, 10, 2, 8));
        outputs.reply(reply(1));
        outputs.push(append(B, 12, 0, 8));
        outputs.push(append(B, 12, 3, 8));
        let Output::Send { mut message, .. } = append(B, 10, 5, 8) else {
            unreachable!()
        };
        // The newest that was said of what is committed.
        message.commit = 12;
        let whole = Output::Send { to: B, message };
        assert_eq!(all(outputs), [whole, append(C, 10, 2, 8), reply(1)]);
    }

    #[test]
    fn what_does_not_follow_stays_apart() {
        let (gap, again) = (
            [append(B, 10, 2, 8), append(B, 13, 1, 8)],
            [append(B, 10, 2, 8), append(B, 10, 2, 8)],
        );
        for pair in [gap, again] {
            assert_eq!(of(pair.clone()), pair);
        }
        let Output::Send { mut message, .. } = append(B, 12, 1, 8) else {
            unreachable!()
        };
        message.term = 8;
        let pair = [append(B, 10, 2, 8), Output::Send { to: B, message }];
        assert_eq!(of(pair.clone()), pair);
    }

    #[test]
    fn an_append_grows_no_longer_than_rafts_own() {
        let half = APPEND_BYTES_MAX as usize / 2;
        let sent = of((0..5).map(|n| append(B, n, 1, half)));
        assert_eq!(
            sent,
            [
                append(B, 0, 2, half),
                append(B, 2, 2, half),
                append(B, 4, 1, half)
            ]
            .map(|output| {
                let Output::Send { to, mut message } = output else {
                    unreachable!()
                };
                message.commit += message.entries.len() as u64 - 1;
                Output::Send { to, message }
            })
        );
    }

    #[test]
    fn what_has_left_grows_no_more() {
        let mut outputs = Outputs::default();
        outputs.push(append(B, 10, 2, 8));
        outputs.pop();
        outputs.push(append(B, 12, 1, 8));
        assert_eq!(all(outputs), [append(B, 12, 1, 8)]);
    }

    #[test]
    fn the_newest_durable_entry_stands_for_those_before() {
        let said = [appended(7, 10, false), appended(7, 12, false)];
        assert_eq!(of(said), [appended(7, 12, false)]);
        for pair in [
            [appended(7, 12, false), appended(7, 10, false)],
            [appended(7, 10, false), appended(8, 12, false)],
            [appended(7, 10, false), appended(7, 12, true)],
        ] {
            assert_eq!(of(pair.clone()), pair);
        }
    }

    #[test]
    fn too_many_messages_are_dropped_and_no_reply_is() {
        let mut outputs = Outputs::default();
        for n in 0..=OUTPUTS_MAX as u64 {
            outputs.push(append(B, n * 10, 1, 0));
        }
        outputs.reply(reply(1));
        let all = all(outputs);
        assert_eq!(all.len(), OUTPUTS_MAX + 1);
        assert_eq!(all.last(), Some(&reply(1)));
    }
}
