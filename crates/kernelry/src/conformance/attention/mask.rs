//! Reference and cases of the mask builder.

use super::super::case::push;
use super::super::{Cases, Reference};
use crate::catalogue::StepU32;
use crate::ops::attention::AttentionMaskParams;

pub(crate) fn mask(r: &mut Reference<'_>) {
    let p: AttentionMaskParams = r.params();
    let dtype = r.dtype("mask");
    let mut bits = Vec::new();
    for i in 0..i64::from(p.q_len) {
        for k in 0..i64::from(p.k_len) {
            let q = i + i64::from(p.q_offset.max());
            let attended = (p.causal == 0 || k <= q) && (p.window == 0 || q - k < i64::from(p.window));
            push(&mut bits, dtype, if attended { 0.0 } else { f64::NEG_INFINITY });
        }
    }
    r.expect_bits("mask", bits);
}

pub(crate) fn mask_cases(c: &mut Cases) {
    let rows = [
        [5, 9, 1, 0, 4],
        [1, 1, 1, 0, 0],
        [33, 65, 1, 1, 32],
        [7, 7, 0, 0, 0],
        [31, 64, 1, 16, 33],
        [9, 20, 0, 3, 5],
        [3, 4, 1, 2, 4_000_000_000],
    ];
    for [q_len, k_len, causal, window, offset] in rows {
        let params = AttentionMaskParams { q_len, k_len, causal, window, q_offset: StepU32::new(offset) };
        c.add(format!("q_len={q_len} k_len={k_len} causal={causal} window={window} offset={offset}"), params);
    }
    if c.intensity >= 2 {
        c.add("sliding prefill", AttentionMaskParams { q_len: 2048, k_len: 2048, causal: 1, window: 1024, q_offset: StepU32::new(0) });
    }
}
