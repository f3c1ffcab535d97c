//! SentencePiece BPE: of all neighbours whose joined text is a token, the pair of highest score merges first, the leftmost of equals.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::vocab::Vocab;

/// A span of the text while it is merged: a node of a doubly linked list. Merged-away spans have no length.
struct Span {
    start: usize,
    len: usize,
    previous: usize,
    next: usize,
}

const NONE: usize = usize::MAX;

struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// Merges `text` and calls `piece` with each resulting span.
pub(crate) fn merge<'t>(vocab: &Vocab, scores: &[f32], text: &'t str, piece: &mut dyn FnMut(&'t str)) {
    let mut spans: Vec<Span> = Vec::with_capacity(text.len());
    for (start, c) in text.char_indices() {
        let at = spans.len();
        spans.push(Span { start, len: c.len_utf8(), previous: at.wrapping_sub(1), next: at + 1 });
    }
    if let Some(last) = spans.last_mut() {
        last.next = NONE;
    }
    let propose = |spans: &[Span], queue: &mut BinaryHeap<Candidate>, left: usize| {
        let Some(a) = spans.get(left) else { return };
        let Some(b) = spans.get(a.next) else { return };
        let len = a.len + b.len;
        let id = text.get(a.start..a.start + len).and_then(|joined| vocab.id(joined));
        if let Some(score) = id.and_then(|id| scores.get(id as usize)) {
            queue.push(Candidate { score: *score, left, right: a.next, len });
        }
    };
    let mut queue = BinaryHeap::with_capacity(spans.len());
    for left in 0..spans.len() {
        propose(&spans, &mut queue, left);
    }
    while let Some(best) = queue.pop() {
        let (Some(a), Some(b)) = (spans.get(best.left), spans.get(best.right)) else { continue };
        // Stale when either side has merged since: its length changed, or it is gone.
        if a.len == 0 || b.len == 0 || a.len + b.len != best.len || a.next != best.right {
            continue;
        }
        let (previous, next) = (a.previous, b.next);
        if let Some(b) = spans.get_mut(best.right) {
            b.len = 0;
        }
        if let Some(a) = spans.get_mut(best.left) {
            a.len = best.len;
            a.next = next;
        }
        if let Some(after) = spans.get_mut(next) {
            after.previous = best.left;
        }
        propose(&spans, &mut queue, previous);
        propose(&spans, &mut queue, best.left);
    }
    let mut at = 0;
    while let Some(span) = spans.get(at) {
        if let Some(text) = text.get(span.start..span.start + span.len) {
            piece(text);
        }
        at = span.next;
    }
}
