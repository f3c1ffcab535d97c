// Rotary position embedding: pair p of a head turns by a = position * inv_freq[p] / factor[p], which is
// (x0, x1) -> (x0 cos a - x1 sin a, x0 sin a + x1 cos a). Pairs are (2p, 2p + 1), or (p, p + offset), where the offset is half of the head
// or half of what turns. What does not turn is copied as it is.
//
// Sine and cosine cost far more than the rotation, so a thread keeps a pair and takes it through several heads of one position.
// Each pair is read and written by one thread alone: outputs may be inputs.

// The angle is rounded after the product and after the division.
KN_FN void rope_angle(KN_PRIVATE float& c, KN_PRIVATE float& s, float position, float frequency, float factor) {
  const float angle = kn_mul_rn(position, frequency) / factor;
  c = kn_cos(angle);
  s = kn_sin(angle);
}

// Elements of pair `pair` of dim / 2, of which `turning` turn; pairs that do not turn cover what those leave. `offset` is dim / 2 or
// `turning`.
KN_FN void rope_elements(KN_PRIVATE uint& i, KN_PRIVATE uint& j, uint pair, uint turning, uint offset, uint dim) {
  const bool rest = pair >= turning && offset == turning;
  i = rest ? pair + turning : pair;
  j = i + (rest ? dim / 2 - turning : offset);
}

#define ROPE_HEADS 4u  // heads of a thread that are in flight at once

// Takes elements i and j through heads `first`, `first + step`, ... of the position whose first head is at `base`.
template <class T>
KN_FN void rope_heads(KN_GLOBAL const T* x, KN_GLOBAL T* out, ulong base, uint dim, uint n_heads, uint i, uint j, bool turns, float c, float s,
                      uint first, uint step) {
  for (uint h = first; h < n_heads; h += ROPE_HEADS * step) {
    T a[ROPE_HEADS], b[ROPE_HEADS];
    KN_UNROLL for (uint k = 0; k < ROPE_HEADS; ++k) {
      const ulong at = base + (ulong)(h + k * step) * dim;
      if (h + k * step < n_heads) a[k] = x[at + i], b[k] = x[at + j];
    }
    KN_UNROLL for (uint k = 0; k < ROPE_HEADS; ++k) {
      const ulong at = base + (ulong)(h + k * step) * dim;
      if (h + k * step < n_heads) {
        const float u = kn_to_f32(a[k]), v = kn_to_f32(b[k]);
        out[at + i] = turns ? kn_from_f32<T>(u * c - v * s) : a[k];
        out[at + j] = turns ? kn_from_f32<T>(u * s + v * c) : b[k];
      }
    }
  }
}

// Block: x runs over pairs, y over heads; group x is the position, group y a share of the heads.
#define ROPE_FIRST_HEAD (KN_GROUP_Y * KN_BLOCK_Y + KN_THREAD_Y)
#define ROPE_HEAD_STEP (KN_GROUPS_Y * KN_BLOCK_Y)

#define ROPE(name, T, SPLIT)                                                                                                        \
  KN_CHAINED(name, 0);                                                                                                              \
  KN_KERNEL(name, 256, RopeParams, KN_IN_ALIAS(0, T, x), KN_IN_ALIAS(1, uint, positions), KN_IN_ALIAS(2, float, inv_freq),          \
            KN_IN_ALIAS(3, float, factors), KN_OUT_ALIAS(4, T, out)) {                                                              \
    KN_CHAIN;                                                                                                                       \
    const ulong base = (ulong)KN_GROUP_X * p.n_heads * p.head_dim;                                                                  \
    for (uint pair = KN_THREAD_X; pair < p.head_dim / 2; pair += KN_BLOCK_X) {                                                      \
      const bool turns = pair < p.rope_dim / 2;                                                                                     \
      const uint i = SPLIT ? pair : 2 * pair, j = SPLIT ? pair + p.head_dim / 2 : 2 * pair + 1;                                     \
      float c = 1, s = 0;                                                                                                           \
      if (turns) rope_angle(c, s, (float)positions[KN_GROUP_X], inv_freq[pair], KN_HAS(3, factors) ? factors[pair] : 1.0f);         \
      rope_heads(x, out, base, p.head_dim, p.n_heads, i, j, turns, c, s, ROPE_FIRST_HEAD, ROPE_HEAD_STEP);                          \
    }                                                                                                                               \
  }

ROPE(rope_f32, float, false)
ROPE(rope_f16, kn_f16, false)
ROPE(rope_bf16, kn_bf16, false)
ROPE(rope_neox_f32, float, true)
ROPE(rope_neox_bf16, kn_bf16, true)

