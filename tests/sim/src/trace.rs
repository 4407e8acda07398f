//! Hashes: of what happened, to compare runs, and of bytes, to compare replicas.

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// Equal for equal runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace(u64);

impl Default for Trace {
    fn default() -> Self {
        Self(OFFSET)
    }
}

impl Trace {
    pub const fn note(&mut self, word: u64) {
        self.0 = mix(self.0, word);
    }

    pub const fn value(self) -> u64 {
        self.0
    }
}

const fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(PRIME);
    mixed ^ (mixed >> 29)
}

/// FNV-1a by words, with a shift that lets high bits reach low ones.
pub fn digest(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    let mut hash = mix(OFFSET, bytes.len() as u64);
    for word in &mut words {
        hash = mix(hash, u64::from_le_bytes(word.try_into().expect("eight bytes")));
    }
    words
        .remainder()
        .iter()
        .fold(hash, |hash, byte| mix(hash, u64::from(*byte)))
}
