// Softmax of rows: y = exp(x - max) / sum exp(x - max); with scale and mask: of x * scale + mask, where rows that attend nothing are zero.
//
// One block a row. A thread takes SOFTMAX_KEEP elements at a time, as groups of four where the row allows it. A row that the block holds in
// registers is read once. A longer one is read twice: first every thread sums its exponentials against the largest element so far, then
// the sums are brought to the row's maximum. The maximum starts at the lowest finite number, so that exp(-inf - max) is 0 whatever a
// thread has seen; a NaN, which no maximum keeps, gets to the sum, and +inf becomes one there.

#define SOFTMAX_KEEP 16u
#define SOFTMAX_FLOOR kn_from_bits(0xff7fffffu)

// Elements of a stretch of SOFTMAX_KEEP * n from `base` on that are the thread's: -inf beyond the row.
template <bool MASKED, class T>
KN_FN void softmax_load(KN_PRIVATE float (&v)[SOFTMAX_KEEP], KN_GLOBAL const T* x, KN_GLOBAL const kn_bf16* mask, float scale, uint base,
                        uint cols, bool vector, uint t, uint n) {
  KN_UNROLL for (uint i = 0; i < SOFTMAX_KEEP; ++i) v[i] = -KN_INF;
  if (vector) {
    KN_UNROLL for (uint k = 0; k < SOFTMAX_KEEP / 4; ++k) {
      const uint c = base + 4 * (t + n * k);
      if (c < cols) {
        const float4 a = kn_load4(x + c);
        v[4 * k] = a.x, v[4 * k + 1] = a.y, v[4 * k + 2] = a.z, v[4 * k + 3] = a.w;
        if (MASKED) {
          const float4 m = kn_load4(mask + c);
          v[4 * k] = kn_fma(a.x, scale, m.x), v[4 * k + 1] = kn_fma(a.y, scale, m.y);
          v[4 * k + 2] = kn_fma(a.z, scale, m.z), v[4 * k + 3] = kn_fma(a.w, scale, m.w);
        }
      }
    }
  } else {
    KN_UNROLL for (uint k = 0; k < SOFTMAX_KEEP; ++k) {
      const uint c = base + t + n * k;
      if (c < cols) {
        const float a = kn_to_f32(x[c]);
        v[k] = MASKED ? kn_fma(a, scale, kn_to_f32(mask[c])) : a;
      }
    }
  }
}

template <class T>
KN_FN void softmax_store(KN_PRIVATE const float (&v)[SOFTMAX_KEEP], KN_GLOBAL T* out, uint base, uint cols, bool vector, uint t, uint n) {
  if (vector) {
    KN_UNROLL for (uint k = 0; k < SOFTMAX_KEEP / 4; ++k) {
      const uint c = base + 4 * (t + n * k);
      if (c < cols) kn_store4(out + c, kn_f4(v[4 * k], v[4 * k + 1], v[4 * k + 2], v[4 * k + 3]));
    }
  } else {
    KN_UNROLL for (uint k = 0; k < SOFTMAX_KEEP; ++k) {
      const uint c = base + t + n * k;
      if (c < cols) out[c] = kn_from_f32<T>(v[k]);
    }
  }
}

KN_FN float softmax_max(KN_PRIVATE const float (&v)[SOFTMAX_KEEP], float m) {
  KN_UNROLL for (uint i = 0; i < SOFTMAX_KEEP; ++i) m = kn_max(m, v[i]);
  return m;
}

// v = exp(v - m), and the sum of that.
KN_FN float softmax_exp(KN_PRIVATE float (&v)[SOFTMAX_KEEP], float m) {
  float sum = 0;
  KN_UNROLL for (uint i = 0; i < SOFTMAX_KEEP; ++i) sum += v[i] = kn_exp(v[i] - m);
  return sum;
}

template <bool MASKED> KN_FN float softmax_inverse(float sum) { return MASKED && sum == 0.0f ? 0.0f : 1.0f / sum; }

