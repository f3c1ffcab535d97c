// Decoders of GGML blocks: everything that a kernel knows of a format.
//
// A block is cut into groups of 32 values, a group into four quarters: quarter t has the values 4t..4t+3 and 16+4t..16+4t+3, so that four
// lanes share a group by neighbouring words. A decoder gives the integer codes of a quarter as f16, which holds them exactly, in four words:
// values (0, 2) and (1, 3) of the first four, then of the second four. This order of k within each four is the order in which all products
// here keep activations too (BLK_K), since a word of nibbles or bytes splits into pairs two bytes apart with one operation.
//
// The weight is scale * code + offset, where scale differs between the halves of a group in formats with HALVES. scale * code is exact in f32.
//
// The row kernels take one of two other forms. `bytes`: the codes of a quarter as two words of signed bytes, times 2^BYTE_SHIFT, or as the sums of
// two such where BYTE_WORDS is four. `small` f16, in four words as above: a code as the last bits of an f16, which costs nothing, is 2^-24 times the
// code, exactly. It is LESS too large, then times 2^SHIFT. PLACED: 16 times that in odd groups (BLK_ODD) or in the second four values
// (BLK_SECOND), to be met by activations that are 16 times smaller there; BLK_MIXED: values are in the order 0 16 1 17 2 18 3 19, as bytes and small.
//
// A format: LEN values in BYTES bytes; GROUPS of 32 in a block; Word, the widest unit that its fields are aligned to (P is a pointer to Word or to
// ushort in any address space); Q words of codes of a quarter, H words of a head. OFFSET: whether there is an offset. PLAIN: scale and offset
// are f16 as stored, both in head word 0. For rows.h, which takes 256 values of a row at once: `ahead` reads S words of what these values share,
// `part` gives scale and offset of a group but for the factors that `whole` gives; STRIDE is the bytes of a row of 256 values in threadgroup
// memory, room for 14 bytes before it, spread over the banks.

#define BLK_1024 0x64006400u  // f16 1024, whose last bit counts 1: or-ing a code of up to 10 bits adds it
#define BLK_ONE 0x3c003c00u
#define BLK_ODD 1
#define BLK_SECOND 2
#define BLK_MIXED 4
#define BLK_PLACEDTH 0x2c002c00u

template <class P> KN_FN uint blk_u16(P p, uint byte) {
  return sizeof(*p) == 2 ? (uint)p[byte / 2] : ((uint)p[byte / 4] >> (8 * (byte & 2))) & 0xffffu;
}
template <class P> KN_FN uint blk_u32(P p, uint byte) {
  return sizeof(*p) == 4 ? (uint)p[byte / 4] : (uint)p[byte / 2] | (uint)p[byte / 2 + 1] << 16;
}
KN_FN float blk_low_f16(uint w) { return kn_f16_to_f32((ushort)(w & 0xffffu)); }
KN_FN float blk_high_f16(uint w) { return kn_f16_to_f32((ushort)(w >> 16)); }

// Byte `i` of a word as f32, unsigned, times 2^-24: what it is as the last bits of an f16.
KN_FN float blk_byte(uint w, uint i) {
  const uint two = i % 2 ? kn_permute(w, 0, 0x4341u) : kn_permute(w, 0, 0x4240u);
  return kn_f16_to_f32((ushort)(two >> 8 * (i & 2)));
}

