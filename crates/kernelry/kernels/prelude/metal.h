// Prelude for Metal. Vocabulary and meaning are those of every prelude; see docs/dialect.md.
#pragma once
#include <metal_stdlib>
using namespace metal;
#define KN_TARGET_METAL 1

// Functions, address spaces, declarations.
#define KN_FN inline
#define KN_GLOBAL device
#define KN_LOCAL threadgroup
#define KN_PRIVATE thread
#define KN_PARAMS constant
#define KN_TABLE(T, name, n) constant constexpr T name[n]
#define KN_SHARED(T, name, n) alignas(16) threadgroup T name[n]
#define KN_UNROLL _Pragma("clang loop unroll(full)")
#define KN_NO_UNROLL _Pragma("clang loop unroll(disable)")
#define KN_IN(slot, T, name) device const T* name [[buffer(slot)]]
#define KN_OUT(slot, T, name) device T* name [[buffer(slot)]]
#define KN_IN_ALIAS KN_IN
#define KN_OUT_ALIAS KN_OUT
// Whether a buffer is bound cannot be read off its pointer here: the launcher sets one bit a slot.
#define KN_HAS(slot, name) (((kn_present >> (slot)) & 1u) != 0u)
#define KN_KERNEL(name, block, P, ...)                                                                                         \
  [[max_total_threads_per_threadgroup(block)]] kernel void name(                                                               \
      __VA_ARGS__, constant P& p [[buffer(30)]], constant uint& kn_present [[buffer(29)]],                                     \
      uint3 kn_group [[threadgroup_position_in_grid]], uint3 kn_groups [[threadgroups_per_grid]],                              \
      uint3 kn_thread [[thread_position_in_threadgroup]], uint3 kn_block [[threads_per_threadgroup]],                          \
      uint kn_lane [[thread_index_in_simdgroup]], uint kn_warp_id [[simdgroup_index_in_threadgroup]])

#define KN_KERNEL_DEEP KN_KERNEL
#define KN_KERNEL_BLOCKS(name, block, blocks, P, ...) KN_KERNEL(name, block, P, __VA_ARGS__)
#define KN_RESIDENT(name, block, blocks) static_assert(true, "")
#define KN_CHAINED(name, ahead) static_assert(true, "")
#define KN_CHAIN_NEXT
#define KN_CHAIN_WAIT
#define KN_CHAIN

// Identity of the thread: at kernel scope only.
#define KN_GROUP_X kn_group.x
#define KN_GROUP_Y kn_group.y
#define KN_GROUP_Z kn_group.z
#define KN_GROUPS_X kn_groups.x
#define KN_GROUPS_Y kn_groups.y
#define KN_THREAD_X kn_thread.x
#define KN_THREAD_Y kn_thread.y
#define KN_BLOCK_X kn_block.x
#define KN_BLOCK_Y kn_block.y
#define KN_WARP 32u
#define KN_LANE kn_lane
#define KN_WARP_ID kn_warp_id

// Ordering.
KN_FN void kn_barrier() { threadgroup_barrier(mem_flags::mem_threadgroup); }
KN_FN void kn_barrier_all() { threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device); }
KN_FN void kn_warp_sync() { simdgroup_barrier(mem_flags::mem_threadgroup); }

// Shuffles: every lane of the warp takes part.
KN_FN float kn_shfl(float v, uint lane) { return simd_shuffle(v, ushort(lane)); }
KN_FN uint kn_shfl(uint v, uint lane) { return simd_shuffle(v, ushort(lane)); }
KN_FN float kn_shfl_xor(float v, uint mask) { return simd_shuffle_xor(v, ushort(mask)); }
KN_FN uint kn_shfl_xor(uint v, uint mask) { return simd_shuffle_xor(v, ushort(mask)); }

// Atomics: relaxed, the old value comes back.
#define KN_ATOMIC(name, op)                                                                                                     \
  KN_FN uint name(device uint* p, uint v) { return op((device atomic_uint*)p, v, memory_order_relaxed); }                       \
  KN_FN uint name##_local(threadgroup uint* p, uint v) { return op((threadgroup atomic_uint*)p, v, memory_order_relaxed); }
KN_ATOMIC(kn_atomic_add, atomic_fetch_add_explicit)
KN_ATOMIC(kn_atomic_max, atomic_fetch_max_explicit)
KN_ATOMIC(kn_atomic_min, atomic_fetch_min_explicit)
KN_ATOMIC(kn_atomic_or, atomic_fetch_or_explicit)
#undef KN_ATOMIC

