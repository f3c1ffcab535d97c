// Attention of single tokens over a cache: o = softmax(softcap(scale q k^T)) v, for any head up to 512 wide.
//
// A block takes up to DECODE_HEADS query heads that share a KV head, so that each key and value is loaded once for all of them. A warp takes
// blocks of 32 keys in turn, a row by as many lanes as it has pieces of 16 bytes, several rows in flight; each set of lanes keeps maximum, sum
// and accumulator of its own keys, and at the end the sets are merged in threadgroup memory. In the partitioned kernels block b of 32 keys
// belongs to partition b mod nwg, which leaves maximum, sum and accumulator for the kernel that merges partitions: for row rho, four elements v
// of the head and element c of them, o is at ((rho * dim / 4 + v) * nwg + g) * 4 + c; behind all of these are the pairs (sum, maximum) of
// row rho and partition g at 2 * (rho * nwg + g).

#define DECODE_HEADS 4u
#define DECODE_WORKERS 8u  // warps of a block that take keys
#define DECODE_FLOOR (-1.70141173e38f)
#define DECODE_SETS 64u    // sets of lanes: at most eight a warp
#define DECODE_SHARED 4096u

// One token of one sequence.
struct Decode {
  uint dim, heads;         // elements of a head; query heads of this block
  uint lo, hi;             // keys attended
  uint part, parts;        // partition, and how many there are
  float scale, softcap;
  ulong q_at, q_stride;    // head h of the block is at q_at + h * q_stride
  ulong kv_at;
  ulong row, rows;         // row of the output of the block's first head, and rows in all
};

// 16 bytes of a row, widened; zeros from `n` elements on.
template <bool VECTOR> KN_FN void decode_piece(KN_PRIVATE float (&x)[4], KN_GLOBAL const float* p, uint n) {
  if (VECTOR) {
    const float4 w = n >= 4 ? *(KN_GLOBAL const float4*)p : kn_f4(0, 0, 0, 0);
    x[0] = w.x;
    x[1] = w.y;
    x[2] = w.z;
    x[3] = w.w;
  } else {
    KN_UNROLL for (uint e = 0; e < 4; ++e) x[e] = e < n ? p[e] : 0.0f;
  }
}
template <bool VECTOR, class T> KN_FN void decode_piece(KN_PRIVATE float (&x)[8], KN_GLOBAL const T* p, uint n) {
  if (VECTOR) {
    const uint4 w = n >= 8 ? kn_load16(p) : kn_u4(0, 0, 0, 0);
    const float2 a = kn_unpack<T>(w.x), b = kn_unpack<T>(w.y), c = kn_unpack<T>(w.z), d = kn_unpack<T>(w.w);
    x[0] = a.x;
    x[1] = a.y;
    x[2] = b.x;
    x[3] = b.y;
    x[4] = c.x;
    x[5] = c.y;
    x[6] = d.x;
    x[7] = d.y;
  } else {
    KN_UNROLL for (uint e = 0; e < 8; ++e) x[e] = e < n ? kn_to_f32(p[e]) : 0.0f;
  }
}
KN_FN uint decode_left(uint end, uint at) { return end > at ? end - at : 0u; }

// Where the result or the partial result of a row goes.
KN_FN void decode_store(KN_PRIVATE const Decode& a, KN_GLOBAL float* out, KN_GLOBAL float* partial, uint h, uint d, float o, float m, float l) {
  const ulong row = a.row + h;
  if (a.parts == 1) {
    out[row * a.dim + d] = l == 0 ? 0 : o / l;
    return;
  }
  partial[((row * (a.dim / 4) + d / 4) * a.parts + a.part) * 4 + d % 4] = o;
  if (d == 0) {
    KN_GLOBAL float* pair = partial + a.rows * a.dim * a.parts + 2 * (row * a.parts + a.part);
    pair[0] = l;
    pair[1] = m;
  }
}

// Four elements of it at once.
KN_FN void decode_store4(KN_PRIVATE const Decode& a, KN_GLOBAL float* out, KN_GLOBAL float* partial, uint h, uint d, float4 o, float m, float l) {
  KN_GLOBAL float* to = a.parts == 1 ? out + (a.row + h) * a.dim + d : partial + (((a.row + h) * (a.dim / 4) + d / 4) * a.parts + a.part) * 4;
  if (a.parts == 1) {
    const float f = l == 0 ? 0 : 1 / l;
    o = kn_f4(o.x * f, o.y * f, o.z * f, o.w * f);
  } else if (d == 0) {
    KN_GLOBAL float* pair = partial + a.rows * a.dim * a.parts + 2 * ((a.row + h) * a.parts + a.part);
    pair[0] = l;
    pair[1] = m;
  }
  if (kn_aligned(to, 16)) {
    kn_store4(to, o);
  } else {
    to[0] = o.x;
    to[1] = o.y;
    to[2] = o.z;
    to[3] = o.w;
  }
}

