//! Whether the address ever had two servers. Pure.
//!
//! An answer shows that its host served at some moment between the question and the answer. Epochs follow one
//! another, so all answers must fit the order in which the epochs were granted: each gets the earliest epoch of
//! its host that is not before the epoch of any answer that came before its question was sent, and not before an
//! epoch whose predecessor was known to have ended by then. An answer without such an epoch came from a second server.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The right to serve went to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub epoch: u64,
    pub host: u8,
    /// Boot time at which the epoch before it had surely ended; `u64::MAX` where nobody can tell yet.
    pub known_ns: u64,
}

/// A host answered at the address. Times are of the boot clock, on this side of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    pub host: u8,
    pub sent_ns: u64,
    pub answered_ns: u64,
}

/// For each answer the place of its epoch in `grants`, which are in the order of their epochs.
///
/// # Errors
/// The first answer of a second server, in words.
pub fn attribute(grants: &[Grant], answers: &[Answered]) -> Result<Vec<usize>, String> {
    let mut order: Vec<usize> = (0..answers.len()).collect();
    order.sort_unstable_by_key(|at| (answers[*at].sent_ns, answers[*at].answered_ns));
    let mut places = vec![0; answers.len()];
    // Answers that are not yet known to lie before the next question.
    let mut under_way = BinaryHeap::new();
    let mut floor = 0;
    for at in order {
        let answer = answers[at];
        while let Some(&Reverse((answered_ns, place))) = under_way.peek()
            && answered_ns < answer.sent_ns
        {
            floor = floor.max(place);
            under_way.pop();
        }
        let ended = grants.iter().rposition(|grant| grant.known_ns < answer.sent_ns);
        let answered = floor;
        floor = floor.max(ended.unwrap_or(0));
        let fits = (floor..grants.len()).find(|place| grants[*place].host == answer.host);
        let Some(place) = fits else {
            return Err(second_server(grants, floor, floor > answered, answer));
        };
        places[at] = place;
        under_way.push(Reverse((answer.answered_ns, place)));
    }
    Ok(places)
}

/// `told`: the coordinators' events speak against it, not an answer of somebody else.
fn second_server(grants: &[Grant], floor: usize, told: bool, answer: Answered) -> String {
    let owner = match grants.get(floor) {
        None => "nobody was granted an epoch".to_owned(),
        Some(Grant { epoch, host, .. }) if told => {
            format!("the events say that e{epoch} of host {host} had begun")
        }
        Some(Grant { epoch, host, .. }) => format!("e{epoch} of host {host} was answering"),
    };
    format!(
        "two servers: host {} answered a question sent at {} ns (answered at {} ns) when {owner} already",
        answer.host, answer.sent_ns, answer.answered_ns
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: u64 = u64::MAX;

    fn grants(list: &[(u8, u64)]) -> Vec<Grant> {
        let grant = |(epoch, (host, known_ns)): (u64, &(u8, u64))| Grant {
            epoch,
            host: *host,
            known_ns: *known_ns,
        };
        (1..).zip(list).map(grant).collect()
    }

    fn answers(list: &[(u8, u64, u64)]) -> Vec<Answered> {
        let answered = |(host, sent_ns, answered_ns): &(u8, u64, u64)| Answered {
            host: *host,
            sent_ns: *sent_ns,
            answered_ns: *answered_ns,
        };
        list.iter().map(answered).collect()
    }

    #[test]
    fn one_server_after_the_other_is_fine() {
        let grants = grants(&[(1, LATE), (2, LATE), (1, LATE)]);
        let answers = answers(&[(1, 10, 20), (1, 30, 40), (2, 50, 60), (1, 70, 80)]);
        assert_eq!(attribute(&grants, &answers), Ok(vec![0, 0, 1, 2]));
    }

    #[test]
    fn an_answer_after_the_next_owners_answer_is_a_second_server() {
        let grants = grants(&[(1, LATE), (2, LATE)]);
        let answers = answers(&[(1, 10, 20), (2, 30, 40), (1, 41, 50)]);
        let why = attribute(&grants, &answers).unwrap_err();
        assert!(
            why.contains("host 1") && why.contains("e2 of host 2 was answering"),
            "{why}"
        );
    }

    #[test]
    fn answers_to_questions_that_overlap_prove_nothing() {
        let grants = grants(&[(1, LATE), (2, LATE)]);
        let answers = answers(&[(1, 10, 45), (2, 30, 40), (1, 35, 50)]);
        assert_eq!(attribute(&grants, &answers), Ok(vec![0, 1, 0]));
    }

    #[test]
    fn an_answer_after_the_next_grant_is_a_second_server() {
        let grants = grants(&[(1, 0), (2, 100)]);
        assert!(attribute(&grants, &answers(&[(1, 99, 120)])).is_ok());
        let why = attribute(&grants, &answers(&[(1, 101, 120)])).unwrap_err();
        assert!(
            why.contains("the events say that e2 of host 2 had begun"),
            "{why}"
        );
    }

    #[test]
    fn a_host_that_was_never_granted_anything_must_not_answer() {
        assert!(attribute(&[], &answers(&[(1, 1, 2)])).is_err());
        assert!(attribute(&grants(&[(2, 0)]), &answers(&[(1, 1, 2)])).is_err());
    }
}
