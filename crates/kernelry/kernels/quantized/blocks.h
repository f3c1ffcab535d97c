// Decoders of GGML blocks: everything that a kernel knows of a format.
//
// A block is cut into groups of 32 values, a group into four quarters: quarter t has the values 4t..4t+3 and 16+4t..16+4t+3, so that four
// lanes share a group by neighbouring words. A decoder gives the integer codes of a quarter as f16, which holds them exactly, in four words:
// values (0, 2) and (1, 3) of the first four, then of the second four. This order of k within each four is the order in which all products
// here keep activations too (BLK_K), since a word of nibbles or bytes splits into pairs two bytes apart with one operation.
//
// The weight is scale * code + offset, where scale differs between the halves of a group in formats with HALVES. scale * code is exact in f32.
//
// A format: LEN values in BYTES bytes; GROUPS of 32 in a block; Word, the widest unit that its fields are aligned to (P is a pointer to Word or to
// ushort in any address space); Q words of codes of a quarter, H words of a head. OFFSET: whether there is an offset. PLAIN: scale and offset
// are f16 as stored, both in head word 0. SLICE: groups that a warp of the row kernel takes at once; STRIDE: bytes of a row of such a slice in
// threadgroup memory, room for 14 bytes before it, spread over the banks; WARPS of a block of that kernel.

#define BLK_1024 0x64006400u  // f16 1024, whose last bit counts 1: or-ing a code of up to 10 bits adds it
#define BLK_ONE 0x3c003c00u
#define BLK_SIXTEENTH 0x2c002c00u

template <class P> KN_FN uint blk_u16(P p, uint byte) {
  return sizeof(*p) == 2 ? (uint)p[byte / 2] : ((uint)p[byte / 4] >> (8 * (byte & 2))) & 0xffffu;
}
template <class P> KN_FN uint blk_u32(P p, uint byte) {
  return sizeof(*p) == 4 ? (uint)p[byte / 4] : (uint)p[byte / 2] | (uint)p[byte / 2 + 1] << 16;
}
KN_FN float blk_low_f16(uint w) { return kn_f16_to_f32((ushort)(w & 0xffffu)); }
KN_FN float blk_high_f16(uint w) { return kn_f16_to_f32((ushort)(w >> 16)); }

// Codes at bits 0..4 of each half of `w`, and at bits 4..8, which are 16 times as large; less what `bias` takes off.
KN_FN uint blk_code(uint w, uint bias) { return kn_fma_h2(w | BLK_1024, BLK_ONE, bias); }
KN_FN uint blk_code16(uint w, uint bias) { return kn_fma_h2(w | BLK_1024, BLK_SIXTEENTH, bias); }
// Four codes in bytes: (0, 2) and (1, 3).
KN_FN void blk_bytes(uint w, uint bias, KN_PRIVATE uint& even, KN_PRIVATE uint& odd) {
  even = blk_code(w & 0x00ff00ffu, bias);
  odd = blk_code((w >> 8) & 0x00ff00ffu, bias);
}
// Eight codes in nibbles: the low ones are the first four.
KN_FN void blk_nibbles(uint w, uint bias, uint bias16, KN_PRIVATE uint (&c)[4]) {
  c[0] = blk_code(w & 0x000f000fu, bias);
  c[1] = blk_code((w >> 8) & 0x000f000fu, bias);
  c[2] = blk_code16(w & 0x00f000f0u, bias16);
  c[3] = blk_code16((w >> 8) & 0x00f000f0u, bias16);
}

struct BlkQ4_0 {
  enum { LEN = 32, BYTES = 18, GROUPS = 1, Q = 1, H = 1, HALVES = 0, OFFSET = 0, PLAIN = 1, SLICE = 8, STRIDE = 176, WARPS = 4 };
  typedef ushort Word;
  template <class P> static KN_FN void load(P p, uint, uint t, KN_PRIVATE uint (&q)[Q]) { q[0] = blk_u32(p, 2 + 4 * t); }
  template <class P> static KN_FN void head(P p, uint, KN_PRIVATE uint (&h)[H]) { h[0] = blk_u16(p, 0); }
  static KN_FN void codes(KN_PRIVATE const uint (&q)[Q], uint, uint, KN_PRIVATE uint (&c)[4]) {
    blk_nibbles(q[0], 0xe408e408u, 0xd480d480u, c);  // -1032, -72
  }
  static KN_FN void scale(KN_PRIVATE const uint (&h)[H], uint, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& offset) {
    s0 = s1 = blk_low_f16(h[0]);
    offset = 0;
  }
};

