//! The vocabulary: token texts, their kinds, and the way back from text to id.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use kernelry::Result;

use super::spec::{TokenKind, TokenizerSpec};

/// Hasher for keys that are already one integer. The pairs of a file are looked up once per merge, so a keyed hash would dominate.
#[derive(Clone, Copy, Default)]
pub(crate) struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// Map from a pair of ids, packed into one integer.
pub(crate) type PairMap<V> = HashMap<u64, V, BuildHasherDefault<PairHasher>>;

/// Packs two ids.
pub(crate) fn pair(left: u32, right: u32) -> u64 {
    (u64::from(left) << 32) | u64::from(right)
}

/// Token texts and kinds.
pub(crate) struct Vocab {
    pub(crate) tokens: Vec<String>,
    pub(crate) kinds: Vec<TokenKind>,
    ids: HashMap<String, u32>,
    /// Bytes of the longest token: no longer text needs to be looked up.
    pub(crate) longest: usize,
}

impl Vocab {
    pub(crate) fn new(spec: &mut TokenizerSpec) -> Result<Vocab> {
        let kinds = spec.kinds()?;
        let tokens = std::mem::take(&mut spec.tokens);
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in (0u32..).zip(&tokens) {
            ids.insert(token.clone(), id);
        }
        let longest = tokens.iter().map(String::len).max().unwrap_or(0);
        Ok(Vocab { tokens, kinds, ids, longest })
    }

    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        if token.len() > self.longest { None } else { self.ids.get(token).copied() }
    }

    pub(crate) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// Ids of the byte tokens `<0xNN>`, where the vocabulary has them.
    pub(crate) fn byte_tokens(&self) -> [Option<u32>; 256] {
        std::array::from_fn(|byte| self.id(&format!("<0x{byte:02X}>")))
    }
}
