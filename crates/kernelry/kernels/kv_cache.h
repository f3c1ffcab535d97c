// Writes into key and value caches: rows of a token, or of a head of a token, move from the source to their slot, narrowed to f16 or
// widened from bf16 where the types ask for it. A ring holds position p in slot p mod cache_cap.
//
// Blocks have x along the row and y over rows; group z is the stream where keys and values are written by one launch.
#include "row_copy.h"

// Slot of token t of those that start at `start` < cap, t < cap.
KN_FN uint kv_slot(uint start, uint t, uint cap) { return start + t < cap ? start + t : start + t - cap; }

#define KV_FLAT(name, T)                                                                                               \
  KN_KERNEL(name, 256, KvFlatCopyParams, KN_IN(0, T, src), KN_OUT(1, T, cache), KN_IN(2, uint, step)) {                \
    const uint t = KN_GROUP_X * KN_BLOCK_Y + KN_THREAD_Y;                                                              \
    if (t < p.n_new) {                                                                                                 \
      const ulong slot = kv_slot(kn_step(p.write_pos, step) % p.cache_cap, t, p.cache_cap);                            \
      row_copy(src + (ulong)t * p.row, cache + slot * p.row, p.row, KN_THREAD_X, KN_BLOCK_X);                          \
    }                                                                                                                  \
  }
KV_FLAT(kv_cache_copy, ushort)
KV_FLAT(kv_cache_copy_f32, uint)

// cache[h, slot, :] = src[h, :]
template <class S, class D>
KN_FN void kv_token(KN_GLOBAL const S* src, KN_GLOBAL D* cache, KN_PARAMS const KvTokenCopyParams& p, uint slot, uint h, uint tx, uint n) {
  if (h >= p.n_kv_heads) return;
  row_copy(src + (ulong)h * p.head_dim, cache + ((ulong)h * p.cache_cap + slot) * p.head_dim, p.head_dim, tx, n);
}

#define KV_ROW (KN_GROUP_X * KN_BLOCK_Y + KN_THREAD_Y)
#define KV_TOKEN(name, S, D)                                                                                           \
  KN_KERNEL(name, 256, KvTokenCopyParams, KN_IN(0, S, src), KN_OUT(1, D, cache), KN_IN(2, uint, step)) {               \
    kv_token(src, cache, p, kn_step(p.seq_pos, step), KV_ROW, KN_THREAD_X, KN_BLOCK_X);                                \
  }
#define KV_TOKEN_DUAL(name, S, D)                                                                                      \
  KN_CHAINED(name, 0);                                                                                                 \
  KN_KERNEL(name, 256, KvTokenCopyParams, KN_IN_ALIAS(0, S, src_k), KN_IN_ALIAS(1, S, src_v), KN_OUT(2, D, k_cache),   \
            KN_OUT(3, D, v_cache), KN_IN_ALIAS(4, uint, step)) {                                                       \
    KN_CHAIN;                                                                                                          \
    const uint slot = kn_step(p.seq_pos, step);                                                                        \
    if (KN_GROUP_Z == 0) {                                                                                             \
      kv_token(src_k, k_cache, p, slot, KV_ROW, KN_THREAD_X, KN_BLOCK_X);                                              \
    } else {                                                                                                           \
      kv_token(src_v, v_cache, p, slot, KV_ROW, KN_THREAD_X, KN_BLOCK_X);                                              \
    }                                                                                                                  \
  }
KV_TOKEN(kv_cache_copy_batch_f32, uint, uint)
KV_TOKEN(kv_cache_copy_batch_f32_to_f16, float, kn_f16)
KV_TOKEN_DUAL(kv_cache_copy_batch_f32_kv_dual, uint, uint)
KV_TOKEN_DUAL(kv_cache_copy_batch_f32_to_f16_kv_dual, float, kn_f16)

// cache[h, slot(t), :] = src[src_tok_offset + t, h, :], or src[h, src_tok_offset + t, :] of a head-major source.
template <bool HEAD_MAJOR, class S, class D>
KN_FN void kv_seq(KN_GLOBAL const S* src, KN_GLOBAL D* cache, KN_PARAMS const KvSeqCopyParams& p, uint position, uint row, uint tx, uint n) {
  const uint t = row / p.n_kv_heads, h = row % p.n_kv_heads;
  if (t >= p.n_tokens) return;
  const ulong token = p.src_tok_offset + t, slot = kv_slot(position % p.cache_cap, t, p.cache_cap);
  const ulong from = HEAD_MAJOR ? (ulong)h * p.n_src + token : token * p.n_kv_heads + h;
  row_copy(src + from * p.head_dim, cache + ((ulong)h * p.cache_cap + slot) * p.head_dim, p.head_dim, tx, n);
}

#define KV_SEQ(name, S, D, HEAD_MAJOR)                                                                                 \
  KN_KERNEL(name, 256, KvSeqCopyParams, KN_IN(0, S, src), KN_OUT(1, D, cache), KN_IN(2, uint, step)) {                 \
    kv_seq<HEAD_MAJOR>(src, cache, p, kn_step(p.seq_pos_start, step), KV_ROW, KN_THREAD_X, KN_BLOCK_X);                \
  }
#define KV_SEQ_DUAL(name, S, D)                                                                                        \
  KN_CHAINED(name, 0);                                                                                                 \
  KN_KERNEL(name, 256, KvSeqCopyParams, KN_IN_ALIAS(0, S, src_k), KN_IN_ALIAS(1, S, src_v), KN_OUT(2, D, k_cache),     \
            KN_OUT(3, D, v_cache), KN_IN_ALIAS(4, uint, step)) {                                                       \
    KN_CHAIN;                                                                                                          \
    const uint position = kn_step(p.seq_pos_start, step);                                                              \
    if (KN_GROUP_Z == 0) {                                                                                             \
      kv_seq<false>(src_k, k_cache, p, position, KV_ROW, KN_THREAD_X, KN_BLOCK_X);                                     \
    } else {                                                                                                           \
      kv_seq<false>(src_v, v_cache, p, position, KV_ROW, KN_THREAD_X, KN_BLOCK_X);                                     \
    }                                                                                                                  \
  }
KV_SEQ(kv_cache_copy_seq_f32, uint, uint, false)
KV_SEQ(kv_cache_copy_seq_f32_to_f16, float, kn_f16, false)
KV_SEQ(kv_cache_copy_seq_bf16, ushort, uint, false)
KV_SEQ(kv_cache_copy_seq_bf16_to_bf16_head_major, ushort, ushort, true)
KV_SEQ_DUAL(kv_cache_copy_seq_f32_kv_dual, uint, uint)
KV_SEQ_DUAL(kv_cache_copy_seq_f32_to_f16_kv_dual, float, kn_f16)
