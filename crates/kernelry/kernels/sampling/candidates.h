// Logits on the way to a token: penalties, and the k best elements.
//
// The k best elements of each row, in the order of order.h, in two launches: each block sorts out those of SORT_ROOM columns, then one block a
// row sorts out the best of what those left.
//
// Few elements get as far as being compared with each other. The elements are dealt into at least twice k groups, and the k-th best of the
// groups' best is a limit: k elements are as good, so what is worse is not among the k best. In a row without order hardly more than k are left.
// A few are ranked by counting, each, how many are better, which takes no step after step; many are sorted.
//
// -inf is no candidate. NaN and +inf go before everything, so that they reach the end, where they make the row a bad one.
#include "sampling/order.h"

#define CANDIDATES_MOST 256u
#define CANDIDATES_FEW 384u       // words that are ranked by counting
#define CANDIDATES_FLIGHT 16u     // elements that a thread loads at once in the second launch
#define CANDIDATES_PARTS 8u       // lanes that count together
#define CANDIDATES_BAD 0u         // the key of NaN and +inf here
#define CANDIDATES_LOW 0xff800000u  // that of -inf
#define CANDIDATES_NONE 0xffffffffu

KN_FN uint candidates_key(float v) { return v < KN_INF ? sort_key(v) : CANDIDATES_BAD; }

KN_FN uint candidates_keep(uint k) {
  uint keep = 2;
  while (keep < k) keep *= 2;
  return keep;
}

// Groups that elements are dealt into: no two lanes of a warp meet in one, and there are no more than threads.
KN_FN uint candidates_groups(uint keep) { return kn_max(2 * keep, 128u); }

// Sum over the lanes that count together.
KN_FN uint candidates_sum(uint v) {
  KN_UNROLL for (uint o = CANDIDATES_PARTS / 2; o; o /= 2) v += kn_shfl_xor(v, o);
  return v;
}

// The best key of each group is in `heads`: leaves the k-th best of these in `limit`, which was 0, but no more than the last key of a number.
// It is the worst that fewer than k are better than.
KN_FN void candidates_limit(KN_LOCAL const uint* heads, uint groups, uint k, KN_LOCAL uint* limit, uint t, uint n) {
  const uint part = t % CANDIDATES_PARTS;
  for (uint base = 0; base < groups; base += n / CANDIDATES_PARTS) {
    const uint g = base + t / CANDIDATES_PARTS, head = heads[kn_min(g, groups - 1)];
    uint better = 0;
    for (uint j = part; j < groups; j += 8 * CANDIDATES_PARTS) {
      KN_UNROLL for (uint i = 0; i < 8; ++i) better += heads[j + i * CANDIDATES_PARTS] < head ? 1 : 0;
    }
    better = candidates_sum(better);
    if (part == 0 && better < k) kn_atomic_max_local(limit, kn_min(head, CANDIDATES_LOW - 1));
  }
  kn_barrier();
}

// Leaves the first k of `count` words in `best`, in order; where there are fewer, SORT_NOTHING. Every thread sees all words.
KN_FN void candidates_order(KN_LOCAL ulong* words, uint count, uint k, uint keep, KN_LOCAL ulong* best, uint t, uint n) {
  if (count <= CANDIDATES_FEW) {
    const uint part = t % CANDIDATES_PARTS;
    for (uint r = count + t; r < k; r += n) best[r] = SORT_NOTHING;
    for (uint base = 0; base < count; base += n / CANDIDATES_PARTS) {
      const uint i = base + t / CANDIDATES_PARTS;
      const ulong word = words[kn_min(i, count - 1)];
      uint rank = 0;
      for (uint j = part; j < count; j += 4 * CANDIDATES_PARTS) {
        KN_UNROLL for (uint u = 0; u < 4; ++u) {
          const uint at = j + u * CANDIDATES_PARTS;
          rank += at < count && words[kn_min(at, count - 1)] < word ? 1 : 0;
        }
      }
      rank = candidates_sum(rank);
      if (part == 0 && i < count && rank < k) best[rank] = word;
    }
  } else {
    sort_first(words, count, keep, t, n);
    for (uint r = t; r < k; r += n) best[r] = words[r];
  }
  kn_barrier();
}

