// Normalisation of rows: y = x / sqrt(mean(x^2) + eps), times the weights w and a second factor s where a kernel has them; with a residual
// addition before it (the sum is normalised, and stored where asked) or after it; and y = (x - mean) / sqrt(var + eps) * w + b.
//
// One block a row, of 1024 threads where there are few rows, f32 accumulation, one rounding at the end. Threads take 16 bytes in turn and keep
// their first NORM_KEEP groups of four elements in registers, so that a row of up to 1024 threads * 16 elements is read once; the rest of a longer
// row is read again. Weights of the first 16 bytes are on their way while the sum is made, but where that takes so many registers that fewer
// rows are under way at a time. Rows that do not allow such loads take one element at a time. Each element is read and written by one thread
// alone, so outputs may be inputs.

#define NORM_KEEP 4u
#define NORM_WEIGHT 1u  // y *= w
#define NORM_MUL 2u     // y *= s
#define NORM_BEFORE 4u  // x + r is normalised
#define NORM_AFTER 8u   // r is added to the result
#define NORM_CENTRE 16u // the mean is taken from x first, and the bias r is added to the result

// Groups of four elements in 16 bytes of a type.
template <class T> struct NormFours { enum : uint { OF = 2 }; };
template <> struct NormFours<float> { enum : uint { OF = 1 }; };

