// Gates, GELU and softcap, in f32 with one rounding when stored. The logistic function is 1 / (1 + exp(-x)): its exponential may overflow,
// which gives zero, never NaN.
#include "map.h"

KN_FN float activation_sigmoid(float v) { return 1.0f / (1.0f + kn_exp(-v)); }

struct ActivationSigmoidMul {
  static KN_FN float of(float x, float gate, float) { return x * activation_sigmoid(gate); }
};
struct ActivationSiluMul {
  static KN_FN float of(float gate, float up, float) { return gate * activation_sigmoid(gate) * up; }
};
// x/2 (1 + tanh t) = x sigma(2 t), without the cancellation for negative t.
struct ActivationGelu {
  static KN_FN float of(float x, float, float) {
    const float t = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return x * activation_sigmoid(2.0f * t);
  }
};
struct ActivationSoftcap {
  static KN_FN float of(float x, float, float cap) { return kn_tanh(x / cap) * cap; }
};

MAP_BINARY(sigmoid_mul_f32, ActivationParams, float, ActivationSigmoidMul)
MAP_BINARY(sigmoid_mul_bf16, ActivationParams, kn_bf16, ActivationSigmoidMul)
MAP_BINARY(silu_mul_f32, ActivationParams, float, ActivationSiluMul)
MAP_UNARY(gelu_f32, ActivationParams, float, float, ActivationGelu, 0.0f)
MAP_UNARY(gelu_f16, ActivationParams, kn_f16, kn_f16, ActivationGelu, 0.0f)
MAP_UNARY(gelu_bf16, ActivationParams, kn_bf16, kn_bf16, ActivationGelu, 0.0f)
MAP_UNARY(softcap_f32, SoftcapParams, float, float, ActivationSoftcap, p.cap)
MAP_UNARY(softcap_f16, SoftcapParams, kn_f16, kn_f16, ActivationSoftcap, p.cap)
MAP_UNARY(softcap_bf16, SoftcapParams, kn_bf16, kn_bf16, ActivationSoftcap, p.cap)
