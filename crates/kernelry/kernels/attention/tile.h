// Attention of many queries, o = softmax(softcap(scale q k^T)) v, in f32 products and for any head up to 512 wide.
//
// One block of 256 threads takes ATTN_ROWS queries of one head and walks over tiles of ATTN_KEYS keys with the online softmax (Milakov and
// Gimelshein, 2018). Scores: 4 x 4 a thread, heads in pieces of 32 elements through threadgroup memory. Softmax: four threads a row, in
// threadgroup memory. Weights times values: 4 rows x 4 columns a thread for every 64 columns of the head, 32 keys at a time. A query meets
// the same tiles however the queries are cut, because tiles start at multiples of ATTN_KEYS.

#define ATTN_ROWS 64u
#define ATTN_KEYS 64u
// Finite start of the running maximum: exp(-inf - ATTN_FLOOR) is zero and not NaN.
#define ATTN_FLOOR (-1.70141173e38f)
#define ATTN_LOG2E 1.44269504f
#define ATTN_STRIDE 68u  // of weights; multiples of four, and rows in turn on other banks
#define ATTN_PIECE 36u   // of 32 elements of queries or keys
#define ATTN_VALUES (2 * ATTN_ROWS * ATTN_PIECE)
#define ATTN_FACTOR (ATTN_VALUES + 32 * 64)
#define ATTN_SHARED (ATTN_FACTOR + ATTN_ROWS)

// One head of one sequence. Query i has its elements from q_at + i * q_stride on, and so has output i.
struct Attn {
  uint dim, queries, keys, first, causal, window;
  float scale, softcap;
  ulong q_at, q_stride, kv_at;
};

// Keys lo to hi - 1 are attended by query i: causal is aligned at the end.
KN_FN void attn_range(KN_PRIVATE const Attn& a, uint i, KN_PRIVATE uint& lo, KN_PRIVATE uint& hi) {
  lo = 0;
  hi = a.keys;
  if (!a.causal) return;
  const uint end = a.keys + kn_min(i, a.queries - 1) + 1;
  hi = kn_min(end > a.queries ? end - a.queries : 0u, a.keys);
  lo = a.window != 0 && hi > a.window ? hi - a.window : 0u;
}

KN_FN float attn_score(KN_PRIVATE const Attn& a, float dot) {
  const float s = dot * a.scale;
  return a.softcap > 0 ? a.softcap * kn_tanh(s / a.softcap) : s;
}

// Eight elements to threadgroup memory, of which `n` exist.
template <class T> KN_FN void attn_stage8(KN_LOCAL float* to, KN_GLOBAL const T* x, ulong at, uint n, bool vector) {
  float4 a = kn_f4(0, 0, 0, 0), b = kn_f4(0, 0, 0, 0);
  if (vector && n >= 8) {
    a = kn_load4(x + at);
    b = kn_load4(x + at + 4);
  } else if (n != 0) {
    a.x = kn_to_f32(x[at]);
    if (n > 1) a.y = kn_to_f32(x[at + 1]);
    if (n > 2) a.z = kn_to_f32(x[at + 2]);
    if (n > 3) a.w = kn_to_f32(x[at + 3]);
    if (n > 4) b.x = kn_to_f32(x[at + 4]);
    if (n > 5) b.y = kn_to_f32(x[at + 5]);
    if (n > 6) b.z = kn_to_f32(x[at + 6]);
    if (n > 7) b.w = kn_to_f32(x[at + 7]);
  }
  *(KN_LOCAL float4*)to = a;
  *(KN_LOCAL float4*)(to + 4) = b;
}
KN_FN uint attn_left(uint end, uint at) { return end > at ? end - at : 0u; }

KN_FN float attn_dot4(float4 a, float4 b, float sum) {
  return kn_fma(a.x, b.x, kn_fma(a.y, b.y, kn_fma(a.z, b.z, kn_fma(a.w, b.w, sum))));
}

