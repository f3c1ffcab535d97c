//! Direct causal attention over a window.

use super::Attention;
use crate::backend::cpu::CpuCall;
use crate::backend::cpu::vector::Vectored;
use crate::ops::attention::SdpaSlidingParams;

pub(crate) fn sdpa_sliding<T: Vectored>(call: &CpuCall<'_>) {
    let p: SdpaSlidingParams = call.params();
    let keys = p.kv_seq_len.get(call.step()) as usize;
    let capacity = if p.kv_capacity == 0 { p.kv_seq_len.max() } else { p.kv_capacity };
    let attention = Attention::<T, T> {
        q: call.input(0),
        k: call.input(1),
        v: call.input(2),
        batch: p.batch as usize,
        n_heads: p.n_heads as usize,
        n_kv_heads: p.n_kv_heads as usize,
        head_dim: p.head_dim as usize,
        seq_len: p.seq_len as usize,
        keys,
        capacity: capacity as usize,
        scale: p.scale,
        softcap: 0.0,
        causal: true,
        // A window that takes all keys is no window.
        window: (p.window_size as usize).saturating_add(1),
        token_major: false,
    };
    attention.run(call.output(3));
}
