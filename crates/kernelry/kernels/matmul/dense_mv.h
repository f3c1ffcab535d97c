// Products of few rows with a matrix that is not quantised: y[m, n] = sum_k x[m, k] w[n, k], operands as they are, sums in f32.
//
// A warp takes two weight rows and up to M input rows. Its lanes read eight values of k each, neighbours neighbouring ones, four such pieces of both
// weight rows in flight; at the end the lanes' sums are added by shuffles.

#define DENSE_MV_ROWS 8u  // weight rows of a block, as the launch geometry has them

struct DenseF32 { float4 a, b; };
KN_FN void dense_load8(KN_GLOBAL const float* p, KN_PRIVATE DenseF32& r) {
  r.a = kn_load4(p);
  r.b = kn_load4(p + 4);
}
template <class T> KN_FN void dense_load8(KN_GLOBAL const T* p, KN_PRIVATE uint4& r) { r = kn_load16(p); }
template <class T> KN_FN void dense_values(KN_PRIVATE const DenseF32& r, KN_PRIVATE float (&v)[8]) {
  v[0] = r.a.x; v[1] = r.a.y; v[2] = r.a.z; v[3] = r.a.w;
  v[4] = r.b.x; v[5] = r.b.y; v[6] = r.b.z; v[7] = r.b.w;
}
template <class T> KN_FN void dense_values(KN_PRIVATE const uint4& r, KN_PRIVATE float (&v)[8]) {
  const float2 a = kn_unpack<T>(r.x), b = kn_unpack<T>(r.y), c = kn_unpack<T>(r.z), d = kn_unpack<T>(r.w);
  v[0] = a.x; v[1] = a.y; v[2] = b.x; v[3] = b.y;
  v[4] = c.x; v[5] = c.y; v[6] = d.x; v[7] = d.y;
}
template <class T> struct DenseRaw { typedef uint4 Type; };
template <> struct DenseRaw<float> { typedef DenseF32 Type; };

// U pieces from value `at` on, one every 8 * KN_WARP values.
template <class T, class X, uint M, uint U>
KN_FN void dense_pieces(KN_GLOBAL const T* w0, KN_GLOBAL const T* w1, KN_GLOBAL const X* x, uint m, uint k, uint at, KN_PRIVATE float (&acc)[M][2]) {
  typename DenseRaw<T>::Type r0[U], r1[U];
  KN_UNROLL for (uint u = 0; u < U; ++u) {
    dense_load8(w0 + at + 8 * KN_WARP * u, r0[u]);
    dense_load8(w1 + at + 8 * KN_WARP * u, r1[u]);
  }
  KN_UNROLL for (uint u = 0; u < U; ++u) {
    float a[8], b[8], v[8];
    dense_values<T>(r0[u], a);
    dense_values<T>(r1[u], b);
    KN_UNROLL for (uint j = 0; j < M; ++j) {
      if (j < m) {
        typename DenseRaw<X>::Type raw;
        dense_load8(x + (ulong)j * k + at + 8 * KN_WARP * u, raw);
        dense_values<X>(raw, v);
        KN_UNROLL for (uint e = 0; e < 8; ++e) {
          acc[j][0] = kn_fma(a[e], v[e], acc[j][0]);
          acc[j][1] = kn_fma(b[e], v[e], acc[j][1]);
        }
      }
    }
  }
}

// The first m <= M rows at `x` times the weight rows from n0 on; every thread of the block calls.
template <uint M, class T, class X, class Y>
KN_FN void dense_mv(KN_GLOBAL const T* w, KN_GLOBAL const X* x, KN_GLOBAL Y* y, uint m, uint n, uint k, uint n0, uint lane, uint warp, uint warps) {
  const bool vector = k % 8 == 0 && kn_aligned(w, 16) && kn_aligned(x, 16);
  for (uint row = n0 + 2 * warp; row < kn_min(n, n0 + DENSE_MV_ROWS); row += 2 * warps) {
    KN_GLOBAL const T* w0 = w + (ulong)row * k;
    KN_GLOBAL const T* w1 = w + (ulong)kn_min(row + 1, n - 1) * k;
    float acc[M][2];
    KN_UNROLL for (uint j = 0; j < M; ++j) acc[j][0] = acc[j][1] = 0;
    if (vector) {
      uint at = 8 * lane;
      KN_NO_UNROLL for (; at + 24 * KN_WARP < k; at += 32 * KN_WARP) dense_pieces<T, X, M, 4>(w0, w1, x, m, k, at, acc);
      KN_NO_UNROLL for (; at < k; at += 8 * KN_WARP) dense_pieces<T, X, M, 1>(w0, w1, x, m, k, at, acc);
    } else {
      KN_NO_UNROLL for (uint at = lane; at < k; at += KN_WARP) {
        const float a = kn_to_f32(w0[at]), b = kn_to_f32(w1[at]);
        KN_UNROLL for (uint j = 0; j < M; ++j) {
          if (j < m) {
            const float v = kn_to_f32(x[(ulong)j * k + at]);
            acc[j][0] = kn_fma(a, v, acc[j][0]);
            acc[j][1] = kn_fma(b, v, acc[j][1]);
          }
        }
      }
    }
    KN_UNROLL for (uint j = 0; j < M; ++j) {
      if (j < m) {
        const float first = kn_warp_sum(acc[j][0]), second = kn_warp_sum(acc[j][1]);
        if (lane == 0) {
          y[(ulong)j * n + row] = kn_from_f32<Y>(first);
          if (row + 1 < n) y[(ulong)j * n + row + 1] = kn_from_f32<Y>(second);
        }
      }
    }
  }
}

#define DENSE_MATVEC(NAME, T, X)                                                                                            \
  KN_KERNEL_DEEP(NAME, 128, MatmulParams, KN_IN(0, T, w), KN_IN(1, X, x), KN_OUT(2, X, y)) {                                \
    dense_mv<1>(w, x, y, 1, p.n, p.k, KN_GROUP_X * DENSE_MV_ROWS, KN_LANE, KN_WARP_ID, KN_BLOCK_X / KN_WARP);               \
  }

// Four input rows at a time; consecutive inputs share a matrix where there are fewer matrices than inputs.
#define DENSE_GEMV(NAME, T)                                                                                                 \
  KN_KERNEL_DEEP(NAME, 128, BatchedMatmulParams, KN_IN(0, T, w), KN_IN(1, float, x), KN_OUT(2, float, y)) {                 \
    const uint passes = kn_cdiv(p.m, 4), sharing = p.batch / p.weights;                                                     \
    for (ulong i = KN_GROUP_Y; i < (ulong)passes * p.batch; i += KN_GROUPS_Y) {                                             \
      const ulong z = i / passes, row = z * p.m + 4 * (i % passes);                                                         \
      dense_mv<4>(w + z / sharing * p.n * p.k, x + row * p.k, y + row * p.n, kn_min(p.m - 4 * (uint)(i % passes), 4u), p.n, \
                  p.k, KN_GROUP_X * DENSE_MV_ROWS, KN_LANE, KN_WARP_ID, KN_BLOCK_X / KN_WARP);                              \
    }                                                                                                                       \
  }

DENSE_MATVEC(dense_matvec_f16, kn_f16, kn_f16)
DENSE_MATVEC(dense_matvec_f16w_f32io, kn_f16, float)
DENSE_MATVEC(dense_matvec_bf16w_f32io, kn_bf16, float)
DENSE_MATVEC(dense_matvec_f32, float, float)
DENSE_GEMV(hf2q_dense_gemv_bf16_f32_4, kn_bf16)