template <uint N> KN_FN void norm_get(KN_GLOBAL const float* p, KN_PRIVATE float4 (&v)[N]) {
  KN_UNROLL for (uint i = 0; i < N; ++i) v[i] = kn_load4(p + 4 * i);
}
template <uint N, class T> KN_FN void norm_get(KN_GLOBAL const T* p, KN_PRIVATE float4 (&v)[N]) {
  const uint4 w = kn_load16(p);
  const float2 a = kn_unpack<T>(w.x), b = kn_unpack<T>(w.y), c = kn_unpack<T>(w.z), d = kn_unpack<T>(w.w);
  v[0] = kn_f4(a.x, a.y, b.x, b.y);
  v[1] = kn_f4(c.x, c.y, d.x, d.y);
}
KN_FN void norm_set(KN_GLOBAL float* p, KN_PRIVATE const float4 (&v)[1]) { kn_store4(p, v[0]); }
template <class T> KN_FN void norm_set(KN_GLOBAL T* p, KN_PRIVATE const float4 (&v)[2]) {
  kn_store16(p, kn_u4(kn_pack<T>(v[0].x, v[0].y), kn_pack<T>(v[0].z, v[0].w), kn_pack<T>(v[1].x, v[1].y), kn_pack<T>(v[1].z, v[1].w)));
}
KN_FN float4 norm_times(float4 a, float4 b) { return kn_f4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
KN_FN float4 norm_plus(float4 a, float4 b) { return kn_f4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
KN_FN float norm_sum(float4 v) { return v.x + v.y + (v.z + v.w); }
template <uint WHAT> KN_FN float4 norm_less(float4 v, float mean) {
  return WHAT & NORM_CENTRE ? kn_f4(v.x - mean, v.y - mean, v.z - mean, v.w - mean) : v;
}

template <uint WHAT, uint N, class T>
KN_FN void norm_load(KN_GLOBAL const T* x, KN_GLOBAL const T* r, ulong i, KN_PRIVATE float4 (&v)[N]) {
  norm_get<N>(x + i, v);
  if (WHAT & NORM_BEFORE) {
    float4 b[N];
    norm_get<N>(r + i, b);
    KN_UNROLL for (uint j = 0; j < N; ++j) v[j] = norm_plus(v[j], b[j]);
  }
}
template <uint WHAT, class T> KN_FN float norm_load1(KN_GLOBAL const T* x, KN_GLOBAL const T* r, ulong i) {
  const float v = kn_to_f32(x[i]);
  return WHAT & NORM_BEFORE ? v + kn_to_f32(r[i]) : v;
}

template <uint WHAT, class T, class W>
KN_FN float norm_value(float v, float scale, KN_GLOBAL const W* w, KN_GLOBAL const T* s, KN_GLOBAL const T* r, uint c, ulong i) {
  v *= scale;
  if (WHAT & NORM_WEIGHT) v *= kn_to_f32(w[c]);
  if (WHAT & NORM_MUL) v *= kn_to_f32(s[i]);
  if (WHAT & NORM_AFTER) v += kn_to_f32(r[i]);
  if (WHAT & NORM_CENTRE) v += kn_to_f32(r[c]);
  return v;
}

template <uint WHAT, uint N, class W> KN_FN void norm_weights(KN_GLOBAL const W* w, uint c, KN_PRIVATE float4 (&f)[N]) {
  if (WHAT & NORM_WEIGHT) norm_get<N>(w + c, f);
}

// Stores the results of `u`, of columns from `c` on, whose weights are `f`, and `u` itself where it is kept.
template <uint WHAT, uint N, class T>
KN_FN void norm_store(KN_PRIVATE const float4 (&u)[N], float mean, float scale, KN_PRIVATE const float4 (&f)[N], KN_GLOBAL const T* s,
                      KN_GLOBAL const T* r, KN_GLOBAL T* y, KN_GLOBAL T* sum, bool keep_sum, uint c, ulong i) {
  float4 v[N], g[N];
  KN_UNROLL for (uint j = 0; j < N; ++j) {
    v[j] = norm_less<WHAT>(u[j], mean);
    v[j] = kn_f4(v[j].x * scale, v[j].y * scale, v[j].z * scale, v[j].w * scale);
    if (WHAT & NORM_WEIGHT) v[j] = norm_times(v[j], f[j]);
  }
  if (WHAT & NORM_MUL) {
    norm_get<N>(s + i, g);
    KN_UNROLL for (uint j = 0; j < N; ++j) v[j] = norm_times(v[j], g[j]);
  }
  if (WHAT & (NORM_AFTER | NORM_CENTRE)) {
    norm_get<N>(r + (WHAT & NORM_CENTRE ? c : i), g);
    KN_UNROLL for (uint j = 0; j < N; ++j) v[j] = norm_plus(v[j], g[j]);
  }
  norm_set(y + i, v);
  if (keep_sum) norm_set(sum + i, u);
}

template <uint WHAT, bool SQUARES, uint N> KN_FN void norm_add(KN_PRIVATE float& total, KN_PRIVATE const float4 (&u)[N], float mean) {
  KN_UNROLL for (uint j = 0; j < N; ++j) {
    const float4 v = norm_less<WHAT>(u[j], mean);
    total += norm_sum(SQUARES ? norm_times(v, v) : v);
  }
}
// A thread's part of the sum of a row, or of the squares of its differences from the mean; `keep` has what it keeps.
template <uint WHAT, bool SQUARES, uint N, uint PIECES, class T>
KN_FN float norm_total(KN_PRIVATE const float4 (&keep)[PIECES][N], KN_GLOBAL const T* x, KN_GLOBAL const T* r, bool vector, float mean, uint dim,
                       ulong row, uint t, uint n) {
  constexpr uint PIECE = 4 * N;
  float total = 0;
  if (vector) {
    KN_UNROLL for (uint k = 0; k < PIECES; ++k) {
      if (PIECE * (t + n * k) < dim) norm_add<WHAT, SQUARES, N>(total, keep[k], mean);
    }
    for (uint c = PIECE * (t + n * PIECES); c < dim; c += PIECE * n) {
      float4 more[N];
      norm_load<WHAT, N>(x, r, row + c, more);
      norm_add<WHAT, SQUARES, N>(total, more, mean);
    }
  } else {
    for (uint c = t; c < dim; c += n) {
      const float v = norm_load1<WHAT>(x, r, row + c) - mean;
      total += SQUARES ? v * v : v;
    }
  }
  return total;
}

// One row. Operands that a kernel lacks are any pointer of the type; `sum` is written if `keep_sum`.
template <uint WHAT, class T, class W>
KN_FN void norm_row(KN_GLOBAL const T* x, KN_GLOBAL const T* r, KN_GLOBAL const W* w, KN_GLOBAL const T* s, KN_GLOBAL T* y,
                    KN_GLOBAL T* sum, bool keep_sum, uint dim, float eps, ulong row, KN_LOCAL float* scratch, uint t, uint n, uint lane,
                    uint warp) {
  constexpr uint N = NormFours<T>::OF, PIECE = 4 * N, PIECES = NORM_KEEP / N;
  constexpr bool EARLY = sizeof(T) == 4 && sizeof(W) == 4 && !(WHAT & NORM_CENTRE);
  const bool vector = dim % PIECE == 0 && kn_aligned(x, 16) && kn_aligned(y, 16) && kn_aligned(r, 16) && kn_aligned(s, 16) && kn_aligned(w, 16) &&
                      (!keep_sum || kn_aligned(sum, 16));
  float4 keep[PIECES][N], first[N];
  if (vector) {
    if (EARLY && PIECE * t < dim) norm_weights<WHAT, N>(w, PIECE * t, first);
    KN_UNROLL for (uint k = 0; k < PIECES; ++k) {
      const uint c = PIECE * (t + n * k);
      if (c < dim) norm_load<WHAT, N>(x, r, row + c, keep[k]);
    }
  }
  float mean = 0;
  if (WHAT & NORM_CENTRE) {
    mean = kn_block_sum(norm_total<WHAT, false>(keep, x, r, vector, 0, dim, row, t, n), scratch, n / KN_WARP, lane, warp) / (float)dim;
  }
  const float squares = kn_block_sum(norm_total<WHAT, true>(keep, x, r, vector, mean, dim, row, t, n), scratch, n / KN_WARP, lane, warp);
  const float scale = kn_rsqrt(squares / (float)dim + eps);
  if (vector) {
    KN_UNROLL for (uint k = 0; k < PIECES; ++k) {
      const uint c = PIECE * (t + n * k);
      if (c < dim) {
        if (k > 0 || !EARLY) norm_weights<WHAT, N>(w, c, first);
        norm_store<WHAT, N>(keep[k], mean, scale, first, s, r, y, sum, keep_sum, c, row + c);
      }
    }
    for (uint c = PIECE * (t + n * PIECES); c < dim; c += PIECE * n) {
      float4 v[N];
      norm_load<WHAT, N>(x, r, row + c, v);
      norm_weights<WHAT, N>(w, c, first);
      norm_store<WHAT, N>(v, mean, scale, first, s, r, y, sum, keep_sum, c, row + c);
    }
  } else {
    for (uint c = t; c < dim; c += n) {
      const float u = norm_load1<WHAT>(x, r, row + c);
      y[row + c] = kn_from_f32<T>(norm_value<WHAT>(u - mean, scale, w, s, r, c, row + c));
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
  NORM_BODY(NORM_WEIGHT | NORM_CENTRE, float, float, b, w, x, out, false)
}
