// Arg-max, and sampling by inverse cumulative distribution, one block a row. A row with NaN or +inf, or of -inf alone, has no answer: its
// index is SAMPLING_NONE and its value NaN.

#define SAMPLING_NONE 0xffffffffu
#define SAMPLING_FLIGHT 4u  // groups of four elements that a thread loads at once

// The largest element and the lowest index that has it. `bad` is set by NaN and +inf.
KN_FN void sampling_take(KN_PRIVATE float& best, KN_PRIVATE uint& at, KN_PRIVATE bool& bad, float v, uint i) {
  bad = bad || !(v < KN_INF);
  if (v > best) {
    best = v;
    at = i;
  }
}

KN_FN void sampling_better(KN_PRIVATE float& best, KN_PRIVATE uint& at, float v, uint i) {
  if (v > best || (v == best && i < at)) {
    best = v;
    at = i;
  }
}

// The best of a row in every thread; `at` is SAMPLING_NONE where there is none. The scratch arrays hold KN_SCRATCH elements.
KN_FN void sampling_best(KN_PRIVATE float& best, KN_PRIVATE uint& at, KN_GLOBAL const float* x, uint cols, KN_LOCAL float* values,
                         KN_LOCAL uint* indices, uint t, uint n, uint lane, uint warp) {
  bool bad = false;
  best = -KN_INF;
  at = SAMPLING_NONE;
  uint from = 0;
  if (kn_aligned(x, 16)) {
    from = cols / 4 * 4;
    for (uint c = 4 * t; c < from; c += 4 * n * SAMPLING_FLIGHT) {
      float4 v[SAMPLING_FLIGHT];
      KN_UNROLL for (uint k = 0; k < SAMPLING_FLIGHT; ++k) {
        if (c + 4 * n * k < from) v[k] = kn_load4(x + c + 4 * n * k);
      }
      KN_UNROLL for (uint k = 0; k < SAMPLING_FLIGHT; ++k) {
        const uint i = c + 4 * n * k;
        if (i < from) {
          sampling_take(best, at, bad, v[k].x, i);
          sampling_take(best, at, bad, v[k].y, i + 1);
          sampling_take(best, at, bad, v[k].z, i + 2);
          sampling_take(best, at, bad, v[k].w, i + 3);
        }
      }
    }
  }
  for (uint c = from + t; c < cols; c += n) sampling_take(best, at, bad, x[c], c);
  // A bad row becomes one that no element beats and that has no index.
  if (bad) {
    best = KN_INF;
    at = SAMPLING_NONE;
  }
  for (uint o = KN_WARP / 2; o; o >>= 1) sampling_better(best, at, kn_shfl_xor(best, o), kn_shfl_xor(at, o));
  if (lane == 0) {
    values[warp] = best;
    indices[warp] = at;
  }
  kn_barrier();
  for (uint w = 0; w < n / KN_WARP; ++w) sampling_better(best, at, values[w], indices[w]);
  kn_barrier();
}

KN_CHAINED(argmax_f32, 0);
KN_KERNEL(argmax_f32, 1024, RowsParams, KN_IN_ALIAS(0, float, x), KN_OUT(1, uint, index), KN_OUT(2, float, value)) {
  KN_CHAIN;
  KN_SHARED(float, values, KN_SCRATCH);
  KN_SHARED(uint, indices, KN_SCRATCH);
  float best;
  uint at;
  sampling_best(best, at, x + (ulong)KN_GROUP_X * p.cols, p.cols, values, indices, KN_THREAD_X, KN_BLOCK_X, KN_LANE, KN_WARP_ID);
  if (KN_THREAD_X == 0) {
    index[KN_GROUP_X] = at;
    value[KN_GROUP_X] = at == SAMPLING_NONE ? KN_NAN : best;
  }
}

// Inclusive sum over the lanes of a warp.
KN_FN float sampling_scan(float v, uint lane) {
  for (uint o = 1; o < KN_WARP; o *= 2) {
    const float left = kn_shfl(v, lane >= o ? lane - o : lane);
    if (lane >= o) v += left;
  }
  return v;
}

KN_FN float sampling_weight(float x, float top, float inverse) { return kn_exp((x - top) * inverse); }

