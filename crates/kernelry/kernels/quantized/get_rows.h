#include "quantized/dequant.h"
// A block of 256 threads takes 2048 neighbouring values of a gathered row at a time.

KN_FN float4 get_rows_times(float4 v, float s) { return kn_f4(v.x * s, v.y * s, v.z * s, v.w * s); }

#define GET_ROWS(NAME, F)                                                                                                             \
  KN_KERNEL(NAME, 256, GetRowsParams, KN_IN(0, uchar, table), KN_IN(1, uint, ids), KN_OUT(2, float, y)) {                             \
    const uint groups = p.row_len / 32, t = KN_THREAD_X % 4, id = ids[KN_GROUP_X];                                                    \
    for (uint g = KN_GROUP_Y * 64 + KN_THREAD_X / 4; g < groups; g += KN_GROUPS_Y * 64) {                                             \
      float4 a = kn_f4(0, 0, 0, 0), b = a;                                                                                            \
      if (id < p.n_rows) {                                                                                                            \
        dequant_eight<F>(table, (ulong)id * groups + g,     t, a, b);                                                                 \
        a = get_rows_times(a, p.scale);                                                                                               \
        b = get_rows_times(b, p.scale);                                                                                               \
      }                                                                                                                               \
      KN_GLOBAL float* to = y + ((ulong)KN_GROUP_X * p.row_len + g * 32     + 4 * t);                                                 \
      const bool vector = kn_aligned(y, 16);                                                                                          \
      dequant_store(to, a, vector);                                                                                                   \
      dequant_store(to + 16, b, vector);                                                                                              \
    }                                                                                                                                 \
  }

// Rows of values that are not quantised: eight neighbouring values a thread.
#define GET_ROWS_DENSE(NAME, T)                                                                                                       \
  KN_KERNEL(NAME, 256, GetRowsParams, KN_IN(0, T, table), KN_IN(1, uint, ids), KN_OUT(2, float, y)) {                                 \
    const uint id = ids[KN_GROUP_X], begin = KN_GROUP_Y * 1024, step = KN_GROUPS_Y * 1024;                                           \
    KN_GLOBAL const T* from = table + (ulong)(id < p.n_rows ? id : 0) * p.row_len;                                                    \
    KN_GLOBAL float* to = y + (ulong)KN_GROUP_X * p.row_len;                                                                          \
    const float s = p.scale;                                                                                                          \
    if (p.row_len % 4 == 0 && kn_aligned(table, 4 * (uint)sizeof(T)) && kn_aligned(y, 16)) {                                          \
      for (uint c = begin + 4 * KN_THREAD_X; c < p.row_len; c += step) {                                                              \
        kn_store4(to + c, id < p.n_rows ? get_rows_times(kn_load4(from + c), s) : kn_f4(0, 0, 0, 0));                                 \
      }                                                                                                                               \
    } else {                                                                                                                          \
      for (uint c = KN_GROUP_Y * 256 + KN_THREAD_X; c < p.row_len; c += KN_GROUPS_Y * 256) {                                           \
        to[c] = id < p.n_rows ? kn_to_f32(from[c]) * s : 0.0f;                                                                         \
      }                                                                                                                                \
    }                                                                                                                                 \
  }

GET_ROWS_DENSE(get_rows_f32_f32, float)
GET_ROWS_DENSE(get_rows_f16_f32, kn_f16)
GET_ROWS_DENSE(get_rows_bf16_f32, kn_bf16)
GET_ROWS_DENSE(embedding_gather_scale_batch_f32, float)
GET_ROWS(get_rows_q4_0_f32, BlkQ4_0)
GET_ROWS(get_rows_q8_0_f32, BlkQ8_0)
GET_ROWS(get_rows_q5_1_f32, BlkQ5_1)
GET_ROWS(get_rows_iq4_nl_f32, BlkIQ4_NL)
GET_ROWS(get_rows_q4_K_f32, BlkQ4_K)
GET_ROWS(get_rows_q5_K_f32, BlkQ5_K)
GET_ROWS(get_rows_q6_K_f32, BlkQ6_K)
