//! Lines of warning that faults call forth by right, each with its reason. What is not listed fails the run.

use super::logs::Line;

struct Expected {
    /// Must be in the line.
    text: &'static str,
    /// Why this is what a program should say under faults.
    reason: &'static str,
}

const fn when(text: &'static str, reason: &'static str) -> Expected {
    Expected { text, reason }
}

const EXPECTED: [Expected; 29] = [
    when(
        "disconnected coordinator=",
        "a link ended: its other end was killed, stopped or cut off",
    ),
    when(
        "the link ended peer=",
        "a link ended: its other end was killed, stopped or cut off",
    ),
    when(
        "no link; it is tried again and again",
        "the other end was down when it was dialled",
    ),
    when(
        "cannot connect; trying again",
        "the other end was down when it was dialled",
    ),
    when(
        "closed during the handshake",
        "who dialled was killed or gave up before the answer came",
    ),
    when(
        "error=the link is closed: timed out",
        "who dialled was cut off before the handshake was over",
    ),
    when(
        "authentication failed",
        "the rest of a handshake that this end gave up",
    ),
    when(
        "it is kept aside service=",
        "what only the old primary had is kept when it comes back",
    ),
    when(
        "dropped a generation that was not sealed",
        "a shadow was stopped, or its disk full, in the middle of one",
    ),
    when("since quorum is not active", "a leader that was cut off gave up"),
    when(
        "cannot announce the address",
        "the gate lets no announcement of a lease that ended out",
    ),
    when(
        "Truncating log file due to broken batch",
        "raft-engine cuts off what was being written at a kill",
    ),
    when(
        "Truncating log file due to broken header",
        "a power cut came before a new file of the raft log had its header on disk: nothing was in it",
    ),
    when(
        "error=no answer within 3s",
        "its other end was stopped or cut off before it had said what the stream is for",
    ),
    when("No space left on device", "a disk was filled"),
    when("the disk is full", "a disk was filled"),
    when("its disk is full", "a disk was filled"),
    when(
        "there is room for the raft log again",
        "a disk was filled, and emptied again",
    ),
    when("no room to tidy the raft log up", "a disk was filled"),
    when(
        "Input/output error (os error 5)",
        "at a power cut the disk is gone an instant before the programs are",
    ),
    when(
        "cut off what a crash left of a record",
        "a power cut came while a record was being written",
    ),
    when(
        "the snapshot did not arrive",
        "a link ended: its other end was killed, stopped or cut off",
    ),
    when(
        "the snapshot was not taken",
        "the leader that sent it is none any more",
    ),
    when(
        "did not take the leadership",
        "it was killed, stopped or cut off when it was asked to",
    ),
    when("failed to serve: the workload ended", "the workload was killed"),
    when("does not serve in time", "a takeover was hit by another fault"),
    when(
        "does not close its gate in time",
        "the holder was stopped or cut off in a planned move",
    ),
    when(
        "the order is for another boot of this host",
        "a host came back from a power cut before the leader had heard of it",
    ),
    when(
        "the change source lost count; everything is compared",
        "doubt is read again, never passed over",
    ),
];

/// Whether a line warns of something that is not listed.
pub fn is_unlisted(line: &Line) -> bool {
    let text = &line.text;
    if text.contains("panicked at") || text.contains("RUST_BACKTRACE") {
        return true;
    }
    let level = text.split_whitespace().nth(1);
    matches!(level, Some("WARN" | "ERROR")) && reason(text).is_none()
}

/// Why a line is to be expected.
pub fn reason(text: &str) -> Option<&'static str> {
    let found = EXPECTED.iter().find(|one| text.contains(one.text))?;
    Some(found.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line {
            of: "a-agent".to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn only_warnings_that_are_not_listed_count() {
        let at = "2026-01-01T00:00:00.0Z";
        assert!(is_unlisted(&line(&format!(
            "{at} ERROR understudy_agent: what is this"
        ))));
        assert!(!is_unlisted(&line(&format!(
            "{at}  INFO understudy_agent: all is well"
        ))));
        assert!(is_unlisted(&line("thread 'main' panicked at src/main.rs:1:1:")));
        for expected in EXPECTED {
            assert!(!is_unlisted(&line(&format!("{at}  WARN x: {}", expected.text))));
            assert!(!expected.reason.is_empty());
        }
    }
}
