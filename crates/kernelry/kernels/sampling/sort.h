// Sorting and selection of whole rows.
//
// Up to SORT_ROOM elements are sorted in threadgroup memory by a bitonic network. A longer row is cut by rank: a block finds the elements
// of the two ranks that bound its share by radix selection, reads the row once more to gather what lies between them, sorts that and writes
// it where it belongs. Blocks need nothing of each other, so that a row takes one launch and no memory beside its result.
#include "sampling/order.h"

#define SORT_BITS 11u    // bits of a digit: as many counters as a share has elements
#define SORT_FLIGHT 4u   // elements that a thread loads at once

// The counter that rank `rank` falls into and the rank within it, to result[0] and result[1]. `scratch` has a word a warp.
KN_FN void sort_find(KN_LOCAL const uint* counters, uint rank, KN_LOCAL uint* scratch, KN_LOCAL uint* result, uint t, uint n, uint lane,
                     uint warp) {
  const uint each = SORT_ROOM / n;
  uint sum = 0;
  for (uint i = 0; i < each; ++i) sum += counters[t * each + i];
  uint scanned = sum;
  for (uint o = 1; o < KN_WARP; o *= 2) {
    const uint left = kn_shfl(scanned, lane >= o ? lane - o : lane);
    if (lane >= o) scanned += left;
  }
  if (lane == KN_WARP - 1) scratch[warp] = scanned;
  kn_barrier();
  uint before = scanned - sum;
  for (uint w = 0; w < warp; ++w) before += scratch[w];
  if (rank >= before && rank - before < sum) {
    uint digit = t * each;
    while (rank - before >= counters[digit]) before += counters[digit++];
    result[0] = digit;
    result[1] = rank - before;
  }
  kn_barrier();
}

// An element of the order, by rank: `left` is its rank among those that the digits so far have not told apart.
struct SortBound { uint key, id, left; };

// Narrows the two bounds by one digit: of the key while BY_ID is false, of the index after that. The digit is `bits` wide and ends at
// bit `shift`; `first` says that none precedes it. Bounds that are not `wanted` stay as they are.
template <bool BY_ID>
KN_FN void sort_narrow(KN_PRIVATE SortBound& low, KN_PRIVATE SortBound& high, bool low_wanted, bool high_wanted, KN_GLOBAL const float* x,
                       uint cols, uint shift, uint bits, bool first, KN_LOCAL uint* pool, KN_LOCAL uint* scratch, KN_LOCAL uint* result,
                       uint t, uint n, uint lane, uint warp) {
  KN_LOCAL uint* high_counters = pool + SORT_ROOM;
  for (uint i = t; i < 2 * SORT_ROOM; i += n) pool[i] = 0;
  kn_barrier();
  for (uint base = t; base < cols; base += SORT_FLIGHT * n) {
    uint keys[SORT_FLIGHT];
    KN_UNROLL for (uint k = 0; k < SORT_FLIGHT; ++k) keys[k] = base + k * n < cols ? sort_key(x[base + k * n]) : 0;
    KN_UNROLL for (uint k = 0; k < SORT_FLIGHT; ++k) {
      const uint i = base + k * n, word = BY_ID ? i : keys[k];
      if (i < cols) {
        const uint digit = (word >> shift) & ((1u << bits) - 1), above = first ? 0 : word >> (shift + bits);
        if (low_wanted && (BY_ID ? keys[k] == low.key && above == low.id : above == low.key)) kn_atomic_add_local(pool + digit, 1);
        if (high_wanted && (BY_ID ? keys[k] == high.key && above == high.id : above == high.key)) {
          kn_atomic_add_local(high_counters + digit, 1);
        }
      }
    }
  }
  kn_barrier();
  if (low_wanted) {
    sort_find(pool, low.left, scratch, result, t, n, lane, warp);
    if (BY_ID) low.id = (low.id << bits) | result[0];
    if (!BY_ID) low.key = (low.key << bits) | result[0];
    low.left = result[1];
    kn_barrier();
  }
  if (high_wanted) {
    sort_find(high_counters, high.left, scratch, result, t, n, lane, warp);
    if (BY_ID) high.id = (high.id << bits) | result[0];
    if (!BY_ID) high.key = (high.key << bits) | result[0];
    high.left = result[1];
    kn_barrier();
  }
}

