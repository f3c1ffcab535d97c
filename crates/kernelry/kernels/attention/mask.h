// mask[i, k] = 0 if (k <= q or not causal) and (q - k < window or no window), else -inf; q = i + q_offset. One block a row.

#define ATTENTION_MASK(name, T, BLOCKED)                                                                                         \
  KN_KERNEL(name, 256, AttentionMaskParams, KN_OUT(0, T, mask), KN_IN(1, uint, step)) {                                          \
    const ulong q = (ulong)KN_GROUP_X + kn_step(p.q_offset, step), row = (ulong)KN_GROUP_X * p.k_len;                            \
    for (uint k = KN_THREAD_X; k < p.k_len; k += KN_BLOCK_X) {                                                                   \
      const bool attended = (!p.causal || k <= q) && (p.window == 0 || q < (ulong)k + p.window);                                 \
      mask[row + k] = (T)(attended ? (ushort)0 : (ushort)(BLOCKED));                                                             \
    }                                                                                                                            \
  }

ATTENTION_MASK(attention_mask_f16, kn_f16, 0xfc00u)
ATTENTION_MASK(attention_mask_bf16, kn_bf16, 0xff80u)