// Codes at bits 0..4 of each half of `w`, and at bits 4..8, which are 16 times as large; less what `bias` takes off.
KN_FN uint blk_code(uint w, uint bias) { return kn_fma_h2(w | BLK_1024, BLK_ONE, bias); }
KN_FN uint blk_code16(uint w, uint bias) { return kn_fma_h2(w | BLK_1024, BLK_PLACEDTH, bias); }
// Four codes in bytes: (0, 2) and (1, 3).
KN_FN void blk_bytes(uint w, uint bias, KN_PRIVATE uint& even, KN_PRIVATE uint& odd) {
  even = blk_code(w & 0x00ff00ffu, bias);
  odd = blk_code((w >> 8) & 0x00ff00ffu, bias);
}
// The same as `small` codes.
KN_FN void blk_small(uint w, KN_PRIVATE uint& even, KN_PRIVATE uint& odd) {
  even = kn_permute(w, 0, 0x4240u);
  odd = kn_permute(w, 0, 0x4341u);
}
// Eight codes in nibbles: the low ones are the first four.
KN_FN void blk_nibbles(uint w, uint bias, uint bias16, KN_PRIVATE uint (&c)[4]) {
  c[0] = blk_code(w & 0x000f000fu, bias);
  c[1] = blk_code((w >> 8) & 0x000f000fu, bias);
  c[2] = blk_code16(w & 0x00f000f0u, bias16);
  c[3] = blk_code16((w >> 8) & 0x00f000f0u, bias16);
}

// Formats whose groups share nothing.
#define BLK_APART                                                                                                                      \
  template <class P> static KN_FN void ahead(P, KN_PRIVATE uint (&s)[S]) { s[0] = 0; }                                                 \
  template <class P>                                                                                                                   \
  static KN_FN void part(P p, KN_PRIVATE const uint (&)[S], uint g, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& o) { \
    uint h[H];                                                                                                                         \
    head(p, g, h);                                                                                                                     \
    scale(h, g, s0, s1, o);                                                                                                            \
  }                                                                                                                                    \
  static KN_FN void whole(KN_PRIVATE const uint (&)[S], KN_PRIVATE float& scale, KN_PRIVATE float& offset) { scale = offset = 1; }

struct BlkQ4_0 {
  enum {
    LEN = 32, BYTES = 18, GROUPS = 1, Q = 1, H = 1, HALVES = 0, OFFSET = 0, PLAIN = 1,
    S = 1, BYTE_WORDS = 2, BYTE_SHIFT = 4, SHIFT = 0, LESS = 8, PLACED = BLK_SECOND, STRIDE = 176,
  };
  typedef ushort Word;
  template <class P> static KN_FN void load(P p, uint, uint t, KN_PRIVATE uint (&q)[Q]) { q[0] = blk_u32(p, 2 + 4 * t); }
  template <class P> static KN_FN void head(P p, uint, KN_PRIVATE uint (&h)[H]) { h[0] = blk_u16(p, 0); }
  static KN_FN void codes(KN_PRIVATE const uint (&q)[Q], uint, uint, KN_PRIVATE uint (&c)[4]) {
    blk_nibbles(q[0], 0xe408e408u, 0xd480d480u, c);  // -1032, -72
  }
  static KN_FN void bytes(KN_PRIVATE const uint (&q)[Q], uint, uint, KN_PRIVATE uint (&c)[2]) {
    c[0] = ((q[0] << 4) ^ 0x80808080u) & 0xf0f0f0f0u;
    c[1] = (q[0] ^ 0x80808080u) & 0xf0f0f0f0u;
  }
  static KN_FN void small(KN_PRIVATE const uint (&q)[Q], uint, uint, KN_PRIVATE uint (&c)[4]) {
    const uint odd = q[0] >> 8;
    c[0] = q[0] & 0x000f000fu;
    c[1] = odd & 0x000f000fu;
    c[2] = q[0] & 0x00f000f0u;
    c[3] = odd & 0x00f000f0u;
  }
  BLK_APART
  static KN_FN void scale(KN_PRIVATE const uint (&h)[H], uint, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& offset) {
    s0 = s1 = blk_low_f16(h[0]);
    offset = 0;
  }
};

