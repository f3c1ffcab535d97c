// Attention of single tokens over a cache, alone and in partitions: attention/decode_core.h. And the merge of partitions.
#include "attention/decode_core.h"

#define ATTENTION_DECODE(name, T)                                                                                                  \
  KN_KERNEL(name, 256, AttentionDecodeParams, KN_IN(0, float, q), KN_IN(1, T, k), KN_IN(2, T, v), KN_OUT(3, float, out),           \
            KN_IN(4, uint, step)) {                                                                                                \
    KN_SHARED(float, shared, DECODE_SHARED);                                                                                       \
    KN_SHARED(float, sums, 2 * DECODE_SETS);                                                                                       \
    DECODE_SHAPE(a, p, step, DECODE_HEADS)                                                                                         \
    a.softcap = p.softcap;                                                                                                         \
    if (p.window != 0 && a.hi > p.window) a.lo = a.hi - p.window;                                                                  \
    if (!DECODE_VECTOR(a, k, v, T)) DECODE_RUN(512, false, out);                                                                   \
    else if (a.dim <= 64) DECODE_RUN(64, true, out);                                                                               \
    else if (a.dim <= 128) DECODE_RUN(128, true, out);                                                                             \
    else if (a.dim <= 256) DECODE_RUN(256, true, out);                                                                             \
    else DECODE_RUN(512, true, out);                                                                                               \
  }
#define SDPA_DECODE(name)                                                                                                          \
  KN_KERNEL(name, 256, SdpaDecodeParams, KN_IN(0, float, q), KN_IN(1, float, k), KN_IN(2, float, v), KN_OUT(3, float, out),        \
            KN_IN(4, uint, step)) {                                                                                                \
    KN_SHARED(float, shared, DECODE_SHARED);                                                                                       \
    KN_SHARED(float, sums, 2 * DECODE_SETS);                                                                                       \
    DECODE_SHAPE(a, p, step, DECODE_HEADS)                                                                                         \
    if (!DECODE_VECTOR(a, k, v, float)) DECODE_RUN(512, false, out);                                                               \
    else if (a.dim <= 128) DECODE_RUN(128, true, out);                                                                             \
    else DECODE_RUN(512, true, out);                                                                                               \
  }
#define FLASH_ATTN_VEC(name, T, DMAX)                                                                                              \
  KN_KERNEL(name, 256, FlashAttnVecParams, KN_IN(0, float, q), KN_IN(1, T, k), KN_IN(2, T, v), KN_OUT(3, float, out),              \
            KN_OUT(4, float, partial), KN_IN(5, uint, step)) {                                                                     \
    KN_SHARED(float, shared, DECODE_SHARED);                                                                                       \
    KN_SHARED(float, sums, 2 * DECODE_SETS);                                                                                       \
    DECODE_PARTITION(a, p, step, DECODE_HEADS)                                                                                     \
    if (a.parts == 1 ? KN_HAS(3, out) : KN_HAS(4, partial)) {                                                                      \
      if (DECODE_VECTOR(a, k, v, T)) DECODE_RUN(DMAX, true, partial);                                                              \
      else DECODE_RUN(DMAX, false, partial);                                                                                       \
    }                                                                                                                              \
  }

// out = sum_g w_g o_g / sum_g w_g l_g with w_g = exp(m_g - max m). One block a row: lanes on partitions, warps on four elements each.
#define FLASH_ATTN_REDUCE(name, DIM)                                                                                               \
  KN_KERNEL(name, 256, FlashAttnReduceParams, KN_IN(0, float, partial), KN_OUT(1, float, out)) {                                   \
    const ulong row = KN_GROUP_X;                                                                                                  \
    const uint lane = KN_LANE, warps = KN_BLOCK_X / KN_WARP;                                                                       \
    KN_GLOBAL const float* pairs = partial + (ulong)p.rows * DIM * p.nwg + 2 * row * p.nwg;                                        \
    float top = DECODE_FLOOR, sum = 0;                                                                                             \
    for (uint g = lane; g < p.nwg; g += KN_WARP) top = kn_max(top, pairs[2 * g + 1]);                                              \
    top = kn_warp_max(top);                                                                                                        \
    for (uint g = lane; g < p.nwg; g += KN_WARP) sum += pairs[2 * g] * kn_exp(pairs[2 * g + 1] - top);                             \
    sum = kn_warp_sum(sum);                                                                                                        \
    for (uint v = KN_WARP_ID; v < DIM / 4; v += warps) {                                                                           \
      float x = 0, y = 0, z = 0, w = 0;                                                                                            \
      for (uint g = lane; g < p.nwg; g += KN_WARP) {                                                                               \
        const float f = kn_exp(pairs[2 * g + 1] - top);                                                                            \
        KN_GLOBAL const float* o = partial + ((row * (DIM / 4) + v) * p.nwg + g) * 4;                                              \
        x = kn_fma(f, o[0], x);                                                                                                    \
        y = kn_fma(f, o[1], y);                                                                                                    \
        z = kn_fma(f, o[2], z);                                                                                                    \
        w = kn_fma(f, o[3], w);                                                                                                    \
      }                                                                                                                            \
      x = kn_warp_sum(x);                                                                                                          \
      y = kn_warp_sum(y);                                                                                                          \
      z = kn_warp_sum(z);                                                                                                          \
      w = kn_warp_sum(w);                                                                                                          \
      if (lane < 4) {                                                                                                              \
        const float o = lane == 0 ? x : lane == 1 ? y : lane == 2 ? z : w;                                                         \
        out[row * DIM + 4 * v + lane] = sum == 0 ? 0 : o / sum;                                                                    \
      }                                                                                                                            \
    }                                                                                                                              \
  }
