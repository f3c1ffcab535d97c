// The part of the dialect that is one text on every target: built on the primitives of cuda.h, metal.h or emulator.h, which precede it.

#define KN_INF kn_from_bits(0x7f800000u)
#define KN_NAN kn_from_bits(0x7fc00000u)

KN_FN bool kn_isnan(float v) { return (kn_bits(v) & 0x7fffffffu) > 0x7f800000u; }
KN_FN bool kn_isinf(float v) { return (kn_bits(v) & 0x7fffffffu) == 0x7f800000u; }
KN_FN uint kn_cdiv(uint a, uint b) { return (a + b - 1) / b; }

// A scalar that is a plain value or lives in the step buffer, where it may be at most `value`.
struct KnStep { uint value, slot; };
KN_FN uint kn_step_value(uint value, uint slot, KN_GLOBAL const uint* step) { return slot == 0xffffffffu ? value : kn_min(step[slot], value); }
#define kn_step(s, step) kn_step_value((s).value, (s).slot, step)

// Storage of 16-bit floating point: bits, widened exactly and rounded to nearest even.
enum class kn_f16 : ushort {};
enum class kn_bf16 : ushort {};
KN_FN float kn_to_f32(float v) { return v; }
KN_FN float kn_to_f32(kn_f16 v) { return kn_f16_to_f32((ushort)v); }
KN_FN float kn_to_f32(kn_bf16 v) { return kn_bf16_to_f32((ushort)v); }
template <class T> KN_FN T kn_from_f32(float v);
template <> KN_FN float kn_from_f32<float>(float v) { return v; }
template <> KN_FN kn_f16 kn_from_f32<kn_f16>(float v) { return (kn_f16)kn_f32_to_f16(v); }
template <> KN_FN kn_bf16 kn_from_f32<kn_bf16>(float v) { return (kn_bf16)kn_f32_to_bf16(v); }
// Rounds to the storage type and back: what a value is after a trip through memory.
template <class T> KN_FN float kn_round(float v) { return kn_to_f32(kn_from_f32<T>(v)); }

// Pairs of 16-bit values in one word, the first in the lower half.
KN_FN float2 kn_unpack_f16(uint w) { return kn_f2(kn_f16_to_f32((ushort)(w & 0xffffu)), kn_f16_to_f32((ushort)(w >> 16))); }
KN_FN float2 kn_unpack_bf16(uint w) { return kn_f2(kn_from_bits(w << 16), kn_from_bits(w & 0xffff0000u)); }
#ifndef KN_HAS_PACK
KN_FN uint kn_pack_f16(float a, float b) { return (uint)kn_f32_to_f16(a) | (uint)kn_f32_to_f16(b) << 16; }
KN_FN uint kn_pack_bf16(float a, float b) { return (uint)kn_f32_to_bf16(a) | (uint)kn_f32_to_bf16(b) << 16; }
#endif
template <class T> KN_FN float2 kn_unpack(uint w);
template <> KN_FN float2 kn_unpack<kn_f16>(uint w) { return kn_unpack_f16(w); }
template <> KN_FN float2 kn_unpack<kn_bf16>(uint w) { return kn_unpack_bf16(w); }
template <class T> KN_FN uint kn_pack(float a, float b);
template <> KN_FN uint kn_pack<kn_f16>(float a, float b) { return kn_pack_f16(a, b); }
template <> KN_FN uint kn_pack<kn_bf16>(float a, float b) { return kn_pack_bf16(a, b); }

// Four elements at once. The address is a multiple of four elements (16 bytes of f32, 8 bytes of 16-bit types).
KN_FN float4 kn_load4(KN_GLOBAL const float* p) { return *(KN_GLOBAL const float4*)p; }
template <class T> KN_FN float4 kn_load4(KN_GLOBAL const T* p) {
  const uint2 w = *(KN_GLOBAL const uint2*)p;
  const float2 a = kn_unpack<T>(w.x), b = kn_unpack<T>(w.y);
  return kn_f4(a.x, a.y, b.x, b.y);
}
KN_FN void kn_store4(KN_GLOBAL float* p, float4 v) { *(KN_GLOBAL float4*)p = v; }
template <class T> KN_FN void kn_store4(KN_GLOBAL T* p, float4 v) {
  *(KN_GLOBAL uint2*)p = kn_u2(kn_pack<T>(v.x, v.y), kn_pack<T>(v.z, v.w));
}
// 16 bytes, at an address that is a multiple of 16.
KN_FN uint4 kn_load16(KN_GLOBAL const void* p) { return *(KN_GLOBAL const uint4*)p; }
KN_FN void kn_store16(KN_GLOBAL void* p, uint4 v) { *(KN_GLOBAL uint4*)p = v; }