struct BlkIQ4_NL {
  enum {
    LEN = 32, BYTES = 18, GROUPS = 1, Q = 2, H = 1, HALVES = 0, OFFSET = 0, PLAIN = 1,
    S = 1, BYTE_WORDS = 4, BYTE_SHIFT = 0, SHIFT = 0, LESS = 128, PLACED = BLK_MIXED, STRIDE = 176,
  };
  typedef ushort Word;
  template <class P> static KN_FN void load(P p, uint, uint t, KN_PRIVATE uint (&q)[Q]) {
    q[0] = blk_u16(p, 2 + 4 * t);
    q[1] = blk_u16(p, 4 + 4 * t);
  }
  template <class P> static KN_FN void head(P p, uint, KN_PRIVATE uint (&h)[H]) { h[0] = blk_u16(p, 0); }
  // Four nibbles through the table of 16 values, -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113, each 128 too large: values
  // i, 16 + i, i + 1, 17 + i.
  static KN_FN uint look_up(uint w) {
    const uint index = w & 0x7777u;
    const uint low = kn_permute(0x3f2d1801u, 0x766a5d4fu, index), high = kn_permute(0xa6998d81u, 0xf1d9c5b5u, index);
    return kn_permute(low, high, ((w & 0x8888u) >> 1) | 0x3210u);
  }
  static KN_FN void codes(KN_PRIVATE const uint (&q)[Q], uint, uint, KN_PRIVATE uint (&c)[4]) {
    const uint a = look_up(q[0]), b = look_up(q[1]);
    blk_bytes(kn_permute(a, b, 0x6420u), 0xe480e480u, c[0], c[1]);  // -1152
    blk_bytes(kn_permute(a, b, 0x7531u), 0xe480e480u, c[2], c[3]);
  }
  // As the sum of two look-ups: a nibble that is beyond one half of the table gives eight times the sign of what it would meet, -1 in the half of
  // negative values and 0 in the other, whose values are one larger for that.
  static KN_FN void bytes(KN_PRIVATE const uint (&q)[Q], uint, uint, KN_PRIVATE uint (&c)[4]) {
    for (uint i = 0; i < 2; ++i) {
      c[i] = kn_permute_signs(0xbfad9881u, 0xf6eaddcfu, q[i]);
      c[2 + i] = kn_permute_signs(0x271a0e02u, 0x725a4636u, q[i] ^ 0x8888u);
    }
  }
  static KN_FN void small(KN_PRIVATE const uint (&q)[Q], uint, uint, KN_PRIVATE uint (&c)[4]) {
    for (uint i = 0; i < 2; ++i) {
      const uint four = look_up(q[i]);
      c[2 * i] = kn_permute(four, 0, 0x4140u);
      c[2 * i + 1] = kn_permute(four, 0, 0x4342u);
    }
  }
  BLK_APART
  static KN_FN void scale(KN_PRIVATE const uint (&h)[H], uint, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& offset) {
    s0 = s1 = blk_low_f16(h[0]);
    offset = 0;
  }
};

struct BlkQ8_0 {
  enum {
    LEN = 32, BYTES = 34, GROUPS = 1, Q = 2, H = 1, HALVES = 0, OFFSET = 0, PLAIN = 1,
    S = 1, BYTE_WORDS = 2, BYTE_SHIFT = 0, SHIFT = 0, LESS = 128, PLACED = 0, STRIDE = 304,
  };
  typedef ushort Word;
  template <class P> static KN_FN void load(P p, uint, uint t, KN_PRIVATE uint (&q)[Q]) {
    q[0] = blk_u32(p, 2 + 4 * t);
    q[1] = blk_u32(p, 18 + 4 * t);
  }
  template <class P> static KN_FN void head(P p, uint, KN_PRIVATE uint (&h)[H]) { h[0] = blk_u16(p, 0); }
  static KN_FN void codes(KN_PRIVATE const uint (&q)[Q], uint, uint, KN_PRIVATE uint (&c)[4]) {
    blk_bytes(q[0] ^ 0x80808080u, 0xe480e480u, c[0], c[1]);  // -1152
    blk_bytes(q[1] ^ 0x80808080u, 0xe480e480u, c[2], c[3]);
  }
  static KN_FN void bytes(KN_PRIVATE const uint (&q)[Q], uint, uint, KN_PRIVATE uint (&c)[2]) {
    c[0] = q[0];
    c[1] = q[1];
  }
  static KN_FN void small(KN_PRIVATE const uint (&q)[Q], uint, uint, KN_PRIVATE uint (&c)[4]) {
    for (uint i = 0; i < 2; ++i) {
      c[2 * i] = (q[i] & 0x00ff00ffu) ^ 0x00800080u;
      c[2 * i + 1] = ((q[i] >> 8) & 0x00ff00ffu) ^ 0x00800080u;
    }
  }
  BLK_APART
  static KN_FN void scale(KN_PRIVATE const uint (&h)[H], uint, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& offset) {
    s0 = s1 = blk_low_f16(h[0]);
    offset = 0;
  }
};

