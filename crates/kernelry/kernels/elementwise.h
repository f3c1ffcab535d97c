// Sums, products and casts: computed in f32, rounded once. One operation of two 16-bit values has the correctly rounded result that way.
//
// The sum of rows and a vector takes one block for each stretch of a row.
#include "map.h"

struct ElementwiseAdd {
  static KN_FN float of(float a, float b, float) { return a + b; }
};
struct ElementwiseMul {
  static KN_FN float of(float a, float b, float) { return a * b; }
};
struct ElementwiseScale {
  static KN_FN float of(float a, float, float s) { return a * s; }
};
struct ElementwiseCast {
  static KN_FN float of(float a, float, float) { return a; }
};

MAP_BINARY(elementwise_add_f32, ElementwiseParams, float, ElementwiseAdd)
MAP_BINARY(elementwise_add_f16, ElementwiseParams, kn_f16, ElementwiseAdd)
MAP_BINARY(elementwise_add_bf16, ElementwiseParams, kn_bf16, ElementwiseAdd)
MAP_BINARY(elementwise_mul_f32, ElementwiseParams, float, ElementwiseMul)
MAP_BINARY(elementwise_mul_f16, ElementwiseParams, kn_f16, ElementwiseMul)
MAP_BINARY(elementwise_mul_bf16, ElementwiseParams, kn_bf16, ElementwiseMul)
MAP_UNARY(cast_f16_to_f32, ElementwiseParams, kn_f16, float, ElementwiseCast, 0.0f)
MAP_UNARY(cast_bf16_to_f32, ElementwiseParams, kn_bf16, float, ElementwiseCast, 0.0f)
MAP_UNARY(cast_f32_to_f16, ElementwiseParams, float, kn_f16, ElementwiseCast, 0.0f)
MAP_UNARY(cast_f32_to_bf16, ElementwiseParams, float, kn_bf16, ElementwiseCast, 0.0f)
MAP_UNARY(scalar_mul_f32, ScalarMulParams, float, float, ElementwiseScale, p.scalar)
MAP_UNARY(scalar_mul_bf16, ScalarMulParams, kn_bf16, kn_bf16, ElementwiseScale, p.scalar)

// Group x is a row times the stretches of a row, which are tiles of the map: the row is a map of its own length.
KN_KERNEL(add_bias_f32, MAP_THREADS, AddBiasParams, KN_IN_ALIAS(0, float, x), KN_IN(1, float, bias), KN_OUT_ALIAS(2, float, out)) {
  const uint tiles = kn_cdiv(p.cols, MAP_TILE);
  const ulong row = (ulong)(KN_GROUP_X / tiles) * p.cols;
  map_tile<ElementwiseAdd, true>(x + row, bias, out + row, p.cols, 0.0f, KN_GROUP_X % tiles, KN_THREAD_X);
}