// One token on its way to attention: heads of q turn into `out`, heads of k turn into slot `slot` of their cache, heads of v move there. Heads count
// through q, k and v.
template <class D>
KN_FN void rope_cached_pair(KN_GLOBAL const float* q, KN_GLOBAL const float* k, KN_GLOBAL const float* v, KN_GLOBAL float* out, KN_GLOBAL D* k_cache,
                            KN_GLOBAL D* v_cache, KN_PARAMS const RopeCachedParams& p, uint slot, uint h, uint i, uint j, bool turns, float c, float s) {
  if (h < p.n_heads) {
    const ulong at = (ulong)h * p.head_dim;
    const float a = q[at + i], b = q[at + j];
    out[at + i] = turns ? a * c - b * s : a;
    out[at + j] = turns ? a * s + b * c : b;
    return;
  }
  const bool key = h - p.n_heads < p.n_kv_heads;
  const uint head = h - p.n_heads - (key ? 0 : p.n_kv_heads);
  KN_GLOBAL const float* from = (key ? k : v) + (ulong)head * p.head_dim;
  KN_GLOBAL D* to = (key ? k_cache : v_cache) + ((ulong)head * p.cache_cap + slot) * p.head_dim;
  const float a = from[i], b = from[j];
  to[i] = kn_from_f32<D>(key && turns ? a * c - b * s : a);
  to[j] = kn_from_f32<D>(key && turns ? a * s + b * c : b);
}

#define ROPE_CACHED(name, D)                                                                                                        \
  KN_CHAINED(name, 1 << 3 | 1 << 4 | 1 << 5);                                                                                       \
  KN_KERNEL(name, 256, RopeCachedParams, KN_IN_ALIAS(0, float, q), KN_IN_ALIAS(1, float, k), KN_IN_ALIAS(2, float, v),              \
            KN_IN_ALIAS(3, uint, positions), KN_IN_ALIAS(4, float, inv_freq), KN_IN_ALIAS(5, float, factors),                       \
            KN_OUT_ALIAS(6, float, out), KN_OUT(7, D, k_cache), KN_OUT(8, D, v_cache), KN_IN_ALIAS(9, uint, step)) {                \
    KN_CHAIN_NEXT;                                                                                                                  \
    const uint slot = kn_step(p.seq_pos, step), heads = p.n_heads + 2 * p.n_kv_heads;                                               \
    for (uint pair = KN_THREAD_X; pair < p.head_dim / 2; pair += KN_BLOCK_X) {                                                      \
      const bool turns = pair < p.rope_dim / 2;                                                                                     \
      const uint i = p.split ? pair : 2 * pair, j = p.split ? pair + p.head_dim / 2 : 2 * pair + 1;                                 \
      float c = 1, s = 0;                                                                                                           \
      if (turns) rope_angle(c, s, (float)positions[0], inv_freq[pair], KN_HAS(5, factors) ? factors[pair] : 1.0f);                  \
      KN_CHAIN_WAIT;                                                                                                                \
      for (uint h = ROPE_FIRST_HEAD; h < heads; h += ROPE_HEAD_STEP) {                                                              \
        rope_cached_pair(q, k, v, out, k_cache, v_cache, p, slot, h, i, j, turns, c, s);                                            \
      }                                                                                                                             \
    }                                                                                                                               \
  }
ROPE_CACHED(rope_kv_copy_f32, float)
ROPE_CACHED(rope_kv_copy_f32_to_f16, kn_f16)

// The axis whose positions turn a pair: 8 is sections in blocks, 40 interleaved sections, 24 the two axes of vision towers.
KN_FN uint rope_axis(uint pair, uint mode, uint a, uint b, uint c, uint d) {
  if (mode == 24) return pair % (a + b) >= a ? 1 : 0;
  const uint at = pair % (a + b + c + d);
  if (mode == 40) {
    const uint axis = at % 3;
    return at < 3 * (axis == 0 ? a : axis == 1 ? b : c) ? axis : 3;
  }
  return (at >= a ? 1u : 0u) + (at >= a + b ? 1u : 0u) + (at >= a + b + c ? 1u : 0u);
}

#define ROPE_MULTI(name, T)                                                                                                         \
  KN_KERNEL(name, 256, RopeMultiParams, KN_IN_ALIAS(0, T, x), KN_IN(1, int, positions), KN_IN(2, float, inv_freq),                  \
            KN_OUT_ALIAS(3, T, out)) {                                                                                              \
    const ulong base = (ulong)KN_GROUP_X * p.n_heads * p.head_dim;                                                                  \
    for (uint pair = KN_THREAD_X; pair < p.head_dim / 2; pair += KN_BLOCK_X) {                                                      \
      const bool turns = pair < p.rope_dim / 2;                                                                                     \
      uint i, j;                                                                                                                    \
      rope_elements(i, j, pair, p.rope_dim / 2, p.rope_dim / 2, p.head_dim);                                                        \
      float c = 1, s = 0;                                                                                                           \
      if (turns) {                                                                                                                  \
        const uint axis = rope_axis(pair, p.mode, p.section_0, p.section_1, p.section_2, p.section_3);                              \
        rope_angle(c, s, (float)positions[(ulong)axis * p.seq_len + KN_GROUP_X], inv_freq[pair], 1.0f);                             \
      }                                                                                                                             \
      rope_heads(x, out, base, p.head_dim, p.n_heads, i, j, turns, c, s, ROPE_FIRST_HEAD, ROPE_HEAD_STEP);                          \
    }                                                                                                                               \
  }

