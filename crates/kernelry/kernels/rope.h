// Rotary position embedding: pair p of a head turns by a = position * inv_freq[p] / factor[p], which is
// (x0, x1) -> (x0 cos a - x1 sin a, x0 sin a + x1 cos a). Pairs are (2p, 2p + 1), or (p, p + head_dim / 2) where halves are split.
//
// Sine and cosine cost far more than the rotation, so a thread keeps a pair and takes it through several heads of one position.
// Each pair is read and written by one thread alone: outputs may be inputs.

// The angle is rounded after the product and after the division.
KN_FN void rope_angle(KN_PRIVATE float& c, KN_PRIVATE float& s, uint position, float frequency, float factor) {
  const float angle = kn_mul_rn((float)position, frequency) / factor;
  c = kn_cos(angle);
  s = kn_sin(angle);
}

#define ROPE_HEADS 4u  // heads of a thread that are in flight at once

// Block: x runs over pairs, y over heads; group x is the position, group y a share of the heads.
template <bool SPLIT, class T>
KN_FN void rope_position(KN_GLOBAL const T* x, KN_GLOBAL const uint* positions, KN_GLOBAL const float* inv_freq,
                         KN_GLOBAL const float* factors, bool has_factors, KN_GLOBAL T* out, KN_PARAMS const RopeParams& p, uint row,
                         uint first_pair, uint pair_step, uint first_head, uint head_step) {
  const ulong base = (ulong)row * p.n_heads * p.head_dim;
  const uint pairs = p.head_dim / 2;
  for (uint pair = first_pair; pair < pairs; pair += pair_step) {
    const uint i = SPLIT ? pair : 2 * pair, j = SPLIT ? pair + pairs : 2 * pair + 1;
    const bool turns = pair < p.rope_dim / 2;
    float c = 1, s = 0;
    if (turns) rope_angle(c, s, positions[row], inv_freq[pair], has_factors ? factors[pair] : 1.0f);
    for (uint h = first_head; h < p.n_heads; h += ROPE_HEADS * head_step) {
      T a[ROPE_HEADS], b[ROPE_HEADS];
      KN_UNROLL for (uint k = 0; k < ROPE_HEADS; ++k) {
        const ulong at = base + (ulong)(h + k * head_step) * p.head_dim;
        if (h + k * head_step < p.n_heads) a[k] = x[at + i], b[k] = x[at + j];
      }
      KN_UNROLL for (uint k = 0; k < ROPE_HEADS; ++k) {
        if (h + k * head_step < p.n_heads) {
          const ulong at = base + (ulong)(h + k * head_step) * p.head_dim;
          const float u = kn_to_f32(a[k]), v = kn_to_f32(b[k]);
          // What does not turn is copied as it is.
          out[at + i] = turns ? kn_from_f32<T>(u * c - v * s) : a[k];
          out[at + j] = turns ? kn_from_f32<T>(u * s + v * c) : b[k];
        }
      }
    }
  }
}

#define ROPE(name, T, SPLIT)                                                                                                        \
  KN_KERNEL(name, 256, RopeParams, KN_IN_ALIAS(0, T, x), KN_IN(1, uint, positions), KN_IN(2, float, inv_freq),                      \
            KN_IN(3, float, factors), KN_OUT_ALIAS(4, T, out)) {                                                                    \
    rope_position<SPLIT, T>(x, positions, inv_freq, factors, KN_HAS(3, factors), out, p, KN_GROUP_X, KN_THREAD_X, KN_BLOCK_X,       \
                            KN_GROUP_Y * KN_BLOCK_Y + KN_THREAD_Y, KN_GROUPS_Y * KN_BLOCK_Y);                                       \
  }

ROPE(rope_f32, float, false)
ROPE(rope_f16, kn_f16, false)
ROPE(rope_bf16, kn_bf16, false)
ROPE(rope_neox_f32, float, true)
ROPE(rope_neox_bf16, kn_bf16, true)

// RMS norm of each head, then its rotation by split halves. A block takes a position, whose sines and cosines it puts into a table once, a
// warp one head after the other, a lane its pairs. The elements of up to HEAD_KEEP pairs a lane stay in registers, so that x is read once;
// pairs of wider heads are read again, and pairs beyond the table have their angle taken again.
#define HEAD_KEEP 8u
#define HEAD_TABLE 512u

// Norm and rotation of one pair of a row, and its copies, which are absent or stand at rows of their own.
KN_FN void head_store(float a, float b, float scale, float c, float s, bool turns, KN_GLOBAL const float* w, bool has_w,
                      KN_GLOBAL float* out, KN_GLOBAL kn_bf16* copy, bool has_copy, KN_GLOBAL float* perm, bool has_perm, ulong row,
                      ulong copy_row, ulong perm_row, uint pair, uint pairs) {
  a *= scale;
  b *= scale;
  if (has_w) {
    a *= w[pair];
    b *= w[pair + pairs];
  }
  const float y0 = turns ? a * c - b * s : a, y1 = turns ? a * s + b * c : b;
  const uint dim = 2 * pairs;
  out[row * dim + pair] = y0;
  out[row * dim + pair + pairs] = y1;
  if (has_copy) {
    copy[copy_row * dim + pair] = kn_from_f32<kn_bf16>(y0);
    copy[copy_row * dim + pair + pairs] = kn_from_f32<kn_bf16>(y1);
  }
  if (has_perm) {
    perm[perm_row * dim + pair] = y0;
    perm[perm_row * dim + pair + pairs] = y1;
  }
}

