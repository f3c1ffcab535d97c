// Logits on the way to a token: penalties, and the k best elements.
//
// The k best elements of each row, in the order of order.h, in two launches: each block sorts out those of SORT_ROOM columns, then one block a
// row sorts out the best of what those left.
//
// Few elements get as far as sorting. The elements are dealt into at least k groups, and each group has one that is as good as the worst
// of the groups' best: what is worse than that is not among the k best. In a row without order a few times k are left.
//
// -inf is no candidate. NaN and +inf go before everything, so that they reach the end, where they make the row a bad one.
#include "sampling/order.h"

#define CANDIDATES_MOST 256u
#define CANDIDATES_FLIGHT 8u      // elements that a thread loads at once in the second launch
#define CANDIDATES_BAD 0u         // the key of NaN and +inf here
#define CANDIDATES_LOW 0xff800000u  // that of -inf
#define CANDIDATES_NONE 0xffffffffu

KN_FN uint candidates_key(float v) { return v < KN_INF ? sort_key(v) : CANDIDATES_BAD; }

// Groups that elements are dealt into: as many as lanes at least, so that no two of a warp meet, and threads at most.
KN_FN uint candidates_groups(uint k) { return kn_max(k, KN_WARP); }

KN_FN uint candidates_keep(uint k) {
  uint keep = 2;
  while (keep < k) keep *= 2;
  return keep;
}

// The best key of each group is in `heads`: the worst of them, in every thread.
KN_FN uint candidates_limit(KN_LOCAL const uint* heads, uint groups, uint lane) {
  uint limit = 0;
  for (uint g = lane; g < groups; g += KN_WARP) limit = kn_max(limit, heads[g]);
  return kn_min(kn_warp_max(limit), CANDIDATES_LOW - 1);
}

// Rank r of block b of a row goes to element [r, b], so that the second launch reads best ones first. CANDIDATES_NONE stands where there is none.
KN_CHAINED(candidates_f32, 0);
KN_KERNEL(candidates_f32, 512, CandidatesParams, KN_IN_ALIAS(0, float, x), KN_OUT(1, uint, keys), KN_OUT(2, uint, ids)) {
  KN_SHARED(ulong, words, SORT_ROOM);
  KN_SHARED(uint, heads, CANDIDATES_MOST);
  KN_SHARED(uint, found, 1);
  const uint t = KN_THREAD_X, n = KN_BLOCK_X, groups = candidates_groups(p.k);
  for (uint g = t; g < groups; g += n) heads[g] = SORT_END;
  if (t == 0) found[0] = 0;
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
  const uint limit = candidates_limit(heads, groups, KN_LANE);
  KN_UNROLL for (uint i = 0; i < 4; ++i) {
    if (mine[i] <= limit) words[kn_atomic_add_local(found, 1)] = sort_word(mine[i], first + start + i * stride);
  }
  kn_barrier();
  sort_first(words, found[0], candidates_keep(p.k), t, n);
  for (uint r = t; r < p.k; r += n) {
    const ulong at = ((ulong)row * p.k + r) * blocks + block;
    keys[at] = sort_word_key(words[r]);
    ids[at] = (uint)words[r];
  }
}

// More words than SORT_ROOM under the limit: the k-th best of those that found room is a lower one, until all have room. The result is
// indices, then the bits of values.
KN_CHAINED(candidates_merge_f32, 0);
KN_KERNEL(candidates_merge_f32, 1024, CandidatesParams, KN_IN_ALIAS(0, uint, keys), KN_IN_ALIAS(1, uint, ids), KN_OUT(2, uint, best)) {
  KN_SHARED(ulong, words, SORT_ROOM);
  KN_SHARED(uint, heads, CANDIDATES_MOST);
  KN_SHARED(uint, found, 1);
  const uint t = KN_THREAD_X, n = KN_BLOCK_X, groups = candidates_groups(p.k), keep = candidates_keep(p.k);
  for (uint g = t; g < groups; g += n) heads[g] = SORT_END;
  kn_barrier();
  KN_CHAIN;
  const uint total = p.k * kn_cdiv(p.cols, SORT_ROOM);
  KN_GLOBAL const uint* row_keys = keys + (ulong)KN_GROUP_X * total;
  KN_GLOBAL const uint* row_ids = ids + (ulong)KN_GROUP_X * total;
  uint head = SORT_END;
  for (uint base = t; base < total; base += CANDIDATES_FLIGHT * n) {
    KN_UNROLL for (uint i = 0; i < CANDIDATES_FLIGHT; ++i) {
      if (base + i * n < total) head = kn_min(head, row_keys[base + i * n]);
    }
  }
  kn_atomic_min_local(heads + t % groups, head);
  kn_barrier();
  ulong limit = sort_word(candidates_limit(heads, groups, KN_LANE), SORT_END);
  uint count;
  do {
    if (t == 0) found[0] = 0;
    kn_barrier();
    for (uint base = t; base < total; base += CANDIDATES_FLIGHT * n) {
      KN_UNROLL for (uint i = 0; i < CANDIDATES_FLIGHT; ++i) {
        const uint at = base + i * n;
        if (at < total && row_keys[at] <= sort_word_key(limit)) {
          const ulong word = sort_word(row_keys[at], row_ids[at]);
          const uint to = word <= limit ? kn_atomic_add_local(found, 1) : SORT_ROOM;
          if (to < SORT_ROOM) words[to] = word;
        }
      }
    }
    kn_barrier();
    count = found[0];
    sort_first(words, kn_min(count, SORT_ROOM), keep, t, n);
    limit = words[p.k - 1];
    kn_barrier();
  } while (count > SORT_ROOM);
  const uint top = sort_word_key(words[0]);
  const bool bad = top == CANDIDATES_BAD || top == SORT_END;
  KN_GLOBAL uint* row_best = best + (ulong)KN_GROUP_X * 2 * p.k;
  for (uint r = t; r < p.k; r += n) {
    const uint key = sort_word_key(words[r]), ordered = ~key;
    const uint bits = (ordered & 0x80000000u) != 0 ? ordered ^ 0x80000000u : ~ordered;
    row_best[r] = bad || key == SORT_END ? CANDIDATES_NONE : (uint)words[r];
    row_best[p.k + r] = bad ? kn_bits(KN_NAN) : key == SORT_END ? kn_bits(-KN_INF) : bits;
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