template <uint DMAX, bool VECTOR, class T>
KN_FN void decode_head(KN_PRIVATE const Decode& a, KN_GLOBAL const float* q, KN_GLOBAL const T* k, KN_GLOBAL const T* v, KN_GLOBAL float* out,
                       KN_GLOBAL float* partial, KN_LOCAL float* shared, KN_LOCAL float* sums, uint t, uint threads, uint lane, uint warp) {
  constexpr uint E = 16 / (uint)sizeof(T), PIECES = DMAX / E, LANES = PIECES < KN_WARP ? PIECES : KN_WARP;
  constexpr uint CHUNKS = PIECES / LANES, ROWS = KN_WARP / LANES, MANY = CHUNKS >= 4 ? 1 : 4 / CHUNKS;
  const uint set = lane / LANES, at = lane % LANES * E;
  const uint workers = kn_min(threads / KN_WARP, DECODE_WORKERS);
  float x[DECODE_HEADS][CHUNKS][E], o[DECODE_HEADS][CHUNKS][E], m[DECODE_HEADS], l[DECODE_HEADS];
  KN_UNROLL for (uint h = 0; h < DECODE_HEADS; ++h) {
    m[h] = DECODE_FLOOR;
    l[h] = 0;
    KN_UNROLL for (uint c = 0; c < CHUNKS; ++c)
      KN_UNROLL for (uint e = 0; e < E; ++e) {
        const uint d = c * LANES * E + at + e;
        x[h][c][e] = h < a.heads && d < a.dim ? q[a.q_at + h * a.q_stride + d] : 0.0f;
        o[h][c][e] = 0;
      }
  }
  // Blocks of 32 keys: the first of this partition that has an attended key, and from there on every `parts` times `workers`-th.
  const uint first = a.lo / 32, block = first + (a.part + a.parts - first % a.parts) % a.parts + a.parts * warp;
  const uint end = warp < workers ? a.hi : 0u;
  for (ulong begin = 32ul * block; begin < end; begin += 32ul * a.parts * workers) {
    KN_NO_UNROLL for (uint key = (uint)begin; key < (uint)begin + 32 && key < end; key += ROWS * MANY) {
      float kx[MANY][CHUNKS][E], vx[MANY][CHUNKS][E], s[MANY][DECODE_HEADS];
      KN_UNROLL for (uint u = 0; u < MANY; ++u) {
        // Rows from the end on are the last one again, with weight zero.
        const ulong row = a.kv_at + (ulong)kn_min(key + u * ROWS + set, end - 1) * a.dim;
        KN_UNROLL for (uint c = 0; c < CHUNKS; ++c) {
          const uint d = c * LANES * E + at;
          decode_piece<VECTOR>(kx[u][c], k + row + d, decode_left(a.dim, d));
          decode_piece<VECTOR>(vx[u][c], v + row + d, decode_left(a.dim, d));
        }
      }
      KN_UNROLL for (uint h = 0; h < DECODE_HEADS; ++h) {
        float top = m[h];
        KN_UNROLL for (uint u = 0; u < MANY; ++u) {
          float dot = 0;
          KN_UNROLL for (uint c = 0; c < CHUNKS; ++c)
            KN_UNROLL for (uint e = 0; e < E; ++e) dot = kn_fma(x[h][c][e], kx[u][c][e], dot);
          for (uint i = LANES / 2; i; i /= 2) dot += kn_shfl_xor(dot, i);
          dot *= a.scale;
          // tanh(y) = 1 - 2 / (exp(2 y) + 1): what it loses near 0 is nothing to an exponent.
          if (a.softcap > 0) dot = a.softcap - 2 * a.softcap / (kn_exp_fast(2 * dot / a.softcap) + 1);
          const uint j = key + u * ROWS + set;
          s[u][h] = j >= a.lo && j < end ? dot : -KN_INF;
          top = kn_max(top, s[u][h]);
        }
        const float shrink = kn_exp_fast(m[h] - top);
        m[h] = top;
        l[h] *= shrink;
        KN_UNROLL for (uint u = 0; u < MANY; ++u) {
          s[u][h] = kn_exp_fast(s[u][h] - top);
          l[h] += s[u][h];
        }
        KN_UNROLL for (uint c = 0; c < CHUNKS; ++c)
          KN_UNROLL for (uint e = 0; e < E; ++e) {
            float sum = o[h][c][e] * shrink;
            KN_UNROLL for (uint u = 0; u < MANY; ++u) sum = kn_fma(s[u][h], vx[u][c][e], sum);
            o[h][c][e] = sum;
          }
      }
    }
  }
  // Merge of the sets of lanes, one head at a time.
  const uint sets = workers * ROWS, mine = warp * ROWS + set;
  for (uint head = 0; head < a.heads; ++head) {
    KN_UNROLL for (uint h = 0; h < DECODE_HEADS; ++h) {
      if (h == head && warp < workers) {
        KN_UNROLL for (uint c = 0; c < CHUNKS; ++c)
          KN_UNROLL for (uint e = 0; e < E; ++e) shared[mine * DMAX + c * LANES * E + at + e] = o[h][c][e];
        if (at == 0) {
          sums[2 * mine] = l[h];
          sums[2 * mine + 1] = m[h];
        }
      }
    }
    kn_barrier();
    float top = DECODE_FLOOR, sum = 0;
    for (uint i = 0; i < sets; ++i) top = kn_max(top, sums[2 * i + 1]);
    for (uint i = 0; i < sets; ++i) sum += sums[2 * i] * kn_exp(sums[2 * i + 1] - top);
    for (uint d = t; d < a.dim; d += threads) {
      float total = 0;
      for (uint i = 0; i < sets; ++i) total = kn_fma(shared[i * DMAX + d], kn_exp(sums[2 * i + 1] - top), total);
      decode_store(a, out, partial, head, d, total, top, sum);
    }
    kn_barrier();
  }
}