// Bits.
KN_FN uint kn_bits(float v) { return as_type<uint>(v); }
KN_FN float kn_from_bits(uint v) { return as_type<float>(v); }
KN_FN uint kn_popcount(uint v) { return popcount(v); }
KN_FN bool kn_aligned(device const void* p, uint bytes) { return ((ulong)p & (ulong)(bytes - 1)) == 0; }
KN_FN float2 kn_f2(float a, float b) { float2 r = {a, b}; return r; }
KN_FN float4 kn_f4(float a, float b, float c, float d) { float4 r = {a, b, c, d}; return r; }
KN_FN uint2 kn_u2(uint a, uint b) { uint2 r = {a, b}; return r; }
KN_FN uint4 kn_u4(uint a, uint b, uint c, uint d) { uint4 r = {a, b, c, d}; return r; }

// Mathematics: precise to 4 ulp unless the name says `fast`.
KN_FN float kn_exp(float v) { return precise::exp(v); }
KN_FN float kn_exp_fast(float v) { return fast::exp(v); }
KN_FN float kn_exp2_fast(float v) { return fast::exp2(v); }
KN_FN float kn_log(float v) { return precise::log(v); }
KN_FN float kn_sqrt(float v) { return precise::sqrt(v); }
KN_FN float kn_rsqrt(float v) { return precise::rsqrt(v); }
KN_FN float kn_sin(float v) { return precise::sin(v); }
KN_FN float kn_cos(float v) { return precise::cos(v); }
KN_FN float kn_tanh(float v) { return precise::tanh(v); }
KN_FN float kn_pow(float a, float b) { return precise::pow(a, b); }
KN_FN float kn_fma(float a, float b, float c) { return fma(a, b, c); }
KN_FN float kn_abs(float v) { return fabs(v); }
KN_FN float kn_floor(float v) { return floor(v); }
KN_FN float kn_rint(float v) { return rint(v); }
KN_FN float kn_max(float a, float b) { return fmax(a, b); }
KN_FN float kn_min(float a, float b) { return fmin(a, b); }
KN_FN uint kn_max(uint a, uint b) { return max(a, b); }
KN_FN ulong kn_max(ulong a, ulong b) { return max(a, b); }
KN_FN ulong kn_min(ulong a, ulong b) { return min(a, b); }
KN_FN uint kn_min(uint a, uint b) { return min(a, b); }
KN_FN int kn_max(int a, int b) { return max(a, b); }
KN_FN int kn_min(int a, int b) { return min(a, b); }
// Operations that no compiler may contract into a fused one.
KN_FN float kn_mul_rn(float a, float b) {
#pragma clang fp contract(off)
  return a * b;
}
KN_FN float kn_add_rn(float a, float b) {
#pragma clang fp contract(off)
  return a + b;
}

// Conversions of 16-bit storage by its bits, to nearest even.
KN_FN float kn_f16_to_f32(ushort v) { return float(as_type<half>(v)); }
KN_FN ushort kn_f32_to_f16(float v) { return as_type<ushort>(half(v)); }
KN_FN float kn_bf16_to_f32(ushort v) { return as_type<float>(uint(v) << 16); }
KN_FN ushort kn_f32_to_bf16(float v) {
  const uint b = as_type<uint>(v);
  if ((b & 0x7fffffffu) > 0x7f800000u) return ushort((b >> 16) | 0x40u);
  return ushort((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}

// Pairs of f16 in a word: a * b + c with one rounding each. Four bytes out of the eight of (a, b), by the nibbles of `sel` (0..7).
KN_FN uint kn_fma_h2(uint a, uint b, uint c) { return as_type<uint>(fma(as_type<half2>(a), as_type<half2>(b), as_type<half2>(c))); }
KN_FN uint kn_permute(uint a, uint b, uint sel) {
  const ulong both = (ulong)a | (ulong)b << 32;
  uint r = 0;
  for (uint i = 0; i < 4; ++i) r |= (uint)((both >> (8 * ((sel >> (4 * i)) & 7))) & 0xff) << (8 * i);
  return r;
}

// No asynchronous copies: the same calls copy at once.
KN_FN void kn_async_copy16(KN_LOCAL void* dst, KN_GLOBAL const void* src) { *(KN_LOCAL uint4*)dst = *(KN_GLOBAL const uint4*)src; }
#define kn_async_copy16_shared kn_async_copy16
KN_FN void kn_async_commit() {}
template <uint N> KN_FN void kn_async_wait() {}
