// Normalisation of rows: y = x / sqrt(mean(x^2) + eps), times the weights w and a second factor s where a kernel has them; with a residual
// addition before it (the sum is normalised, and stored where asked) or after it; and y = (x - mean) / sqrt(var + eps) * w + b.
//
// One block a row, of 1024 threads where there are few rows, f32 accumulation, one rounding at the end. Threads take groups of four elements in turn and keep their first KEEP groups
// in registers, so that a row of up to 256 * 4 * KEEP elements is read once; the rest of a longer row is read again. The weights of the first
// group are on their way while the sum is made. Rows that do not allow vector loads take one element at a time. Each element is read and written by one thread alone, so outputs may be inputs.

#define NORM_KEEP 8u
#define NORM_WEIGHT 1u  // y *= w
#define NORM_MUL 2u     // y *= s
#define NORM_BEFORE 4u  // x + r is normalised
#define NORM_AFTER 8u   // r is added to the result

template <uint WHAT, class T> KN_FN float4 norm_load4(KN_GLOBAL const T* x, KN_GLOBAL const T* r, ulong i) {
  const float4 a = kn_load4(x + i);
  if (!(WHAT & NORM_BEFORE)) return a;
  const float4 b = kn_load4(r + i);
  return kn_f4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

template <uint WHAT, class T> KN_FN float norm_load(KN_GLOBAL const T* x, KN_GLOBAL const T* r, ulong i) {
  const float v = kn_to_f32(x[i]);
  return WHAT & NORM_BEFORE ? v + kn_to_f32(r[i]) : v;
}

template <uint WHAT, class T, class W>
KN_FN float norm_value(float v, float scale, KN_GLOBAL const W* w, KN_GLOBAL const T* s, KN_GLOBAL const T* r, uint c, ulong i) {
  v *= scale;
  if (WHAT & NORM_WEIGHT) v *= kn_to_f32(w[c]);
  if (WHAT & NORM_MUL) v *= kn_to_f32(s[i]);
  if (WHAT & NORM_AFTER) v += kn_to_f32(r[i]);
  return v;
}

template <uint WHAT, class W> KN_FN float4 norm_weight4(KN_GLOBAL const W* w, uint c) {
  return WHAT & NORM_WEIGHT ? kn_load4(w + c) : kn_f4(1, 1, 1, 1);
}

template <uint WHAT, class T>
KN_FN float4 norm_value4(float4 v, float scale, float4 f, KN_GLOBAL const T* s, KN_GLOBAL const T* r, ulong i) {
  v = kn_f4(v.x * scale, v.y * scale, v.z * scale, v.w * scale);
  if (WHAT & NORM_WEIGHT) v = kn_f4(v.x * f.x, v.y * f.y, v.z * f.z, v.w * f.w);
  if (WHAT & NORM_MUL) {
    const float4 f = kn_load4(s + i);
    v = kn_f4(v.x * f.x, v.y * f.y, v.z * f.z, v.w * f.w);
  }
  if (WHAT & NORM_AFTER) {
    const float4 f = kn_load4(r + i);
    v = kn_f4(v.x + f.x, v.y + f.y, v.z + f.z, v.w + f.w);
  }
  return v;
}

KN_FN float norm_square(float4 v) { return v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w); }

// One row. Operands that a kernel lacks are any pointer of the type; `sum` is written if `keep_sum`.
template <uint WHAT, class T, class W>
KN_FN void norm_row(KN_GLOBAL const T* x, KN_GLOBAL const T* r, KN_GLOBAL const W* w, KN_GLOBAL const T* s, KN_GLOBAL T* y,
                    KN_GLOBAL T* sum, bool keep_sum, uint dim, float eps, ulong row, KN_LOCAL float* scratch, uint t, uint n, uint lane,
                    uint warp) {
  const uint bytes = 4 * (uint)sizeof(T);
  const bool vector = dim % 4 == 0 && kn_aligned(x, bytes) && kn_aligned(y, bytes) && kn_aligned(r, bytes) && kn_aligned(s, bytes) &&
                      kn_aligned(w, 4 * (uint)sizeof(W)) && (!keep_sum || kn_aligned(sum, bytes));
  float4 keep[NORM_KEEP], first = kn_f4(1, 1, 1, 1);
  float squares = 0;
  if (vector) {
    if (4 * t < dim) first = norm_weight4<WHAT>(w, 4 * t);
    KN_UNROLL for (uint k = 0; k < NORM_KEEP; ++k) {
      const uint c = 4 * (t + n * k);
      if (c < dim) {
        keep[k] = norm_load4<WHAT>(x, r, row + c);
        squares += norm_square(keep[k]);
      }
    }
    for (uint c = 4 * (t + n * NORM_KEEP); c < dim; c += 4 * n) squares += norm_square(norm_load4<WHAT>(x, r, row + c));
  } else {
    for (uint c = t; c < dim; c += n) {
      const float v = norm_load<WHAT>(x, r, row + c);
      squares += v * v;
    }
  }
  const float scale = kn_rsqrt(kn_block_sum(squares, scratch, n / KN_WARP, lane, warp) / (float)dim + eps);
  if (vector) {
    KN_UNROLL for (uint k = 0; k < NORM_KEEP; ++k) {
      const uint c = 4 * (t + n * k);
      if (c < dim) {
        const float4 v = norm_value4<WHAT>(keep[k], scale, k == 0 ? first : norm_weight4<WHAT>(w, c), s, r, row + c);
        kn_store4(y + row + c, v);
        if (keep_sum) kn_store4(sum + row + c, keep[k]);
      }
    }
    for (uint c = 4 * (t + n * NORM_KEEP); c < dim; c += 4 * n) {
      const float4 u = norm_load4<WHAT>(x, r, row + c);
      const float4 v = norm_value4<WHAT>(u, scale, norm_weight4<WHAT>(w, c), s, r, row + c);
      kn_store4(y + row + c, v);
      if (keep_sum) kn_store4(sum + row + c, u);
    }
  } else {
    for (uint c = t; c < dim; c += n) {
      const float u = norm_load<WHAT>(x, r, row + c);
      y[row + c] = kn_from_f32<T>(norm_value<WHAT>(u, scale, w, s, r, c, row + c));
      if (keep_sum) sum[row + c] = kn_from_f32<T>(u);
    }
  }
}