#define DECODE_ARGS KN_THREAD_X, KN_BLOCK_X, KN_LANE, KN_WARP_ID
// Rows that allow no loads of 16 bytes are read by the element, in a form that takes any width.
#define DECODE_VECTOR(a, k, v, T) (a.dim % (16 / (uint)sizeof(T)) == 0 && kn_aligned(k, 16) && kn_aligned(v, 16))
#define DECODE_RUN(DMAX, VECTOR, partial) decode_head<DMAX, VECTOR>(a, q, k, v, out, partial, shared, sums, DECODE_ARGS)

// Group y: the KV head, and which of its query heads where they are more than a block takes.
#define DECODE_SHAPE(a, p, step, HEADS)                                                          \
  Decode a;                                                                                      \
  const uint kn_shared_by = p.n_heads / p.n_kv_heads, kn_cuts = kn_cdiv(kn_shared_by, HEADS);    \
  const uint kn_kv = KN_GROUP_Y / kn_cuts, kn_skip = KN_GROUP_Y % kn_cuts * HEADS;               \
  const uint kn_head = kn_kv * kn_shared_by + kn_skip;                                           \
  a.heads = kn_min(kn_shared_by - kn_skip, HEADS);                                               \
  a.dim = p.head_dim;                                                                            \
  a.lo = 0;                                                                                      \
  a.hi = kn_step(p.kv_seq_len, step);                                                            \
  a.scale = p.scale;                                                                             \
  a.kv_at = (ulong)kn_kv * p.kv_capacity * p.head_dim;                                           \
  a.part = 0;                                                                                    \
  a.parts = 1;                                                                                   \
  a.softcap = 0;                                                                                 \
  a.q_at = (ulong)kn_head * p.head_dim;                                                          \
  a.q_stride = p.head_dim;                                                                       \
  a.row = kn_head;                                                                               \
  a.rows = p.n_heads;
// Queries [head, token, element], outputs [token, head, element], tokens at the end of the cache.
#define DECODE_PARTITION(a, p, step, HEADS)                                                      \
  DECODE_SHAPE(a, p, step, HEADS)                                                                \
  a.softcap = p.softcap;                                                                         \
  a.part = KN_GROUP_Z;                                                                           \
  a.parts = p.nwg;                                                                               \
  a.q_at = ((ulong)kn_head * p.seq_len + KN_GROUP_X) * p.head_dim;                               \
  a.q_stride = (ulong)p.seq_len * p.head_dim;                                                    \
  a.row = (ulong)KN_GROUP_X * p.n_heads + kn_head;                                               \
  a.rows = (ulong)p.seq_len * p.n_heads;                                                         \
  if (p.mask_type != 0) {                                                                        \
    const uint kn_end = a.hi + KN_GROUP_X + 1;                                                   \
    a.hi = kn_min(kn_end > p.seq_len ? kn_end - p.seq_len : 0u, a.hi);                           \
    if (p.mask_type == 2 && p.sliding_window != 0 && a.hi > p.sliding_window) a.lo = a.hi - p.sliding_window; \
  }