// Words of packed blocks, whose sizes are often odd multiples of two bytes: legal at any even address.
KN_FN uint kn_load_u32_at2(KN_GLOBAL const uchar* p) {
  KN_GLOBAL const ushort* h = (KN_GLOBAL const ushort*)p;
  return (uint)h[0] | (uint)h[1] << 16;
}
KN_FN float kn_load_f16_at2(KN_GLOBAL const uchar* p) { return kn_f16_to_f32(*(KN_GLOBAL const ushort*)p); }
// Byte `i` of a word, unsigned and signed; nibble `i` of a word.
KN_FN uint kn_byte(uint w, uint i) { return (w >> (8 * i)) & 0xffu; }
KN_FN int kn_sbyte(uint w, uint i) { return ((int)(w << (24 - 8 * i))) >> 24; }
KN_FN uint kn_nibble(uint w, uint i) { return (w >> (4 * i)) & 0xfu; }

// As kn_permute, but a nibble of 8 or more gives eight times the sign of the byte that it would take if it were 8 less.
#ifndef KN_HAS_PERMUTE_SIGNS
KN_FN uint kn_permute_signs(uint a, uint b, uint sel) {
  const uint byte = kn_permute(a, b, sel & 0x7777u);
  const uint bits = (sel >> 3 & 1u) * 0xffu | (sel >> 7 & 1u) * 0xff00u | (sel >> 11 & 1u) * 0xff0000u | (sel >> 15 & 1u) * 0xff000000u;
  return (bits & ((byte >> 7 & 0x01010101u) * 0xffu)) | (~bits & byte);
}
#endif

// Says that 128 bytes around the address will be read soon; does nothing where a target has no such thing.
#ifndef KN_HAS_PREFETCH
KN_FN void kn_prefetch(KN_GLOBAL const void*) {}
#endif

// Warp reductions: every lane of the warp takes part and every lane gets the same bits.
KN_FN float kn_warp_sum(float v) { for (uint o = KN_WARP / 2; o; o >>= 1) v += kn_shfl_xor(v, o); return v; }
KN_FN uint kn_warp_sum(uint v) { for (uint o = KN_WARP / 2; o; o >>= 1) v += kn_shfl_xor(v, o); return v; }
KN_FN float kn_warp_max(float v) { for (uint o = KN_WARP / 2; o; o >>= 1) v = kn_max(v, kn_shfl_xor(v, o)); return v; }
#ifndef KN_HAS_WARP_MAX
KN_FN uint kn_warp_max(uint v) { for (uint o = KN_WARP / 2; o; o >>= 1) v = kn_max(v, kn_shfl_xor(v, o)); return v; }
#endif
KN_FN uint kn_warp_min(uint v) { for (uint o = KN_WARP / 2; o; o >>= 1) v = kn_min(v, kn_shfl_xor(v, o)); return v; }

// Block reductions through `scratch`, one value a warp (KN_SCRATCH elements serve any block of 1024 threads and any warp width). Every
// thread takes part and gets the same bits. Scratch may be used again at once: a barrier closes each call.
#define KN_SCRATCH (1024 / KN_WARP)
KN_FN float kn_block_sum(float v, KN_LOCAL float* scratch, uint warps, uint lane, uint warp) {
  v = kn_warp_sum(v);
  if (warps == 1) return v;
  if (lane == 0) scratch[warp] = v;
  kn_barrier();
  float total = scratch[0];
  for (uint i = 1; i < warps; ++i) total += scratch[i];
  kn_barrier();
  return total;
}
KN_FN float kn_block_max(float v, KN_LOCAL float* scratch, uint warps, uint lane, uint warp) {
  v = kn_warp_max(v);
  if (warps == 1) return v;
  if (lane == 0) scratch[warp] = v;
  kn_barrier();
  float best = scratch[0];
  for (uint i = 1; i < warps; ++i) best = kn_max(best, scratch[i]);
  kn_barrier();
  return best;
}

// Integer matrix unit: D[16, 8] += A[16, 32] B[32, 8] over a warp of 32 lanes, signed bytes, exact sums in 32 bits. D words are where those
// of kn_mma are; A word i is at row `lane / 4 + 8 * (i % 2)`, k `4 * (lane % 4) + 16 * (i / 2)` and three more; B word i at the same k with
// i / 2 = i, column `lane / 4`.
KN_FN int kn_dot_s8(uint a, uint b, int sum) {
  for (uint i = 0; i < 4; ++i) sum += kn_sbyte(a, i) * kn_sbyte(b, i);
  return sum;
}
#if !defined(KN_HAS_MMA) && !defined(KN_OWN_MMA)
KN_FN void kn_mma_s8(KN_PRIVATE int (&d)[4], KN_PRIVATE const uint (&a)[4], uint b0, uint b1, uint lane) {
  for (uint i = 0; i < 8; ++i) {
    const uint row = lane / 4 * 4 + i % 4, col = lane % 4 * 8 + i % 4;
    const uint w0 = kn_shfl(i < 4 ? a[0] : a[2], row), w1 = kn_shfl(i < 4 ? a[1] : a[3], row);
    const uint x0 = kn_shfl(i < 4 ? b0 : b1, col), x1 = kn_shfl(i < 4 ? b0 : b1, col + 4);
    d[0] = kn_dot_s8(w0, x0, d[0]);
    d[1] = kn_dot_s8(w0, x1, d[1]);
    d[2] = kn_dot_s8(w1, x0, d[2]);
    d[3] = kn_dot_s8(w1, x1, d[3]);
  }
}
#endif

