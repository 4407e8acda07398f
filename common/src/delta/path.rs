//! Paths relative to a service's roots: `0/dump.rdb` is `dump.rdb` below the service's first path.
//!
//! Invariant: a checked path stays below its root: no `..`, no empty part, no NUL.

use std::fmt;
use std::sync::Arc;

use rkyv::Place;
use rkyv::rancor::Fallible;
use rkyv::ser::{Allocator, Writer};
use rkyv::vec::{ArchivedVec, VecResolver};

/// Most roots of one service.
pub const ROOTS_MAX: usize = 64;
const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4095;

/// Number of the root, then names, separated by `/`. A path sorts before everything below it. Copies share the
/// bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(Arc<[u8]>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{path}` is not a path below a service's root: {why}")]
pub struct PathError {
    pub path: String,
    pub why: &'static str,
}

impl RelPath {
    /// The root itself.
    pub fn root(number: usize) -> Self {
        Self(number.to_string().into_bytes().into())
    }

    /// # Errors
    /// When the bytes leave the root or are over the limits.
    pub fn new(bytes: Vec<u8>) -> Result<Self, PathError> {
        let path = Self(bytes.into());
        path.check()?;
        Ok(path)
    }

    /// # Errors
    /// When `name` is not a plain name or the path becomes too long.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        let mut bytes = self.0.to_vec();
        bytes.push(b'/');
        bytes.extend_from_slice(name);
        Self::new(bytes)
    }

    /// Must be called on every path that was decoded.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), PathError> {
        let fail = |why| {
            Err(PathError {
                path: String::from_utf8_lossy(&self.0[..self.0.len().min(128)]).into_owned(),
                why,
            })
        };
        if self.0.len() > PATH_MAX {
            return fail("longer than 4095 bytes");
        }
        let mut parts = self.0.split(|&byte| byte == b'/');
        let root = parts
            .next()
            .filter(|part| part.len() <= 2 && part.iter().all(u8::is_ascii_digit))
            .filter(|part| part.len() == 1 || part.first() != Some(&b'0'))
            .and_then(|part| std::str::from_utf8(part).ok()?.parse::<usize>().ok());
        if root.is_none_or(|root| root >= ROOTS_MAX) {
            return fail("it does not start with the number of a root");
        }
        for part in parts {
            match part {
                b"" | b"." | b".." => return fail("it has an empty, `.` or `..` part"),
                _ if part.len() > NAME_MAX => return fail("a name is longer than 255 bytes"),
                _ if part.contains(&0) => return fail("it contains a NUL byte"),
                _ => {}
            }
        }
        Ok(())
    }

    /// Number of the root and the bytes below it (empty for the root itself).
    pub fn split_root(&self) -> (usize, &[u8]) {
        let end = self
            .0
            .iter()
            .position(|&byte| byte == b'/')
            .unwrap_or(self.0.len());
        let root = self.0[..end]
            .iter()
            .fold(0, |n, digit| n * 10 + usize::from(digit - b'0'));
        (root, self.0.get(end + 1..).unwrap_or(&[]))
    }

    pub fn is_root(&self) -> bool {
        !self.0.contains(&b'/')
    }

    /// `None` for a root.
    pub fn parent(&self) -> Option<Self> {
        let cut = self.0.iter().rposition(|&byte| byte == b'/')?;
        Some(Self(self.0[..cut].into()))
    }

    /// Whether this lies below `dir` (a path does not lie below itself).
    pub fn is_below(&self, dir: &Self) -> bool {
        self.0.len() > dir.0.len() && self.0.starts_with(&dir.0) && self.0[dir.0.len()] == b'/'
    }

    /// What sorts right behind this path; no path that there can be lies between. It names nothing itself.
    pub fn successor(&self) -> Self {
        let mut bytes = self.0.to_vec();
        bytes.push(0);
        Self(bytes.into())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

// On the wire it is a plain list of bytes.
impl rkyv::Archive for RelPath {
    type Archived = ArchivedVec<u8>;
    type Resolver = VecResolver;

    fn resolve(&self, resolver: VecResolver, out: Place<Self::Archived>) {
        ArchivedVec::resolve_from_len(self.0.len(), resolver, out);
    }
}

impl<S: Fallible + Allocator + Writer + ?Sized> rkyv::Serialize<S> for RelPath {
    fn serialize(&self, serializer: &mut S) -> Result<VecResolver, S::Error> {
        ArchivedVec::serialize_from_slice(&self.0, serializer)
    }
}

impl<D: Fallible + ?Sized> rkyv::Deserialize<RelPath, D> for ArchivedVec<u8> {
    fn deserialize(&self, _: &mut D) -> Result<RelPath, D::Error> {
        Ok(RelPath(self.as_slice().into()))
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_their_root_are_refused() {
        for bad in [
            "", "/", "x", "64/a", "00/a", "0/", "0//a", "0/..", "0/a/../b", "0/.", "../a", "-1/a", "0/a\0",
        ] {
            assert!(RelPath::new(bad.into()).is_err(), "{bad:?}");
        }
        assert!(RelPath::new([b"0/", &[b'a'; 256][..]].concat()).is_err());
        assert!(RelPath::new(b"0/a".repeat(3000)).is_err());
        for good in ["0", "63", "0/a", "7/a/...", "0/\u{e9}"] {
            assert!(RelPath::new(good.into()).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn parts_are_told_apart() {
        let path = RelPath::new(b"12/a/b".to_vec()).expect("good");
        assert_eq!(path.split_root(), (12, &b"a/b"[..]));
        assert_eq!(
            path.parent().and_then(|dir| dir.parent()),
            Some(RelPath::root(12))
        );
        assert!(path.is_below(&RelPath::root(12)));
        assert!(!path.is_below(&RelPath::root(1)));
        assert_eq!(RelPath::root(3).split_root(), (3, &b""[..]));
    }
}