ROPE_MULTI(rope_multi_f32, float)
ROPE_MULTI(rope_multi_bf16, kn_bf16)

// RMS norm of each head, then its rotation. A block takes a position, whose sines and cosines it puts into a table once, a warp one head
// after the other, a lane its pairs. The elements of up to HEAD_KEEP pairs a lane stay in registers, so that x is read once; pairs of wider
// heads are read again, and have their angle taken again. Normalised values are f32 until they are stored.
#define HEAD_KEEP 8u
#define HEAD_TABLE (HEAD_KEEP * KN_WARP)

// What a launch works on. Where angles are given, `frequencies` are their cosines and `factors` their sines. Operands that a kernel lacks
// are any pointers, and absent.
template <class T> struct HeadRows {
  KN_GLOBAL const T* x;
  KN_GLOBAL const T* w;
  KN_GLOBAL const float* frequencies;
  KN_GLOBAL const float* factors;
  KN_GLOBAL T* out;
  KN_GLOBAL kn_bf16* copy;
  KN_GLOBAL float* perm;
  bool has_w, has_factors, has_copy, has_perm, given, copy_permuted;
  float position, eps;
  uint seq_len, n_heads, dim, turning, offset;
};

template <class T> KN_FN void head_angle(KN_PRIVATE const HeadRows<T>& r, uint pair, KN_PRIVATE float& c, KN_PRIVATE float& s) {
  if (r.given) {
    c = r.frequencies[pair];
    s = r.factors[pair];
  } else {
    rope_angle(c, s, r.position, r.frequencies[pair], r.has_factors ? r.factors[pair] : 1.0f);
  }
}

// Norm and rotation of one pair (a, b) of a row, and its copies, which stand at rows of their own.
template <class T>
KN_FN void head_store(KN_PRIVATE const HeadRows<T>& r, uint pair, float a, float b, float scale, float c, float s, ulong row, ulong perm_row) {
  uint i, j;
  rope_elements(i, j, pair, r.turning, r.offset, r.dim);
  a *= scale;
  b *= scale;
  if (r.has_w) {
    a *= kn_to_f32(r.w[i]);
    b *= kn_to_f32(r.w[j]);
  }
  const bool turns = pair < r.turning;
  const float y0 = turns ? a * c - b * s : a, y1 = turns ? a * s + b * c : b;
  r.out[row * r.dim + i] = kn_from_f32<T>(y0);
  r.out[row * r.dim + j] = kn_from_f32<T>(y1);
  if (r.has_copy) {
    const ulong at = (r.copy_permuted ? perm_row : row) * r.dim;
    r.copy[at + i] = kn_from_f32<kn_bf16>(y0);
    r.copy[at + j] = kn_from_f32<kn_bf16>(y1);
  }
  if (r.has_perm) {
    r.perm[perm_row * r.dim + i] = y0;
    r.perm[perm_row * r.dim + j] = y1;
  }
}