struct BlkQ5_1 {
  enum {
    LEN = 32, BYTES = 24, GROUPS = 1, Q = 2, H = 1, HALVES = 0, OFFSET = 1, PLAIN = 1,
    S = 1, BYTE_WORDS = 2, BYTE_SHIFT = 0, SHIFT = 0, LESS = 0, PLACED = 0, STRIDE = 208,
  };
  typedef uint Word;
  template <class P> static KN_FN void load(P p, uint, uint t, KN_PRIVATE uint (&q)[Q]) {
    q[0] = blk_u32(p, 8 + 4 * t);
    q[1] = blk_u32(p, 4);
  }
  template <class P> static KN_FN void head(P p, uint, KN_PRIVATE uint (&h)[H]) { h[0] = blk_u32(p, 0); }
  static KN_FN void codes(KN_PRIVATE const uint (&q)[Q], uint, uint t, KN_PRIVATE uint (&c)[4]) {
    const uint w = q[0], high = q[1] >> (4 * t);  // fifth bits of the first four at 0..4, of the second four at 16..20
    c[0] = blk_code((w & 0x000f000fu) | ((high << 4) & 0x10u) | ((high << 18) & 0x100000u), 0xe400e400u);  // -1024
    c[1] = blk_code(((w >> 8) & 0x000f000fu) | ((high << 3) & 0x10u) | ((high << 17) & 0x100000u), 0xe400e400u);
    c[2] = blk_code16((w & 0x00f000f0u) | ((high >> 8) & 0x100u) | ((high << 6) & 0x1000000u), 0xd400d400u);  // -64
    c[3] = blk_code16(((w >> 8) & 0x00f000f0u) | ((high >> 9) & 0x100u) | ((high << 5) & 0x1000000u), 0xd400d400u);
  }
  static KN_FN void bytes(KN_PRIVATE const uint (&q)[Q], uint, uint t, KN_PRIVATE uint (&c)[2]) {
    const uint high = q[1] >> (4 * t);  // four bits to the fifth bits of four bytes by one product
    c[0] = (q[0] & 0x0f0f0f0fu) | (((high & 15u) * 0x02040810u) & 0x10101010u);
    c[1] = ((q[0] >> 4) & 0x0f0f0f0fu) | (((high >> 16 & 15u) * 0x02040810u) & 0x10101010u);
  }
  static KN_FN void small(KN_PRIVATE const uint (&q)[Q], uint, uint t, KN_PRIVATE uint (&c)[4]) {
    const uint high = q[1] >> (4 * t);  // four bits to the fifth bits of four bytes by one product
    blk_small((q[0] & 0x0f0f0f0fu) | (((high & 15u) * 0x02040810u) & 0x10101010u), c[0], c[1]);
    blk_small(((q[0] >> 4) & 0x0f0f0f0fu) | (((high >> 16 & 15u) * 0x02040810u) & 0x10101010u), c[2], c[3]);
  }
  BLK_APART
  static KN_FN void scale(KN_PRIVATE const uint (&h)[H], uint, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& offset) {
    s0 = s1 = blk_low_f16(h[0]);
    offset = blk_high_f16(h[0]);
  }
};

// Scale and minimum of 6 bits of group g of Q4_K and Q5_K: the first four plain, of the others the low nibbles in the third word and the upper two
// bits above the first four.
KN_FN void blk_k_scale(KN_PRIVATE const uint (&h)[4], uint g, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& offset) {
  const uint shift = 8 * (g % 4);
  const uint a = h[1] >> shift, b = h[2] >> shift, c = h[3] >> shift;
  const uint scale = g < 4 ? a & 63u : (c & 15u) | ((a >> 2) & 48u);
  const uint least = g < 4 ? b & 63u : ((c >> 4) & 15u) | ((b >> 2) & 48u);
  s0 = s1 = blk_low_f16(h[0]) * (float)scale;
  offset = -(blk_high_f16(h[0]) * (float)least);
}

