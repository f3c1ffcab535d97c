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

// out = sum_g w_g o_g / sum_g w_g l_g with w_g = exp(m_g - max m). One warp for four elements of a row: lanes on partitions, four in flight.
template <uint DIM>
KN_FN void decode_merge(KN_GLOBAL const float* partial, KN_GLOBAL float* out, uint rows, uint parts, ulong unit, bool vector, uint lane) {
  const ulong row = unit / (DIM / 4);
  KN_GLOBAL const float* pairs = partial + (ulong)rows * DIM * parts + 2 * row * parts;
  KN_GLOBAL const float* os = partial + unit * parts * 4;
  float4 total = kn_f4(0, 0, 0, 0);
  float top = DECODE_FLOOR, sum = 0;
  for (uint begin = 0; begin < parts; begin += 4 * KN_WARP) {
    float4 o[4];
    float l[4], m[4], best = top;
    KN_UNROLL for (uint i = 0; i < 4; ++i) {
      const uint g = begin + i * KN_WARP + lane;
      const bool some = g < parts;
      KN_GLOBAL const float* at = os + 4 * (some ? g : 0u);
      o[i] = vector ? *(KN_GLOBAL const float4*)at : kn_f4(at[0], at[1], at[2], at[3]);
      l[i] = some ? pairs[2 * g] : 0.0f;
      m[i] = some ? pairs[2 * g + 1] : -KN_INF;
    }
    KN_UNROLL for (uint i = 0; i < 4; ++i) best = kn_max(best, m[i]);
    best = kn_warp_max(best);
    const float shrink = kn_exp(top - best);
    top = best;
    sum *= shrink;
    total = kn_f4(total.x * shrink, total.y * shrink, total.z * shrink, total.w * shrink);
    KN_UNROLL for (uint i = 0; i < 4; ++i) {
      const float f = kn_exp(m[i] - top);
      sum = kn_fma(f, l[i], sum);
      total = kn_f4(kn_fma(f, o[i].x, total.x), kn_fma(f, o[i].y, total.y), kn_fma(f, o[i].z, total.z), kn_fma(f, o[i].w, total.w));
    }
  }
  sum = kn_warp_sum(sum);
  const float x = kn_warp_sum(total.x), y = kn_warp_sum(total.y), z = kn_warp_sum(total.z), w = kn_warp_sum(total.w);
  if (lane < 4) out[4 * unit + lane] = sum == 0 ? 0 : (lane == 0 ? x : lane == 1 ? y : lane == 2 ? z : w) / sum;
}

#define FLASH_ATTN_REDUCE(name, DIM)                                                                                               \
  KN_CHAINED(name, 0);                                                                                                             \
  KN_KERNEL(name, 256, FlashAttnReduceParams, KN_IN_ALIAS(0, float, partial), KN_OUT(1, float, out)) {                             \
    KN_CHAIN;                                                                                                                      \
    const bool vector = kn_aligned(partial, 16);                                                                                   \
    const uint warps = KN_BLOCK_X / KN_WARP;                                                                                       \
    for (ulong unit = (ulong)KN_GROUP_X * warps + KN_WARP_ID; unit < (ulong)p.rows * (DIM / 4); unit += (ulong)KN_GROUPS_X * warps) \
      decode_merge<DIM>(partial, out, p.rows, p.nwg, unit, vector, KN_LANE);                                                       \
  }
