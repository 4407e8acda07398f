//! What services keep: logs that are only appended to, as one tree of every content that any host
//! ever had. A content is a prefix of another one if it is among its ancestors.

/// One content. Zero is the empty one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Content(u32);

#[derive(Clone, Copy)]
struct Node {
    parent: u32,
    len: u32,
}

pub struct Contents(Vec<Node>);

impl Default for Contents {
    fn default() -> Self {
        Self(vec![Node { parent: 0, len: 0 }])
    }
}

impl Contents {
    /// One more write after `to`, unlike any other.
    pub fn append(&mut self, to: Content) -> Content {
        let id = u32::try_from(self.0.len()).expect("a run writes less");
        let len = self.len(to) + 1;
        self.0.push(Node { parent: to.0, len });
        Content(id)
    }

    pub fn len(&self, content: Content) -> u32 {
        self.0[content.0 as usize].len
    }

    pub fn is_prefix(&self, of: Content, prefix: Content) -> bool {
        let shortest = self.len(prefix);
        let mut at = of;
        while self.len(at) > shortest {
            at = self.parent(at);
        }
        at == prefix
    }

    /// Without the last write; the empty one stays.
    pub fn parent(&self, content: Content) -> Content {
        Content(self.0[content.0 as usize].parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_after_it_has_a_content_as_prefix() {
        let mut contents = Contents::default();
        let first = contents.append(Content::default());
        let (left, right) = (contents.append(first), contents.append(first));
        assert!(contents.is_prefix(left, first) && contents.is_prefix(right, first));
        assert!(contents.is_prefix(left, Content::default()) && contents.is_prefix(left, left));
        assert!(!contents.is_prefix(left, right) && !contents.is_prefix(first, left));
    }
}