// The same of Q4_K and Q5_K, whose block has eight scales and minima; four bytes at once.
#define BLK_K_PARTS                                                                                                                        \
  template <class P> static KN_FN void ahead(P p, KN_PRIVATE uint (&s)[S]) {                                                               \
    const uint a = blk_u32(p, 4), b = blk_u32(p, 8), c = blk_u32(p, 12);                                                                   \
    s[0] = blk_u32(p, 0);                                                                                                                  \
    s[1] = a & 0x3f3f3f3fu;                                                                                                                \
    s[2] = (c & 0x0f0f0f0fu) | ((a >> 2) & 0x30303030u);                                                                                   \
    s[3] = b & 0x3f3f3f3fu;                                                                                                                \
    s[4] = ((c >> 4) & 0x0f0f0f0fu) | ((b >> 2) & 0x30303030u);                                                                            \
  }                                                                                                                                        \
  template <class P>                                                                                                                       \
  static KN_FN void part(P, KN_PRIVATE const uint (&s)[S], uint g, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& offset) { \
    s0 = s1 = blk_byte(g < 4 ? s[1] : s[2], g % 4);                                                                                        \
    offset = blk_byte(g < 4 ? s[3] : s[4], g % 4);                                                                                         \
  }                                                                                                                                        \
  static KN_FN void whole(KN_PRIVATE const uint (&s)[S], KN_PRIVATE float& scale, KN_PRIVATE float& offset) {                              \
    scale = blk_low_f16(s[0]) * (1 << 24);                                                                                                 \
    offset = -blk_high_f16(s[0]) * (1 << 24);                                                                                              \
  }

struct BlkQ4_K {
  enum {
    LEN = 256, BYTES = 144, GROUPS = 8, Q = 2, H = 4, HALVES = 0, OFFSET = 1, PLAIN = 0,
    S = 5, BYTE_WORDS = 2, BYTE_SHIFT = 0, SHIFT = 0, LESS = 0, PLACED = BLK_ODD, STRIDE = 144,
  };
  typedef uint Word;
  template <class P> static KN_FN void load(P p, uint g, uint t, KN_PRIVATE uint (&q)[Q]) {
    q[0] = blk_u32(p, 16 + 32 * (g / 2) + 4 * t);
    q[1] = blk_u32(p, 32 + 32 * (g / 2) + 4 * t);
  }
  template <class P> static KN_FN void head(P p, uint, KN_PRIVATE uint (&h)[H]) {
    for (uint i = 0; i < 4; ++i) h[i] = blk_u32(p, 4 * i);
  }
  static KN_FN void codes(KN_PRIVATE const uint (&q)[Q], uint g, uint, KN_PRIVATE uint (&c)[4]) {
    const uint shift = 4 * (g % 2);
    blk_bytes((q[0] >> shift) & 0x0f0f0f0fu, 0xe400e400u, c[0], c[1]);  // -1024
    blk_bytes((q[1] >> shift) & 0x0f0f0f0fu, 0xe400e400u, c[2], c[3]);
  }
  static KN_FN void bytes(KN_PRIVATE const uint (&q)[Q], uint g, uint, KN_PRIVATE uint (&c)[2]) {
    const uint shift = 4 * (g % 2);
    c[0] = (q[0] >> shift) & 0x0f0f0f0fu;
    c[1] = (q[1] >> shift) & 0x0f0f0f0fu;
  }
  static KN_FN void small(KN_PRIVATE const uint (&q)[Q], uint g, uint, KN_PRIVATE uint (&c)[4]) {
    const uint mask = g % 2 ? 0x00f000f0u : 0x000f000fu;
    for (uint i = 0; i < 4; ++i) c[i] = (i % 2 ? q[i / 2] >> 8 : q[i / 2]) & mask;
  }
  BLK_K_PARTS
  static KN_FN void scale(KN_PRIVATE const uint (&h)[H], uint g, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& offset) {
    blk_k_scale(h, g, s0, s1, offset);
  }
};