// Matrix unit: D[16, 8] += A[16, 16] B[16, 8] over a warp of 32 lanes, f32 accumulation, operands in kn_f16 or kn_bf16, two k in a word.
// Where the elements live: D word i of a lane is at (kn_frag_row, kn_frag_col); A word i is at row `kn_frag_row(lane, 2 * (i % 2))`,
// k `2 * (lane % 4) + 8 * (i / 2)`; B word i is at k `2 * (lane % 4) + 8 * i`, column `lane / 4`.
KN_FN uint kn_frag_row(uint lane, uint i) { return lane / 4 + 8 * (i / 2); }
KN_FN uint kn_frag_col(uint lane, uint i) { return 2 * (lane % 4) + i % 2; }

#ifdef KN_HAS_MMA
template <class T> KN_FN void kn_mma(float (&d)[4], const uint (&a)[4], const uint* b, uint lane);
template <> KN_FN void kn_mma<kn_f16>(float (&d)[4], const uint (&a)[4], const uint* b, uint) { kn_mma_f16(d, a, b[0], b[1]); }
template <> KN_FN void kn_mma<kn_bf16>(float (&d)[4], const uint (&a)[4], const uint* b, uint) { kn_mma_bf16(d, a, b[0], b[1]); }
// A[16, 16] from a tile with contiguous k. Tiles start at, and strides (in elements) are, multiples of 8 elements.
KN_FN void kn_frag_a(uint (&a)[4], const ushort* tile, uint stride, uint lane) {
  kn_ldmatrix4(a, tile + (lane % 16) * stride + 8 * (lane / 16));
}
// B[16, 16] as two column tiles (words 0, 1 and 2, 3) from a tile [n][k] with contiguous k.
KN_FN void kn_frag_b(uint (&b)[4], const ushort* tile, uint stride, uint lane) {
  kn_ldmatrix4(b, tile + (lane % 8 + 8 * (lane / 16)) * stride + 8 * (lane / 8 % 2));
}
// The same from a tile [k][n] with contiguous n.
KN_FN void kn_frag_b_trans(uint (&b)[4], const ushort* tile, uint stride, uint lane) {
  kn_ldmatrix4_trans(b, tile + (lane % 16) * stride + 8 * (lane / 16));
}
#else
#ifndef KN_OWN_MMA
// The scalar twin: every lane hands its operands round the warp.
template <class T> KN_FN void kn_mma(KN_PRIVATE float (&d)[4], KN_PRIVATE const uint (&a)[4], KN_PRIVATE const uint* b, uint lane) {
  for (uint h = 0; h < 2; ++h) {
    for (uint k = 0; k < 4; ++k) {
      const float2 a0 = kn_unpack<T>(kn_shfl(a[2 * h], lane / 4 * 4 + k)), a1 = kn_unpack<T>(kn_shfl(a[2 * h + 1], lane / 4 * 4 + k));
      const float2 b0 = kn_unpack<T>(kn_shfl(b[h], lane % 4 * 8 + k)), b1 = kn_unpack<T>(kn_shfl(b[h], lane % 4 * 8 + 4 + k));
      d[0] += a0.x * b0.x + a0.y * b0.y;
      d[1] += a0.x * b1.x + a0.y * b1.y;
      d[2] += a1.x * b0.x + a1.y * b0.y;
      d[3] += a1.x * b1.x + a1.y * b1.y;
    }
  }
}
#endif
KN_FN uint kn_frag_word(KN_LOCAL const ushort* p) { return (uint)p[0] | (uint)p[1] << 16; }
KN_FN void kn_frag_a(KN_PRIVATE uint (&a)[4], KN_LOCAL const ushort* tile, uint stride, uint lane) {
  for (uint i = 0; i < 4; ++i) a[i] = kn_frag_word(tile + (lane / 4 + 8 * (i % 2)) * stride + 2 * (lane % 4) + 8 * (i / 2));
}
KN_FN void kn_frag_b(KN_PRIVATE uint (&b)[4], KN_LOCAL const ushort* tile, uint stride, uint lane) {
  for (uint i = 0; i < 4; ++i) b[i] = kn_frag_word(tile + (lane / 4 + 8 * (i / 2)) * stride + 2 * (lane % 4) + 8 * (i % 2));
}
KN_FN void kn_frag_b_trans(KN_PRIVATE uint (&b)[4], KN_LOCAL const ushort* tile, uint stride, uint lane) {
  for (uint i = 0; i < 4; ++i) {
    KN_LOCAL const ushort* p = tile + (2 * (lane % 4) + 8 * (i % 2)) * stride + lane / 4 + 8 * (i / 2);
    b[i] = (uint)p[0] | (uint)p[stride] << 16;
  }
}
#endif
