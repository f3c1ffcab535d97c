#include "quantized/dequant.h"

#define DEQUANT(NAME, F)                                                                                       \
  KN_KERNEL(NAME, 256, DequantParams, KN_IN(0, uchar, w), KN_OUT(1, kn_f16, y)) {                              \
    const ulong i = (ulong)KN_GROUP_X * 256 + KN_THREAD_X;                                                     \
    const uint t = (uint)(i % 4);                                                                              \
    if (i / 4 < (ulong)(p.k / 32) * p.n) {                                                                     \
      float4 a, b;                                                                                             \
      dequant_eight<F>(w, i / 4, t, a, b);                                                                     \
      const bool vector = kn_aligned(y, 8);                                                                    \
      dequant_store(y + i / 4 * 32 + 4 * t, a, vector);                                                        \
      dequant_store(y + i / 4 * 32 + 4 * t + 16, b, vector);                                                   \
    }                                                                                                          \
  }