struct BlkIQ4_NL {
  enum { LEN = 32, BYTES = 18, GROUPS = 1, Q = 1, H = 1, HALVES = 0, OFFSET = 0, PLAIN = 1, SLICE = 8, STRIDE = 176, WARPS = 4 };
  typedef ushort Word;
  template <class P> static KN_FN void load(P p, uint, uint t, KN_PRIVATE uint (&q)[Q]) { q[0] = blk_u32(p, 2 + 4 * t); }
  template <class P> static KN_FN void head(P p, uint, KN_PRIVATE uint (&h)[H]) { h[0] = blk_u16(p, 0); }
  // Four nibbles through the table of 16 values, which are stored with 128 added: -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113.
  static KN_FN uint look_up(uint w) {
    const uint index = w & 0x7777u;
    const uint low = kn_permute(0x3f2d1801u, 0x766a5d4fu, index), high = kn_permute(0xa6998d81u, 0xf1d9c5b5u, index);
    return kn_permute(low, high, ((w & 0x8888u) >> 1) | 0x3210u);
  }
  static KN_FN void codes(KN_PRIVATE const uint (&q)[Q], uint, uint, KN_PRIVATE uint (&c)[4]) {
    const uint a = look_up(q[0] & 0xffffu), b = look_up(q[0] >> 16);
    blk_bytes(kn_permute(a, b, 0x6420u), 0xe480e480u, c[0], c[1]);  // -1152
    blk_bytes(kn_permute(a, b, 0x7531u), 0xe480e480u, c[2], c[3]);
  }
  static KN_FN void scale(KN_PRIVATE const uint (&h)[H], uint, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& offset) {
    s0 = s1 = blk_low_f16(h[0]);
    offset = 0;
  }
};

struct BlkQ8_0 {
  enum { LEN = 32, BYTES = 34, GROUPS = 1, Q = 2, H = 1, HALVES = 0, OFFSET = 0, PLAIN = 1, SLICE = 4, STRIDE = 176, WARPS = 4 };
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
  static KN_FN void scale(KN_PRIVATE const uint (&h)[H], uint, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& offset) {
    s0 = s1 = blk_low_f16(h[0]);
    offset = 0;
  }
};

struct BlkQ5_1 {
  enum { LEN = 32, BYTES = 24, GROUPS = 1, Q = 2, H = 1, HALVES = 0, OFFSET = 1, PLAIN = 1, SLICE = 4, STRIDE = 112, WARPS = 4 };
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

struct BlkQ4_K {
  enum { LEN = 256, BYTES = 144, GROUPS = 8, Q = 2, H = 4, HALVES = 0, OFFSET = 1, PLAIN = 0, SLICE = 8, STRIDE = 144, WARPS = 4 };
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
  static KN_FN void scale(KN_PRIVATE const uint (&h)[H], uint g, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& offset) {
    blk_k_scale(h, g, s0, s1, offset);
  }
};

struct BlkQ5_K {
  enum { LEN = 256, BYTES = 176, GROUPS = 8, Q = 4, H = 4, HALVES = 0, OFFSET = 1, PLAIN = 0, SLICE = 8, STRIDE = 176, WARPS = 4 };
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
  static KN_FN void scale(KN_PRIVATE const uint (&h)[H], uint g, KN_PRIVATE float& s0, KN_PRIVATE float& s1, KN_PRIVATE float& offset) {
    blk_k_scale(h, g, s0, s1, offset);
  }
};

struct BlkQ6_K {
  enum { LEN = 256, BYTES = 210, GROUPS = 8, Q = 4, H = 2, HALVES = 1, OFFSET = 0, PLAIN = 0, SLICE = 8, STRIDE = 240, WARPS = 3 };
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

// Activations come as high and low parts in f16, which together keep 22 bits: exact enough for f32 if the values lie well inside the range of
// f16. The power of two that puts `largest` just below 2^(top + 1); 1 for zero, infinity and NaN.
KN_FN float blk_range_scale(float largest, int top) {
  const int exponent = (int)((kn_bits(largest) >> 23) & 0xffu);
  if (largest == 0 || exponent == 255) return 1;
  return kn_from_bits((uint)kn_min(kn_max(254 + top - exponent, 1), 253) << 23);
}
// 1 / scale of such a scale, exactly.
KN_FN float blk_inverse(float scale) { return kn_from_bits((254u - (kn_bits(scale) >> 23)) << 23); }
// Four values in the order of BLK_K as words of high and of low parts.
KN_FN void blk_split(float4 v, KN_PRIVATE uint2& high, KN_PRIVATE uint2& low) {
  high = kn_u2(kn_pack_f16(v.x, v.z), kn_pack_f16(v.y, v.w));
  const float2 a = kn_unpack_f16(high.x), b = kn_unpack_f16(high.y);
  low = kn_u2(kn_pack_f16(v.x - a.x, v.z - a.y), kn_pack_f16(v.y - b.x, v.w - b.y));
}