struct BlkQ5_K {
  enum {
    LEN = 256, BYTES = 176, GROUPS = 8, Q = 4, H = 4, HALVES = 0, OFFSET = 1, PLAIN = 0,
    S = 5, BYTE_WORDS = 2, BYTE_SHIFT = 0, SHIFT = 0, LESS = 0, PLACED = BLK_ODD, STRIDE = 176,
  };
  typedef uint Word;
  template <class P> static KN_FN void load(P p, uint g, uint t, KN_PRIVATE uint (&q)[Q]) {
    q[0] = blk_u32(p, 48 + 32 * (g / 2) + 4 * t);
    q[1] = blk_u32(p, 64 + 32 * (g / 2) + 4 * t);
    q[2] = blk_u32(p, 16 + 4 * t);
    q[3] = blk_u32(p, 32 + 4 * t);
  }
  template <class P> static KN_FN void head(P p, uint, KN_PRIVATE uint (&h)[H]) {
    for (uint i = 0; i < 4; ++i) h[i] = blk_u32(p, 4 * i);
  }
  static KN_FN void codes(KN_PRIVATE const uint (&q)[Q], uint g, uint, KN_PRIVATE uint (&c)[4]) {
    const uint shift = 4 * (g % 2);
    blk_bytes(((q[0] >> shift) & 0x0f0f0f0fu) | (((q[2] >> g) & 0x01010101u) << 4), 0xe400e400u, c[0], c[1]);  // -1024
    blk_bytes(((q[1] >> shift) & 0x0f0f0f0fu) | (((q[3] >> g) & 0x01010101u) << 4), 0xe400e400u, c[2], c[3]);
  }
  static KN_FN void bytes(KN_PRIVATE const uint (&q)[Q], uint g, uint, KN_PRIVATE uint (&c)[2]) {
    const uint shift = 4 * (g % 2);
    c[0] = ((q[0] >> shift) & 0x0f0f0f0fu) | (((q[2] >> g) & 0x01010101u) << 4);
    c[1] = ((q[1] >> shift) & 0x0f0f0f0fu) | (((q[3] >> g) & 0x01010101u) << 4);
  }
  static KN_FN void small(KN_PRIVATE const uint (&q)[Q], uint g, uint, KN_PRIVATE uint (&c)[4]) {
    const uint mask = g % 2 ? 0x00f000f0u : 0x000f000fu, fifth = g % 2 ? 0x01000100u : 0x00100010u, place = g % 2 ? 8 : 4;
    for (uint i = 0; i < 4; ++i) {
      const uint from = i % 2 ? g + 8 : g, high = q[2 + i / 2];  // where the fifth bits are
      c[i] = ((i % 2 ? q[i / 2] >> 8 : q[i / 2]) & mask) | ((from < place ? high << (place - from) : high >> (from - place)) & fifth);
    }
  }
  BLK_K_PARTS
  static KN_FN void scale(KN_PRIVATE const uint (&h)[H], uint g, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& offset) {
    blk_k_scale(h, g, s0, s1, offset);
  }
};