template <uint DMAX, class Q, class K>
KN_FN void attn_tile(KN_PRIVATE const Attn& a, KN_GLOBAL const Q* q, KN_GLOBAL const K* k, KN_GLOBAL const K* v, KN_GLOBAL Q* out,
                     KN_LOCAL float* shared, uint t) {
  KN_LOCAL float* weights = shared;  // in the place of the pieces of queries and keys
  KN_LOCAL float* qs = shared;
  KN_LOCAL float* ks = shared + ATTN_ROWS * ATTN_PIECE;
  KN_LOCAL float* vs = shared + ATTN_VALUES;
  KN_LOCAL float* factor = shared + ATTN_FACTOR;
  const uint tr = t / 16, tc = t % 16, sr = t / 4, sq = t % 4;
  const bool q_vector = a.dim % 4 == 0 && kn_aligned(q, 4 * (uint)sizeof(Q));
  const bool kv_vector = a.dim % 4 == 0 && kn_aligned(k, 4 * (uint)sizeof(K)) && kn_aligned(v, 4 * (uint)sizeof(K));
  float o[DMAX / 64][4][4];
  KN_UNROLL for (uint c = 0; c < DMAX / 64; ++c)
    KN_UNROLL for (uint i = 0; i < 4; ++i)
      KN_UNROLL for (uint j = 0; j < 4; ++j) o[c][i][j] = 0;
  float m = ATTN_FLOOR, l = 0;
  uint lo, hi, begin, end, unused;
  attn_range(a, a.first, begin, unused);
  attn_range(a, a.first + ATTN_ROWS - 1, unused, end);
  attn_range(a, a.first + sr, lo, hi);
  for (uint key = begin / ATTN_KEYS * ATTN_KEYS; key < end; key += ATTN_KEYS) {
    float s[4][4];
    KN_UNROLL for (uint i = 0; i < 4; ++i)
      KN_UNROLL for (uint j = 0; j < 4; ++j) s[i][j] = 0;
    for (uint d = 0; d < a.dim; d += 32) {
      kn_barrier();
      const uint n = kn_min(attn_left(a.dim, d + 8 * sq), 8u), query = a.first + sr;
      attn_stage8(qs + sr * ATTN_PIECE + 8 * sq, q, a.q_at + query * a.q_stride + d + 8 * sq, query < a.queries ? n : 0u, q_vector);
      attn_stage8(ks + sr * ATTN_PIECE + 8 * sq, k, a.kv_at + (ulong)(key + sr) * a.dim + d + 8 * sq, key + sr < end ? n : 0u, kv_vector);
      kn_barrier();
      KN_NO_UNROLL for (uint e = 0; e < 32; e += 4) {
        float4 x[4];
        KN_UNROLL for (uint i = 0; i < 4; ++i) x[i] = *(KN_LOCAL const float4*)(qs + (4 * tr + i) * ATTN_PIECE + e);
        KN_UNROLL for (uint j = 0; j < 4; ++j) {
          const float4 y = *(KN_LOCAL const float4*)(ks + (tc + 16 * j) * ATTN_PIECE + e);
          KN_UNROLL for (uint i = 0; i < 4; ++i) s[i][j] = attn_dot4(x[i], y, s[i][j]);
        }
      }
    }
    kn_barrier();
    KN_UNROLL for (uint i = 0; i < 4; ++i)
      KN_UNROLL for (uint j = 0; j < 4; ++j) weights[(4 * tr + i) * ATTN_STRIDE + tc + 16 * j] = s[i][j];
    kn_barrier();
    float x[16], top = m;
    KN_UNROLL for (uint i = 0; i < 16; ++i) {
      const uint c = i % 4 + 4 * sq + 16 * (i / 4);
      x[i] = key + c >= lo && key + c < hi ? attn_score(a, weights[sr * ATTN_STRIDE + c]) : -KN_INF;
      top = kn_max(top, x[i]);
    }
    top = kn_max(top, kn_shfl_xor(top, 1));
    top = kn_max(top, kn_shfl_xor(top, 2));
    float sum = 0;
    KN_UNROLL for (uint i = 0; i < 16; ++i) {
      const float w = kn_exp(x[i] - top);
      sum += w;
      weights[sr * ATTN_STRIDE + i % 4 + 4 * sq + 16 * (i / 4)] = w;
    }
    sum += kn_shfl_xor(sum, 1);
    sum += kn_shfl_xor(sum, 2);
    const float shrink = kn_exp(m - top);
    l = l * shrink + sum;
    m = top;
    if (sq == 0) factor[sr] = shrink;
    kn_barrier();
    KN_UNROLL for (uint i = 0; i < 4; ++i) {
      const float f = factor[4 * tr + i];
      KN_UNROLL for (uint c = 0; c < DMAX / 64; ++c)
        KN_UNROLL for (uint j = 0; j < 4; ++j) o[c][i][j] *= f;
    }
    for (uint chunk = 0; chunk < ATTN_KEYS && key + chunk < end; chunk += 32) {
      KN_UNROLL for (uint c = 0; c < DMAX / 64; ++c) {
        if (64 * c < a.dim) {
          const uint row = key + chunk + t / 8, d = 64 * c + 8 * (t % 8), n = row < end ? kn_min(attn_left(a.dim, d), 8u) : 0u;
          attn_stage8(vs + 8 * t, v, a.kv_at + (ulong)row * a.dim + d, n, kv_vector);
          kn_barrier();
          KN_NO_UNROLL for (uint e = 0; e < 32; e += 4) {
            float4 w[4];
            KN_UNROLL for (uint i = 0; i < 4; ++i) w[i] = *(KN_LOCAL const float4*)(weights + (4 * tr + i) * ATTN_STRIDE + chunk + e);
            KN_UNROLL for (uint r = 0; r < 4; ++r) {
              const float4 y = *(KN_LOCAL const float4*)(vs + (e + r) * 64 + 4 * tc);
              KN_UNROLL for (uint i = 0; i < 4; ++i) {
                const float f = r == 0 ? w[i].x : r == 1 ? w[i].y : r == 2 ? w[i].z : w[i].w;
                o[c][i][0] = kn_fma(f, y.x, o[c][i][0]);
                o[c][i][1] = kn_fma(f, y.y, o[c][i][1]);
                o[c][i][2] = kn_fma(f, y.z, o[c][i][2]);
                o[c][i][3] = kn_fma(f, y.w, o[c][i][3]);
              }
            }
          }
          kn_barrier();
        }
      }
    }
  }
  kn_barrier();
  if (sq == 0) factor[sr] = l == 0 ? 0 : 1 / l;
  kn_barrier();
  KN_UNROLL for (uint i = 0; i < 4; ++i) {
    const uint query = a.first + 4 * tr + i;
    const float f = factor[4 * tr + i];
    KN_UNROLL for (uint c = 0; c < DMAX / 64; ++c)
      KN_UNROLL for (uint j = 0; j < 4; ++j) {
        const uint d = 64 * c + 4 * tc + j;
        if (query < a.queries && d < a.dim) out[a.q_at + query * a.q_stride + d] = kn_from_f32<Q>(f == 0 ? 0 : o[c][i][j] * f);
      }
  }
}