// Rank r of block b of a row goes to element [r, b], so that the second launch reads best ones first. CANDIDATES_NONE stands where there is none.
KN_CHAINED(candidates_f32, 0);
KN_KERNEL(candidates_f32, 512, CandidatesParams, KN_IN_ALIAS(0, float, x), KN_OUT(1, uint, keys), KN_OUT(2, uint, ids)) {
  KN_SHARED(ulong, words, SORT_ROOM);
  KN_SHARED(ulong, best, CANDIDATES_MOST);
  KN_SHARED(uint, heads, 2 * CANDIDATES_MOST);
  KN_SHARED(uint, found, 1);
  KN_SHARED(uint, limit, 1);
  const uint t = KN_THREAD_X, n = KN_BLOCK_X, keep = candidates_keep(p.k), groups = candidates_groups(keep);
  for (uint g = t; g < groups; g += n) heads[g] = SORT_END;
  if (t == 0) found[0] = limit[0] = 0;
  kn_barrier();
  KN_CHAIN;
  const uint blocks = kn_cdiv(p.cols, SORT_ROOM), block = KN_GROUP_X % blocks, row = KN_GROUP_X / blocks;
  const uint first = block * SORT_ROOM, count = kn_min(SORT_ROOM, p.cols - first);
  KN_GLOBAL const float* from = x + (ulong)row * p.cols + first;
  // Four elements a thread, neighbours where they can be loaded at once.
  const bool vector = kn_aligned(from, 16) && count == SORT_ROOM;
  const uint start = vector ? 4 * t : t, stride = vector ? 1 : n;
  float4 v = kn_f4(-KN_INF, -KN_INF, -KN_INF, -KN_INF);
  if (vector) {
    v = kn_load4(from + start);
  } else {
    if (start < count) v.x = from[start];
    if (start + n < count) v.y = from[start + n];
    if (start + 2 * n < count) v.z = from[start + 2 * n];
    if (start + 3 * n < count) v.w = from[start + 3 * n];
  }
  const uint mine[4] = {candidates_key(v.x), candidates_key(v.y), candidates_key(v.z), candidates_key(v.w)};
  kn_atomic_min_local(heads + t % groups, kn_min(kn_min(mine[0], mine[1]), kn_min(mine[2], mine[3])));
  kn_barrier();
  candidates_limit(heads, groups, p.k, limit, t, n);
  KN_UNROLL for (uint i = 0; i < 4; ++i) {
    if (mine[i] <= limit[0]) words[kn_atomic_add_local(found, 1)] = sort_word(mine[i], first + start + i * stride);
  }
  kn_barrier();
  candidates_order(words, found[0], p.k, keep, best, t, n);
  for (uint r = t; r < p.k; r += n) {
    const ulong at = ((ulong)row * p.k + r) * blocks + block;
    keys[at] = sort_word_key(best[r]);
    ids[at] = (uint)best[r];
  }
}

// Appends the element at `at` to the words if it is within the limit and there is room.
KN_FN void candidates_gather(KN_LOCAL ulong* words, KN_LOCAL uint* found, KN_GLOBAL const uint* ids, uint key, uint at, ulong limit) {
  if (key > sort_word_key(limit)) return;
  const ulong word = sort_word(key, ids[at]);
  const uint to = word <= limit ? kn_atomic_add_local(found, 1) : SORT_ROOM;
  if (to < SORT_ROOM) words[to] = word;
}