template <bool MASKED, class T>
KN_FN void softmax_row(KN_GLOBAL const T* x, KN_GLOBAL const kn_bf16* mask, float scale, KN_GLOBAL T* out, uint cols,
                       KN_LOCAL float* scratch, uint t, uint n, uint lane, uint warp) {
  const uint bytes = 4 * (uint)sizeof(T), warps = n / KN_WARP, stretch = SOFTMAX_KEEP * n;
  const bool vector = cols % 4 == 0 && kn_aligned(x, bytes) && kn_aligned(out, bytes) && (!MASKED || kn_aligned(mask, 8));
  float v[SOFTMAX_KEEP];
  if (cols <= stretch) {
    softmax_load<MASKED>(v, x, mask, scale, 0, cols, vector, t, n);
    const float top = kn_block_max(softmax_max(v, SOFTMAX_FLOOR), scratch, warps, lane, warp);
    const float inverse = softmax_inverse<MASKED>(kn_block_sum(softmax_exp(v, top), scratch, warps, lane, warp));
    KN_UNROLL for (uint i = 0; i < SOFTMAX_KEEP; ++i) v[i] *= inverse;
    softmax_store(v, out, 0, cols, vector, t, n);
    return;
  }
  float m = SOFTMAX_FLOOR, sum = 0;
  for (uint base = 0; base < cols; base += stretch) {
    softmax_load<MASKED>(v, x, mask, scale, base, cols, vector, t, n);
    const float higher = softmax_max(v, m);
    sum = sum * kn_exp(m - higher) + softmax_exp(v, higher);
    m = higher;
  }
  const float top = kn_block_max(m, scratch, warps, lane, warp);
  const float inverse = softmax_inverse<MASKED>(kn_block_sum(sum * kn_exp(m - top), scratch, warps, lane, warp));
  for (uint base = 0; base < cols; base += stretch) {
    softmax_load<MASKED>(v, x, mask, scale, base, cols, vector, t, n);
    softmax_exp(v, top);
    KN_UNROLL for (uint i = 0; i < SOFTMAX_KEEP; ++i) v[i] *= inverse;
    softmax_store(v, out, base, cols, vector, t, n);
  }
}

#define SOFTMAX(name, T)                                                                                                              \
  KN_KERNEL(name, 1024, SoftmaxParams, KN_IN_ALIAS(0, T, x), KN_OUT_ALIAS(1, T, out)) {                                               \
    KN_SHARED(float, scratch, KN_SCRATCH);                                                                                            \
    const ulong row = (ulong)KN_GROUP_X * p.cols;                                                                                     \
    softmax_row<false>(x + row, (KN_GLOBAL const kn_bf16*)x, 1.0f, out + row, p.cols, scratch, KN_THREAD_X, KN_BLOCK_X, KN_LANE,      \
                       KN_WARP_ID);                                                                                                   \
  }
#define SCALE_MASK_SOFTMAX(name)                                                                                                      \
  KN_KERNEL(name, 1024, ScaleMaskSoftmaxParams, KN_IN_ALIAS(0, float, x), KN_IN(1, kn_bf16, mask), KN_OUT_ALIAS(2, float, out)) {     \
    KN_SHARED(float, scratch, KN_SCRATCH);                                                                                            \
    const ulong row = (ulong)KN_GROUP_X * p.cols, query = (ulong)(KN_GROUP_X % p.seq_len) * p.cols;                                   \
    softmax_row<true>(x + row, mask + query, p.scale, out + row, p.cols, scratch, KN_THREAD_X, KN_BLOCK_X, KN_LANE, KN_WARP_ID);      \
  }

SOFTMAX(softmax_f32, float)
SOFTMAX(softmax_f16, kn_f16)
SOFTMAX(softmax_bf16, kn_bf16)
SCALE_MASK_SOFTMAX(scale_mask_softmax_f32)
SCALE_MASK_SOFTMAX(scale_mask_softmax_f32_v4)