// Sine and cosine of a pair, by the table if it is in there.
KN_FN void head_angle(KN_PRIVATE float& c, KN_PRIVATE float& s, KN_LOCAL const float* table, uint pair, uint position,
                      KN_GLOBAL const float* inv_freq, KN_GLOBAL const float* factors, bool has_factors) {
  if (pair < HEAD_TABLE) {
    c = table[pair];
    s = table[HEAD_TABLE + pair];
  } else {
    rope_angle(c, s, position, inv_freq[pair], has_factors ? factors[pair] : 1.0f);
  }
}

// Heads `first`, `first + step`, ... of position `t` by one warp of a block of `n` threads, of which this is `at`.
KN_FN void head_norm_rope(KN_GLOBAL const float* x, KN_GLOBAL const float* w, bool has_w, uint position, KN_GLOBAL const float* inv_freq,
                          KN_GLOBAL const float* factors, bool has_factors, KN_GLOBAL float* out, KN_GLOBAL kn_bf16* copy, bool has_copy,
                          KN_GLOBAL float* perm, bool has_perm, KN_PARAMS const HeadNormRopeParams& p, KN_LOCAL float* table, uint t,
                          uint first, uint step, uint lane, uint at, uint n) {
  const uint pairs = p.head_dim / 2;
  for (uint pair = at; pair < kn_min(p.half_rope, HEAD_TABLE); pair += n) {
    float c, s;
    rope_angle(c, s, position, inv_freq[pair], has_factors ? factors[pair] : 1.0f);
    table[pair] = c;
    table[HEAD_TABLE + pair] = s;
  }
  kn_barrier();
  for (uint h = first; h < p.n_heads; h += step) {
    const ulong row = (ulong)t * p.n_heads + h, perm_row = (ulong)h * p.seq_len + t;
    const ulong copy_row = p.bf16_permuted != 0 ? perm_row : row;
    KN_GLOBAL const float* head = x + row * p.head_dim;
    float a[HEAD_KEEP], b[HEAD_KEEP], squares = 0;
    KN_UNROLL for (uint k = 0; k < HEAD_KEEP; ++k) {
      const uint pair = lane + k * KN_WARP;
      a[k] = pair < pairs ? head[pair] : 0.0f;
      b[k] = pair < pairs ? head[pair + pairs] : 0.0f;
    }
    KN_UNROLL for (uint k = 0; k < HEAD_KEEP; ++k) squares += a[k] * a[k] + b[k] * b[k];
    for (uint pair = lane + HEAD_KEEP * KN_WARP; pair < pairs; pair += KN_WARP) {
      const float u = head[pair], v = head[pair + pairs];
      squares += u * u + v * v;
    }
    const float scale = kn_rsqrt(kn_warp_sum(squares) / (float)p.head_dim + p.eps);
    KN_UNROLL for (uint k = 0; k < HEAD_KEEP; ++k) {
      const uint pair = lane + k * KN_WARP;
      const bool turns = pair < p.half_rope;
      if (pair < pairs) {
        // At most 512 pairs are kept whatever the width of a warp: they are in the table.
        const float c = turns ? table[pair] : 1.0f, s = turns ? table[HEAD_TABLE + pair] : 0.0f;
        head_store(a[k], b[k], scale, c, s, turns, w, has_w, out, copy, has_copy, perm, has_perm, row, copy_row, perm_row, pair, pairs);
      }
    }
    for (uint pair = lane + HEAD_KEEP * KN_WARP; pair < pairs; pair += KN_WARP) {
      const bool turns = pair < p.half_rope;
      float c = 1, s = 0;
      if (turns) head_angle(c, s, table, pair, position, inv_freq, factors, has_factors);
      head_store(head[pair], head[pair + pairs], scale, c, s, turns, w, has_w, out, copy, has_copy, perm, has_perm, row, copy_row, perm_row,
                 pair, pairs);
    }
  }
}

#define HEAD_NORM_ROPE(name)                                                                                                        \
  KN_KERNEL(name, 128, HeadNormRopeParams, KN_IN_ALIAS(0, float, x), KN_IN(1, float, w), KN_IN(2, uint, positions),                 \
            KN_IN(3, float, inv_freq), KN_IN(4, float, factors), KN_OUT_ALIAS(5, float, out), KN_OUT(6, kn_bf16, copy),             \
            KN_OUT(7, float, perm)) {                                                                                               \
    KN_SHARED(float, table, 2 * HEAD_TABLE);                                                                                        \
    const uint warps = KN_BLOCK_X / KN_WARP;                                                                                        \
    head_norm_rope(x, w, KN_HAS(1, w), positions[KN_GROUP_X], inv_freq, factors, KN_HAS(4, factors), out, copy, KN_HAS(6, copy),    \
                   perm, KN_HAS(7, perm), p, table, KN_GROUP_X, KN_GROUP_Y * warps + KN_WARP_ID, KN_GROUPS_Y * warps, KN_LANE,      \
                   KN_THREAD_X, KN_BLOCK_X);                                                                                        \
  }

HEAD_NORM_ROPE(fused_head_norm_rope_f32)
HEAD_NORM_ROPE(fused_head_norm_rope_f32_v2)