// More words than SORT_ROOM within the limit: the k-th best of those that found room is a lower one, until all have room. The result is
// indices, then the bits of values.
KN_CHAINED(candidates_merge_f32, 0);
KN_KERNEL_DEEP(candidates_merge_f32, 512, CandidatesParams, KN_IN_ALIAS(0, uint, keys), KN_IN_ALIAS(1, uint, ids), KN_OUT(2, uint, result)) {
  KN_SHARED(ulong, words, SORT_ROOM);
  KN_SHARED(ulong, best, CANDIDATES_MOST);
  KN_SHARED(uint, heads, 2 * CANDIDATES_MOST);
  KN_SHARED(uint, found, 1);
  KN_SHARED(uint, first_limit, 1);
  const uint t = KN_THREAD_X, n = KN_BLOCK_X, keep = candidates_keep(p.k), groups = candidates_groups(keep);
  for (uint g = t; g < groups; g += n) heads[g] = SORT_END;
  if (t == 0) first_limit[0] = 0;
  kn_barrier();
  KN_CHAIN;
  const uint total = p.k * kn_cdiv(p.cols, SORT_ROOM);
  KN_GLOBAL const uint* row_keys = keys + (ulong)KN_GROUP_X * total;
  KN_GLOBAL const uint* row_ids = ids + (ulong)KN_GROUP_X * total;
  // What a thread loads at once stays with it; that is all of a row, but for the longest.
  uint mine[CANDIDATES_FLIGHT], head = SORT_END;
  KN_UNROLL for (uint i = 0; i < CANDIDATES_FLIGHT; ++i) mine[i] = t + i * n < total ? row_keys[t + i * n] : SORT_END;
  KN_UNROLL for (uint i = 0; i < CANDIDATES_FLIGHT; ++i) head = kn_min(head, mine[i]);
  for (uint at = t + CANDIDATES_FLIGHT * n; at < total; at += n) head = kn_min(head, row_keys[at]);
  kn_atomic_min_local(heads + t % groups, head);
  kn_barrier();
  candidates_limit(heads, groups, p.k, first_limit, t, n);
  ulong limit = sort_word(first_limit[0], SORT_END);
  uint count;
  do {
    if (t == 0) found[0] = 0;
    kn_barrier();
    KN_UNROLL for (uint i = 0; i < CANDIDATES_FLIGHT; ++i) candidates_gather(words, found, row_ids, mine[i], t + i * n, limit);
    for (uint at = t + CANDIDATES_FLIGHT * n; at < total; at += n) candidates_gather(words, found, row_ids, row_keys[at], at, limit);
    kn_barrier();
    count = found[0];
    candidates_order(words, kn_min(count, SORT_ROOM), p.k, keep, best, t, n);
    limit = best[p.k - 1];
  } while (count > SORT_ROOM);
  const uint top = sort_word_key(best[0]);
  const bool bad = top == CANDIDATES_BAD || top == SORT_END;
  KN_GLOBAL uint* row = result + (ulong)KN_GROUP_X * 2 * p.k;
  for (uint r = t; r < p.k; r += n) {
    const uint key = sort_word_key(best[r]), ordered = ~key;
    const uint bits = (ordered & 0x80000000u) != 0 ? ordered ^ 0x80000000u : ~ordered;
    row[r] = bad || key == SORT_END ? CANDIDATES_NONE : (uint)best[r];
    row[p.k + r] = bad ? kn_bits(KN_NAN) : key == SORT_END ? kn_bits(-KN_INF) : bits;
  }
}

// A token that was never seen has 0 in `seen`, another one 1 and how often it was generated; the one in `token` has been generated just now.
// Bias, frequency and presence, repetition, each rounded for itself.
#define PENALTIES_EACH 4u  // elements of a thread

KN_CHAINED(logit_penalties_f32, 0);
KN_KERNEL(logit_penalties_f32, 256, LogitPenaltiesParams, KN_IN_ALIAS(0, float, x), KN_IN_ALIAS(1, float, bias), KN_IN_ALIAS(2, uint, token),
          KN_OUT(3, uint, seen), KN_OUT(4, float, y)) {
  KN_CHAIN;
  const uint generated = token[0];
  KN_UNROLL for (uint j = 0; j < PENALTIES_EACH; ++j) {
    const uint i = (KN_GROUP_X * PENALTIES_EACH + j) * KN_BLOCK_X + KN_THREAD_X;
    if (i < p.n) {
      uint times = seen[i];
      if (i == generated) {
        times = kn_max(times, 1u) + 1;
        seen[i] = times;
      }
      float v = kn_add_rn(x[i], bias[i]);
      if (times > 1) v = kn_add_rn(v, -kn_add_rn(kn_mul_rn(p.frequency, (float)(times - 1)), p.presence));
      if (times > 0 && p.repetition != 1.0f) v = v >= 0.0f ? v / p.repetition : v * p.repetition;
      y[i] = v;
    }
  }
}