struct BlkQ6_K {
  enum {
    LEN = 256, BYTES = 210, GROUPS = 8, Q = 4, H = 2, HALVES = 1, OFFSET = 0, PLAIN = 0,
    S = 1, BYTE_WORDS = 2, BYTE_SHIFT = 2, SHIFT = 2, LESS = 128, PLACED = 0, STRIDE = 240,
  };
  typedef ushort Word;
  template <class P> static KN_FN void load(P p, uint g, uint t, KN_PRIVATE uint (&q)[Q]) {
    const uint low = 64 * (g / 4) + 32 * (g % 2) + 4 * t, high = 128 + 32 * (g / 4) + 4 * t;
    q[0] = blk_u32(p, low);
    q[1] = blk_u32(p, low + 16);
    q[2] = blk_u32(p, high);
    q[3] = blk_u32(p, high + 16);
  }
  template <class P> static KN_FN void head(P p, uint g, KN_PRIVATE uint (&h)[H]) {
    h[0] = blk_u16(p, 208);
    h[1] = blk_u16(p, 192 + 2 * g);
  }
  static KN_FN void codes(KN_PRIVATE const uint (&q)[Q], uint g, uint, KN_PRIVATE uint (&c)[4]) {
    const uint low = 2 * (g % 4) & 4u, high = 2 * (g % 4);
    blk_bytes(((q[0] >> low) & 0x0f0f0f0fu) | (((q[2] >> high) & 0x03030303u) << 4), 0xe420e420u, c[0], c[1]);  // -1056
    blk_bytes(((q[1] >> low) & 0x0f0f0f0fu) | (((q[3] >> high) & 0x03030303u) << 4), 0xe420e420u, c[2], c[3]);
  }
  static KN_FN void bytes(KN_PRIVATE const uint (&q)[Q], uint g, uint, KN_PRIVATE uint (&c)[2]) {
    const uint high = 6 - 2 * (g % 4);  // codes at bits 2 to 7, less 32 by the sign
    for (uint i = 0; i < 2; ++i) {
      const uint low = g % 4 < 2 ? q[i] << 2 : q[i] >> 2;
      c[i] = ((low & 0x3c3c3c3cu) | ((q[2 + i] << high) & 0xc0c0c0c0u)) ^ 0x80808080u;
    }
  }
  static KN_FN void small(KN_PRIVATE const uint (&q)[Q], uint g, uint, KN_PRIVATE uint (&c)[4]) {
    const uint high = 6 - 2 * (g % 4);  // codes at bits 2 to 7
    for (uint i = 0; i < 2; ++i) {
      const uint low = g % 4 < 2 ? q[i] << 2 : q[i] >> 2;
      blk_small((low & 0x3c3c3c3cu) | ((q[2 + i] << high) & 0xc0c0c0c0u), c[2 * i], c[2 * i + 1]);
    }
  }
  template <class P> static KN_FN void ahead(P p, KN_PRIVATE uint (&s)[S]) { s[0] = blk_u16(p, 208); }
  template <class P>
  static KN_FN void part(P p, KN_PRIVATE const uint (&)[S], uint g, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& offset) {
    const uint h = blk_u16(p, 192 + 2 * g) ^ 0x8080u;
    s0 = blk_byte(h, 0) - 128.0f / (1 << 24);
    s1 = blk_byte(h, 1) - 128.0f / (1 << 24);
    offset = 0;
  }
  static KN_FN void whole(KN_PRIVATE const uint (&s)[S], KN_PRIVATE float& scale, KN_PRIVATE float& offset) {
    scale = blk_low_f16(s[0]) * (1 << 24);
    offset = 0;
  }
  static KN_FN void scale(KN_PRIVATE const uint (&h)[H], uint, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& offset) {
    const float d = blk_low_f16(h[0]);
    s0 = d * (float)kn_sbyte(h[1], 0);
    s1 = d * (float)kn_sbyte(h[1], 1);
    offset = 0;
  }
};

// The eight weights of a quarter in f32, in natural order.
template <class F, class P> KN_FN void blk_values(P block, uint g, uint t, KN_PRIVATE float4& first, KN_PRIVATE float4& second) {
  uint q[F::Q], h[F::H], c[4];
  F::load(block, g, t, q);
  F::head(block, g, h);
  F::codes(q, g, t, c);
  float s0, s1, b;
  F::scale(h, g, s0, s1, b);
  const float2 c0 = kn_unpack_f16(c[0]), c1 = kn_unpack_f16(c[1]), c2 = kn_unpack_f16(c[2]), c3 = kn_unpack_f16(c[3]);
  first = kn_f4(s0 * c0.x + b, s0 * c1.x + b, s0 * c0.y + b, s0 * c1.y + b);
  second = kn_f4(s1 * c2.x + b, s1 * c3.x + b, s1 * c2.y + b, s1 * c3.y + b);
}
