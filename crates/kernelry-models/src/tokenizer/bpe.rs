//! Byte pair encoding by rank: of all neighbours that may merge, the pair of lowest rank merges first, the leftmost of equals.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use kernelry::Result;

use super::spec::bad;
use super::vocab::{PairMap, Vocab, pair};

/// Rank of a merge and the token it makes.
#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    id: u32,
}

/// The merges of a vocabulary.
pub(crate) struct Merges(PairMap<Merge>);

impl Merges {
    pub(crate) fn new(vocab: &Vocab, merges: &[String]) -> Result<Merges> {
        let mut map = PairMap::with_capacity_and_hasher(merges.len(), Default::default());
        let mut joined = String::new();
        for (rank, merge) in (0u32..).zip(merges) {
            // A token may itself begin with a space, so the separator is looked for from the second byte on.
            let split =
                merge.char_indices().skip(1).find(|&(_, c)| c == ' ').and_then(|(at, _)| Some((merge.get(..at)?, merge.get(at + 1..)?)));
            let Some((left, right)) = split else {
                return Err(bad("merges", format!("merge {rank}: got `{merge}`, expected two tokens separated by a space")));
            };
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let find =
                |token: &str| vocab.id(token).ok_or_else(|| bad("merges", format!("merge {rank}: `{token}` is not in the vocabulary")));
            let (left, right, id) = (find(left)?, find(right)?, find(&joined)?);
            map.entry(pair(left, right)).or_insert(Merge { rank, id });
        }
        Ok(Merges(map))
    }
}

/// One symbol of a word while it is merged: a node of a doubly linked list.
struct Symbol {
    id: u32,
    previous: u32,
    next: u32,
}

const NONE: u32 = u32::MAX;

/// Candidate merge. The order of the fields is the order of merging.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: u32,
    left_id: u32,
    right_id: u32,
    merged: u32,
}

/// Buffers that are used again for every word.
#[derive(Default)]
pub(crate) struct Scratch {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

impl Scratch {
    /// Merges `ids` and appends the result to `out`.
    pub(crate) fn merge(&mut self, merges: &Merges, ids: impl Iterator<Item = u32>, out: &mut Vec<u32>) {
        self.symbols.clear();
        self.queue.clear();
        for (at, id) in (0u32..).zip(ids) {
            self.symbols.push(Symbol { id, previous: at.wrapping_sub(1), next: at + 1 });
        }
        if let Some(last) = self.symbols.last_mut() {
            last.next = NONE;
        }
        for left in 0..self.symbols.len() as u32 {
            self.propose(merges, left);
        }
        while let Some(Reverse(best)) = self.queue.pop() {
            self.apply(merges, &best);
        }
        let mut at = 0;
        while let Some(symbol) = self.symbols.get(at as usize) {
            out.push(symbol.id);
            at = symbol.next;
        }
    }

    fn propose(&mut self, merges: &Merges, left: u32) {
        let Some(symbol) = self.symbols.get(left as usize) else { return };
        let Some(right) = self.symbols.get(symbol.next as usize) else { return };
        if let Some(merge) = merges.0.get(&pair(symbol.id, right.id)) {
            let candidate = Candidate { rank: merge.rank, left, left_id: symbol.id, right_id: right.id, merged: merge.id };
            self.queue.push(Reverse(candidate));
        }
    }

    fn apply(&mut self, merges: &Merges, best: &Candidate) {
        let Some(left) = self.symbols.get(best.left as usize) else { return };
        let (right_at, previous) = (left.next, left.previous);
        let Some(right) = self.symbols.get(right_at as usize) else { return };
        // A symbol that took part in another merge has changed its id, or left the list and carries NONE.
        if left.id != best.left_id || right.id != best.right_id {
            return;
        }
        let next = right.next;
        if let Some(right) = self.symbols.get_mut(right_at as usize) {
            right.id = NONE;
        }
        if let Some(left) = self.symbols.get_mut(best.left as usize) {
            left.id = best.merged;
            left.next = next;
        }
        if let Some(after) = self.symbols.get_mut(next as usize) {
            after.previous = best.left;
        }
        if previous != NONE {
            self.propose(merges, previous);
        }
        self.propose(merges, best.left);
    }
}

const BELOW: u32 = 0x21; // 0x00..=0x20 are moved to 0x100..=0x120
const MIDDLE: u32 = 0xA1 - 0x7F; // then 0x7F..=0xA0, then 0xAD

/// The character that stands for a byte in a byte-level vocabulary: printable Latin-1 stands for itself, the other 68 bytes are moved
/// to U+0100 and up, in order.
pub(crate) fn byte_char(byte: u8) -> Option<char> {
    let code = u32::from(byte);
    char::from_u32(match code {
        0x00..=0x20 => 0x100 + code,
        0x7F..=0xA0 => 0x100 + BELOW + code - 0x7F,
        0xAD => 0x100 + BELOW + MIDDLE,
        _ => code,
    })
}

/// The byte that a character of a byte-level token stands for.
pub(crate) fn char_byte(c: char) -> Option<u8> {
    let code = c as u32;
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        _ => match code.checked_sub(0x100)? {
            moved if moved < BELOW => moved,
            moved if moved < BELOW + MIDDLE => moved - BELOW + 0x7F,
            moved if moved == BELOW + MIDDLE => 0xAD,
            _ => return None,
        },
    };
    u8::try_from(byte).ok()
}