// Leaves the elements of ranks [from, to) of a row sorted in `pool`, as SORT_ROOM words of two; at most so many ranks.
// `result` has two words, `scratch` one a warp; the block is a power of two of at most SORT_ROOM threads.
KN_FN void sort_ranks(KN_GLOBAL const float* x, uint cols, uint from, uint to, KN_LOCAL uint* pool, KN_LOCAL uint* scratch,
                      KN_LOCAL uint* result, uint t, uint n, uint lane, uint warp) {
  KN_LOCAL ulong* words = (KN_LOCAL ulong*)pool;
  uint size = 2;
  while (size < to - from) size *= 2;
  if (from == 0 && to == cols) {
    for (uint i = t; i < size; i += n) words[i] = i < cols ? sort_word(sort_key(x[i]), i) : SORT_NOTHING;
  } else {
    SortBound low, high;
    low.key = low.id = high.key = high.id = 0;
    low.left = from;
    high.left = to;
    const bool low_wanted = from > 0, high_wanted = to < cols;
    sort_narrow<false>(low, high, low_wanted, high_wanted, x, cols, 21, 11, true, pool, scratch, result, t, n, lane, warp);
    sort_narrow<false>(low, high, low_wanted, high_wanted, x, cols, 10, 11, false, pool, scratch, result, t, n, lane, warp);
    sort_narrow<false>(low, high, low_wanted, high_wanted, x, cols, 0, 10, false, pool, scratch, result, t, n, lane, warp);
    // A bound that is the first of its key stands before all of that key, whatever their indices.
    const bool low_tied = low_wanted && low.left > 0, high_tied = high_wanted && high.left > 0;
    if (low_tied || high_tied) {
      uint shift = 0;
      while ((cols - 1) >> shift >= 1u << SORT_BITS) shift += SORT_BITS;
      for (bool first = true;; first = false, shift -= SORT_BITS) {
        sort_narrow<true>(low, high, low_tied, high_tied, x, cols, shift, SORT_BITS, first, pool, scratch, result, t, n, lane, warp);
        if (shift == 0) break;
      }
    }
    if (t == 0) result[0] = 0;
    kn_barrier();
    for (uint base = t; base < cols; base += SORT_FLIGHT * n) {
      uint keys[SORT_FLIGHT];
      KN_UNROLL for (uint k = 0; k < SORT_FLIGHT; ++k) keys[k] = base + k * n < cols ? sort_key(x[base + k * n]) : 0;
      KN_UNROLL for (uint k = 0; k < SORT_FLIGHT; ++k) {
        const uint i = base + k * n;
        const ulong word = sort_word(keys[k], i);
        const bool within = !(low_wanted && word < sort_word(low.key, low.id)) && !(high_wanted && word >= sort_word(high.key, high.id));
        if (i < cols && within) words[kn_atomic_add_local(result, 1)] = word;
      }
    }
    for (uint i = to - from + t; i < size; i += n) words[i] = SORT_NOTHING;
  }
  kn_barrier();
  sort_runs(words, size, size, t, n);
}

// Group x is the row times its shares.
KN_KERNEL_DEEP(argsort_desc_f32, 1024, RowsParams, KN_IN(0, float, x), KN_OUT(1, uint, ids)) {
  KN_SHARED(uint, pool, 2 * SORT_ROOM);
  KN_SHARED(uint, scratch, KN_SCRATCH);
  KN_SHARED(uint, result, 2);
  const uint shares = kn_cdiv(p.cols, SORT_ROOM), from = KN_GROUP_X % shares * SORT_ROOM, to = kn_min(from + SORT_ROOM, p.cols);
  const ulong row = (ulong)(KN_GROUP_X / shares) * p.cols;
  sort_ranks(x + row, p.cols, from, to, pool, scratch, result, KN_THREAD_X, KN_BLOCK_X, KN_LANE, KN_WARP_ID);
  KN_LOCAL const ulong* words = (KN_LOCAL const ulong*)pool;
  for (uint i = KN_THREAD_X; i < to - from; i += KN_BLOCK_X) ids[row + from + i] = (uint)words[i];
}

// NaN comes last and is never selected.
KN_KERNEL(top_k_f32, 1024, TopKParams, KN_IN(0, float, x), KN_OUT(1, uint, indices), KN_OUT(2, float, values)) {
  KN_SHARED(uint, pool, 2 * SORT_ROOM);
  KN_SHARED(uint, scratch, KN_SCRATCH);
  KN_SHARED(uint, result, 2);
  sort_ranks(x, p.n, 0, p.k, pool, scratch, result, KN_THREAD_X, KN_BLOCK_X, KN_LANE, KN_WARP_ID);
  KN_LOCAL const ulong* words = (KN_LOCAL const ulong*)pool;
  for (uint i = KN_THREAD_X; i < p.k; i += KN_BLOCK_X) {
    const bool none = sort_word_key(words[i]) == SORT_END;
    indices[i] = none ? SORT_END : (uint)words[i];
    values[i] = none ? -KN_INF : x[(uint)words[i]];
  }
}