#define NORM_BODY(WHAT, T, W, r, w, s, sum, keep_sum)                                                                              \
  KN_SHARED(float, scratch, KN_SCRATCH);                                                                                           \
  norm_row<WHAT, T, W>(x, r, w, s, out, sum, keep_sum, p.dim, p.eps, (ulong)KN_GROUP_X * p.dim, scratch, KN_THREAD_X, KN_BLOCK_X, \
                       KN_LANE, KN_WARP_ID);
#define RMS_NORM(name, T, W)                                                                                  \
  KN_CHAINED(name, 0);                                                                                         \
  KN_KERNEL(name, 1024, NormParams, KN_IN_ALIAS(0, T, x), KN_IN_ALIAS(1, W, w), KN_OUT_ALIAS(2, T, out)) {    \
    KN_CHAIN;                                                                                                 \
    NORM_BODY(NORM_WEIGHT, T, W, x, w, x, out, false)                                                         \
  }
#define RMS_NORM_NO_SCALE(name, T)                                                             \
  KN_KERNEL(name, 1024, NormParams, KN_IN_ALIAS(0, T, x), KN_OUT_ALIAS(1, T, out)) {           \
    NORM_BODY(0, T, T, x, x, x, out, false)                                                    \
  }
#define RMS_NORM_MUL(name, T, W)                                                                                                  \
  KN_KERNEL(name, 1024, NormParams, KN_IN_ALIAS(0, T, x), KN_IN(1, W, w), KN_IN(2, T, s), KN_OUT_ALIAS(3, T, out)) {              \
    NORM_BODY(NORM_WEIGHT | NORM_MUL, T, W, x, w, s, out, false)                                                                  \
  }
#define NORM_ADD(name)                                                                                                 \
  KN_KERNEL(name, 1024, NormParams, KN_IN_ALIAS(0, float, r), KN_IN_ALIAS(1, float, x), KN_IN(2, float, w),            \
            KN_OUT_ALIAS(3, float, out)) {                                                                             \
    NORM_BODY(NORM_WEIGHT | NORM_AFTER, float, float, r, w, x, out, false)                                             \
  }

RMS_NORM(rms_norm_f32, float, float)
RMS_NORM(rms_norm_f32_v2, float, float)
RMS_NORM(rms_norm_f16, kn_f16, float)
RMS_NORM(rms_norm_bf16, kn_bf16, kn_bf16)
RMS_NORM_NO_SCALE(rms_norm_no_scale_f32, float)
RMS_NORM_NO_SCALE(rms_norm_no_scale_f32_v2, float)
RMS_NORM_NO_SCALE(rms_norm_no_scale_bf16, kn_bf16)
RMS_NORM_MUL(rms_norm_mul_f32, float, float)
RMS_NORM_MUL(rms_norm_mul_f16, kn_f16, float)
RMS_NORM_MUL(rms_norm_mul_bf16, kn_bf16, kn_bf16)
NORM_ADD(fused_norm_add_f32)
NORM_ADD(fused_norm_add_f32_v2)

KN_CHAINED(fused_residual_norm_f32, 0);
KN_KERNEL(fused_residual_norm_f32, 1024, NormParams, KN_IN_ALIAS(0, float, r), KN_IN_ALIAS(1, float, x), KN_IN_ALIAS(2, float, w),
          KN_OUT_ALIAS(3, float, out), KN_OUT_ALIAS(4, float, sum)) {
  KN_CHAIN;
  NORM_BODY(NORM_WEIGHT | NORM_BEFORE, float, float, r, w, x, sum, KN_HAS(4, sum))
}

// The mean first, then the squares of the differences: no cancellation however far the mean is from zero.
KN_KERNEL(layer_norm_f32, 1024, NormParams, KN_IN_ALIAS(0, float, x), KN_IN(1, float, w), KN_IN(2, float, b), KN_OUT_ALIAS(3, float, out)) {
  KN_SHARED(float, scratch, KN_SCRATCH);
  const ulong row = (ulong)KN_GROUP_X * p.dim;
  const uint t = KN_THREAD_X, n = KN_BLOCK_X;
  float sum = 0, squares = 0;
  for (uint c = t; c < p.dim; c += n) sum += x[row + c];
  const float mean = kn_block_sum(sum, scratch, n / KN_WARP, KN_LANE, KN_WARP_ID) / (float)p.dim;
  for (uint c = t; c < p.dim; c += n) squares += (x[row + c] - mean) * (x[row + c] - mean);
  const float scale = kn_rsqrt(kn_block_sum(squares, scratch, n / KN_WARP, KN_LANE, KN_WARP_ID) / (float)p.dim + p.eps);
  for (uint c = t; c < p.dim; c += n) out[row + c] = (x[row + c] - mean) * scale * w[c] + b[c];
}
