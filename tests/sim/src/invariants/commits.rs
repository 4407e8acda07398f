//! What was committed stays, with its term and content, and nobody's log ends before it for good.

use std::collections::BTreeMap;

use crate::coordinator::Coordinator;
use crate::tally::Tally;

#[derive(Default)]
pub struct Commits {
    /// Term and content of every entry that some replica knows to be committed and has on disk.
    known: BTreeMap<u64, (u64, u64)>,
}

impl Commits {
    pub fn persisted(&mut self, node: &mut Coordinator, tally: &mut Tally) -> Result<(), String> {
        let durable = node.disk.durable();
        // What the disk says: in memory a replica can know of a commit whose entry is still being
        // written over an older one.
        let (checked, commit) = (node.checked.committed, durable.hard_state.commit);
        if commit == checked {
            return Ok(());
        }
        let first = durable.entries.partition_point(|entry| entry.index <= checked);
        for entry in durable.entries[first..]
            .iter()
            .take_while(|entry| entry.index <= commit)
        {
            let content = (entry.term, crate::trace::digest(&entry.data));
            match self.known.insert(entry.index, content) {
                Some(known) if known != content => {
                    return Err(format!(
                        "commits: the committed entry {} was replaced on {}",
                        entry.index, node.id
                    ));
                }
                Some(_) => tally.count("commits: a committed entry was found on another disk"),
                None => {}
            }
        }
        node.checked.committed = commit;
        Ok(())
    }

    /// The highest index that some replica knew to be committed.
    pub fn highest(&self) -> u64 {
        self.known.keys().next_back().copied().unwrap_or(0)
    }
}