// Heads `first`, `first + step`, ... of position `t` by one warp of a block of `n` threads, of which this is `at`.
template <class T>
KN_FN void head_norm_rope(KN_PRIVATE const HeadRows<T>& r, KN_LOCAL float* table, uint t, uint first, uint step, uint lane, uint at, uint n) {
  const uint pairs = r.dim / 2;
  for (uint pair = at; pair < kn_min(r.turning, HEAD_TABLE); pair += n) {
    float c, s;
    head_angle(r, pair, c, s);
    table[pair] = c;
    table[HEAD_TABLE + pair] = s;
  }
  kn_barrier();
  for (uint h = first; h < r.n_heads; h += step) {
    const ulong row = (ulong)t * r.n_heads + h, perm_row = (ulong)h * r.seq_len + t;
    KN_GLOBAL const T* head = r.x + row * r.dim;
    float a[HEAD_KEEP], b[HEAD_KEEP], squares = 0;
    uint i, j;
    KN_UNROLL for (uint k = 0; k < HEAD_KEEP; ++k) {
      const uint pair = lane + k * KN_WARP;
      rope_elements(i, j, pair, r.turning, r.offset, r.dim);
      a[k] = pair < pairs ? kn_to_f32(head[i]) : 0.0f;
      b[k] = pair < pairs ? kn_to_f32(head[j]) : 0.0f;
    }
    KN_UNROLL for (uint k = 0; k < HEAD_KEEP; ++k) squares += a[k] * a[k] + b[k] * b[k];
    for (uint pair = lane + HEAD_TABLE; pair < pairs; pair += KN_WARP) {
      rope_elements(i, j, pair, r.turning, r.offset, r.dim);
      const float u = kn_to_f32(head[i]), v = kn_to_f32(head[j]);
      squares += u * u + v * v;
    }
    const float scale = kn_rsqrt(kn_warp_sum(squares) / (float)r.dim + r.eps);
    KN_UNROLL for (uint k = 0; k < HEAD_KEEP; ++k) {
      const uint pair = lane + k * KN_WARP;
      const bool turns = pair < r.turning;
      if (pair < pairs) head_store(r, pair, a[k], b[k], scale, turns ? table[pair] : 1.0f, turns ? table[HEAD_TABLE + pair] : 0.0f, row, perm_row);
    }
    for (uint pair = lane + HEAD_TABLE; pair < pairs; pair += KN_WARP) {
      float c = 1, s = 0;
      if (pair < r.turning) head_angle(r, pair, c, s);
      rope_elements(i, j, pair, r.turning, r.offset, r.dim);
      head_store(r, pair, kn_to_f32(head[i]), kn_to_f32(head[j]), scale, c, s, row, perm_row);
    }
  }
}

#define HEAD_NORM_ROPE(name)                                                                                                        \
  KN_KERNEL(name, 128, HeadNormRopeParams, KN_IN_ALIAS(0, float, x), KN_IN(1, float, w), KN_IN(2, uint, positions),                 \
            KN_IN(3, float, inv_freq), KN_IN(4, float, factors), KN_OUT_ALIAS(5, float, out), KN_OUT(6, kn_bf16, copy),             \
            KN_OUT(7, float, perm)) {                                                                                               \
    KN_SHARED(float, table, 2 * HEAD_TABLE);                                                                                        \
    const HeadRows<float> rows = {x, w, inv_freq, factors, out, copy, perm, KN_HAS(1, w), KN_HAS(4, factors), KN_HAS(6, copy),      \
                                  KN_HAS(7, perm), false, p.bf16_permuted != 0, (float)positions[KN_GROUP_X], p.eps, p.seq_len,     \
                                  p.n_heads, p.head_dim, p.half_rope, p.head_dim / 2};                                              \
    HEAD_RUN(rows);                                                                                                                 \
  }
#define HEAD_RUN(rows)                                                                                                              \
  head_norm_rope(rows, table, KN_GROUP_X, KN_GROUP_Y * (KN_BLOCK_X / KN_WARP) + KN_WARP_ID, KN_GROUPS_Y * (KN_BLOCK_X / KN_WARP),   \
                 KN_LANE, KN_THREAD_X, KN_BLOCK_X)

HEAD_NORM_ROPE(fused_head_norm_rope_f32)
HEAD_NORM_ROPE(fused_head_norm_rope_f32_v2)

KN_KERNEL(fused_head_norm_rope_batch_bf16, 128, HeadNormRopeBatchParams, KN_IN_ALIAS(0, kn_bf16, x), KN_IN(1, kn_bf16, w),
          KN_IN(2, uint, positions), KN_IN(3, float, inv_freq), KN_IN(4, float, factors), KN_OUT_ALIAS(5, kn_bf16, out)) {
  KN_SHARED(float, table, 2 * HEAD_TABLE);
  const HeadRows<kn_bf16> rows = {x, w, inv_freq, factors, out, out, (KN_GLOBAL float*)out, KN_HAS(1, w), KN_HAS(4, factors), false,
                                  false, false, false, (float)positions[KN_GROUP_X], p.eps, p.seq_len, p.n_heads, p.head_dim, p.half_rope,
                                  p.head_dim / 2};
  HEAD_RUN(rows);
}

// One position, by given cosines and sines; pairs are as far apart as there are turning ones.
KN_KERNEL(fused_head_norm_rope_bf16, 128, HeadNormRopeTableParams, KN_IN_ALIAS(0, kn_bf16, x), KN_IN(1, kn_bf16, w),
          KN_IN(2, float, cosines), KN_IN(3, float, sines), KN_OUT_ALIAS(4, kn_bf16, out)) {
  KN_SHARED(float, table, 2 * HEAD_TABLE);
  const HeadRows<kn_bf16> rows = {x, w, cosines, sines, out, out, (KN_GLOBAL float*)out, KN_HAS(1, w), true, false, false, true, false,
                                  0.0f, p.eps, 1, p.n_heads, p.head_dim, p.half_rope, p.half_rope};
  HEAD_RUN(rows);
}