// Every thread has a segment of the row, summed by its warp: lanes read neighbours, and sums are trees, whose error grows with the
// logarithm of the length. The scan over segments says which one the target falls into, and one warp walks through that. An element of
// weight zero is never taken; where rounding leaves no element above the target, the last one with a weight is.
KN_KERNEL(softmax_sample_f32, 512, SoftmaxSampleParams, KN_IN(0, float, x), KN_OUT(1, uint, token), KN_OUT(2, float, logprob)) {
  KN_SHARED(float, values, KN_SCRATCH);
  KN_SHARED(uint, indices, KN_SCRATCH);
  KN_SHARED(float, before, 1);
  const uint t = KN_THREAD_X, n = KN_BLOCK_X, lane = KN_LANE, warp = KN_WARP_ID, warps = n / KN_WARP;
  const float inverse = 1.0f / p.temperature;
  float top;
  uint at;
  sampling_best(top, at, x, p.n, values, indices, t, n, lane, warp);
  if (at == SAMPLING_NONE) {
    if (t == 0) {
      token[0] = SAMPLING_NONE;
      logprob[0] = KN_NAN;
    }
    return;
  }
  const uint length = kn_cdiv(p.n, 4 * n) * 4;
  const bool vector = kn_aligned(x, 16);
  float mine = 0;
  for (uint s = 0; s < KN_WARP; ++s) {
    const uint first = (warp * KN_WARP + s) * length, end = kn_min(first + length, p.n);
    float sum = 0;
    for (uint i = first + 4 * lane; i < end; i += 4 * KN_WARP) {
      if (vector && i + 4 <= end) {
        const float4 v = kn_load4(x + i);
        sum += sampling_weight(v.x, top, inverse) + sampling_weight(v.y, top, inverse) +
               (sampling_weight(v.z, top, inverse) + sampling_weight(v.w, top, inverse));
      } else {
        for (uint j = i; j < kn_min(i + 4, end); ++j) sum += sampling_weight(x[j], top, inverse);
      }
    }
    sum = kn_warp_sum(sum);
    if (lane == s) mine = sum;
  }
  const float scanned = sampling_scan(mine, lane);
  if (lane == KN_WARP - 1) values[warp] = scanned;
  kn_barrier();
  float base = 0, total = 0;
  for (uint w = 0; w < warps; ++w) {
    if (w == warp) base = total;
    total += values[w];
  }
  kn_barrier();
  const float target = p.u * total, left = kn_shfl(scanned, lane == 0 ? 0 : lane - 1);
  const bool weighs = mine > 0.0f;
  // The first segment that passes the target, counted from above so that none is 0; and the last one with a weight.
  const uint first = kn_warp_max(weighs && base + scanned > target ? n - t : 0u), last = kn_warp_max(weighs ? t : 0u);
  if (lane == 0) {
    values[warp] = kn_from_bits(last);
    indices[warp] = first;
  }
  kn_barrier();
  uint found = 0, segment = 0;
  for (uint w = 0; w < warps; ++w) {
    found = kn_max(found, indices[w]);
    segment = kn_max(segment, kn_bits(values[w]));
  }
  if (found != 0) segment = n - found;
  if (t == segment) before[0] = lane == 0 ? base : base + left;
  kn_barrier();
  if (warp != 0) return;
  const float beyond = found != 0 ? target : KN_INF;
  const uint start = segment * length, end = kn_min(start + length, p.n);
  float running = before[0];
  uint hit = SAMPLING_NONE, heavy = 0;
  for (uint i = start; i < end && hit == SAMPLING_NONE; i += KN_WARP) {
    const float e = i + lane < end ? sampling_weight(x[i + lane], top, inverse) : 0.0f;
    const float sum = running + sampling_scan(e, lane);
    hit = kn_warp_min(e > 0.0f && sum > beyond ? i + lane : SAMPLING_NONE);
    if (e > 0.0f) heavy = i + lane;
    running = kn_shfl(sum, KN_WARP - 1);
  }
  heavy = kn_warp_max(heavy);
  if (lane == 0) {
    const uint chosen = hit != SAMPLING_NONE ? hit : heavy;
    token[0] = chosen;
    logprob[0] = (x[chosen] - top) * inverse - kn_log(total);
  }
}
