// Attention of many queries over f32 keys and values, and in any type where heads are too wide for the matrix unit: attention/tile.h.
#include "attention/tile.h"

#define SDPA(name, T)                                                                                                              \
  KN_KERNEL(name, 256, SdpaParams, KN_IN(0, T, q), KN_IN(1, T, k), KN_IN(2, T, v), KN_OUT(3, T, out), KN_IN(4, uint, step)) {      \
    KN_SHARED(float, shared, ATTN_SHARED);                                                                                         \
    ATTN_PACKED(a, p, step, p.do_causal, 0, ATTN_ROWS)                                                                                  \
    attn_tile_any(a, q, k, v, out, shared, KN_THREAD_X);                                                                           \
  }
// The query's own key and window_size before it.
#define SDPA_SLIDING(name, T)                                                                                                      \
  KN_KERNEL(name, 256, SdpaSlidingParams, KN_IN(0, T, q), KN_IN(1, T, k), KN_IN(2, T, v), KN_OUT(3, T, out), KN_IN(4, uint, step)) { \
    KN_SHARED(float, shared, ATTN_SHARED);                                                                                         \
    ATTN_PACKED(a, p, step, 1, p.window_size + 1, ATTN_ROWS)                                                                            \
    attn_tile_any(a, q, k, v, out, shared, KN_THREAD_X);                                                                           \
  }
#define ATTENTION_PREFILL(name, T)                                                                                                 \
  KN_KERNEL(name, 256, AttentionPrefillParams, KN_IN(0, float, q), KN_IN(1, T, k), KN_IN(2, T, v), KN_OUT(3, float, out),          \
            KN_IN(4, uint, step)) {                                                                                                \
    KN_SHARED(float, shared, ATTN_SHARED);                                                                                         \
    ATTN_TOKENS(a, p, step, ATTN_ROWS)                                                                                                  \
    attn_tile_any(a, q, k, v, out, shared, KN_THREAD_X);                                                                           \
  }