// Any width: the narrow ones in fewer registers.
template <class Q, class K>
KN_FN void attn_tile_any(KN_PRIVATE const Attn& a, KN_GLOBAL const Q* q, KN_GLOBAL const K* k, KN_GLOBAL const K* v, KN_GLOBAL Q* out,
                         KN_LOCAL float* shared, uint t) {
  if (a.dim <= 128) attn_tile<128>(a, q, k, v, out, shared, t);
  else if (a.dim <= 256) attn_tile<256>(a, q, k, v, out, shared, t);
  else attn_tile<512>(a, q, k, v, out, shared, t);
}

// What a block computes, from the parameters of each kind of kernel: ROWS queries of one head. Blocks start in the order of their numbers, and
// so the last queries of every head come first: in causal attention they attend the most keys.
#define ATTN_BLOCK(a, ROWS)                                                                       \
  Attn a;                                                                                         \
  const uint kn_flat = KN_GROUP_X + KN_GROUPS_X * KN_GROUP_Y, kn_head = kn_flat % KN_GROUPS_Y;    \
  a.first = (KN_GROUPS_X - 1 - kn_flat / KN_GROUPS_Y) * (ROWS);
#define ATTN_PACKED(a, p, step, CAUSAL, WINDOW, ROWS)                                             \
  ATTN_BLOCK(a, ROWS)                                                                             \
  a.dim = p.head_dim;                                                                             \
  a.queries = p.seq_len;                                                                          \
  a.keys = kn_step(p.kv_seq_len, step);                                                           \
  a.causal = CAUSAL;                                                                              \
  a.window = WINDOW;                                                                              \
  a.scale = p.scale;                                                                              \
  a.softcap = 0;                                                                                  \
  a.q_stride = p.head_dim;                                                                        \
  a.q_at = ((ulong)KN_GROUP_Z * p.n_heads + kn_head) * p.seq_len * p.head_dim;                 \
  a.kv_at = ((ulong)KN_GROUP_Z * p.n_kv_heads + kn_head / (p.n_heads / p.n_kv_heads)) *        \
            (p.kv_capacity == 0 ? p.kv_seq_len.value : p.kv_capacity) * p.head_dim;
#define ATTN_TOKENS(a, p, step, ROWS)                                                             \
  ATTN_BLOCK(a, ROWS)                                                                             \
  a.dim = p.head_dim;                                                                             \
  a.queries = p.seq_len;                                                                          \
  a.keys = kn_step(p.kv_seq_len, step);                                                           \
  a.causal = 1;                                                                                   \
  a.window = p.window;                                                                            \
  a.scale = p.scale;                                                                              \
  a.softcap = p.softcap;                                                                          \
  a.q_stride = (ulong)p.n_heads * p.head_dim;                                                     \
  a.q_at = (ulong)kn_head * p.head_dim;                                                           \
  a.kv_at = (ulong)(kn_head / (p.n_heads / p.n_kv_heads)) * p.kv_capacity * p.head_dim;
