// Elementwise maps: out[i] = f(a[i], b[i], s) in f32, rounded once when stored. The rule is a struct F with `of(a, b, s)`.
//
// A block takes a tile of MAP_TILE elements, a thread MAP_UNITS groups of four of them, all of which are loaded before the first is
// stored: the output may be an input, so the compiler could not do it. Operands that do not allow vector loads go one element at a time.
// Each element is read and written by one thread alone.

#define MAP_UNITS 2u
#define MAP_THREADS 256u
#define MAP_TILE (4u * MAP_UNITS * MAP_THREADS)

template <class F> KN_FN float4 map_four(float4 a, float4 b, float s) {
  return kn_f4(F::of(a.x, b.x, s), F::of(a.y, b.y, s), F::of(a.z, b.z, s), F::of(a.w, b.w, s));
}

// One tile. A map of one operand (TWO is false) is given it twice.
template <class F, bool TWO, class T, class O>
KN_FN void map_tile(KN_GLOBAL const T* a, KN_GLOBAL const T* b, KN_GLOBAL O* out, uint n, float s, uint tile, uint t) {
  const ulong first = (ulong)tile * MAP_TILE, end = first + MAP_TILE < n ? first + MAP_TILE : n;
  const uint bytes = 4 * (uint)sizeof(T);
  ulong left = first;  // what is not done in groups of four
  if (kn_aligned(a, bytes) && kn_aligned(b, bytes) && kn_aligned(out, 4 * (uint)sizeof(O))) {
    float4 u[MAP_UNITS], v[MAP_UNITS];
    KN_UNROLL for (uint k = 0; k < MAP_UNITS; ++k) {
      const ulong i = first + 4 * (t + MAP_THREADS * k);
      if (i + 4 <= end) {
        u[k] = kn_load4(a + i);
        if (TWO) v[k] = kn_load4(b + i);
      }
    }
    KN_UNROLL for (uint k = 0; k < MAP_UNITS; ++k) {
      const ulong i = first + 4 * (t + MAP_THREADS * k);
      if (i + 4 <= end) kn_store4(out + i, map_four<F>(u[k], TWO ? v[k] : u[k], s));
    }
    left = end / 4 * 4;
  }
  for (ulong i = left + t; i < end; i += MAP_THREADS) {
    out[i] = kn_from_f32<O>(F::of(kn_to_f32(a[i]), kn_to_f32(b[i]), s));
  }
}

// Instances over T elements; `s` may use the parameters `p`.
#define MAP_UNARY(name, P, T, O, F, s)                                                              \
  KN_CHAINED(name, 0);                                                                              \
  KN_KERNEL(name, MAP_THREADS, P, KN_IN_ALIAS(0, T, x), KN_OUT_ALIAS(1, O, out)) {                  \
    KN_CHAIN;                                                                                       \
    map_tile<F, false>(x, x, out, p.n, s, KN_GROUP_X, KN_THREAD_X);                                 \
  }
#define MAP_BINARY(name, P, T, F)                                                                            \
  KN_CHAINED(name, 0);                                                                                       \
  KN_KERNEL(name, MAP_THREADS, P, KN_IN_ALIAS(0, T, a), KN_IN_ALIAS(1, T, b), KN_OUT_ALIAS(2, T, out)) {     \
    KN_CHAIN;                                                                                                \
    map_tile<F, true>(a, b, out, p.n, 0.0f, KN_GROUP_X, KN_THREAD_X);                                        \
  }
