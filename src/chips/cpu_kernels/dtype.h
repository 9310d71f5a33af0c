// From a tensor's dtype, known at run time, to the C++ type that a kernel is compiled for.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <cstdint>

#include "chips/cpu_kernels/simd.h"

namespace pelago::chips::cpu {

/// The dtypes that models are trained in.
enum class Dtype { kFloat32, kBFloat16, kFloat16 };

inline Dtype dtype_of(c10::ScalarType type) {
  switch (type) {
    case c10::ScalarType::Float:
      return Dtype::kFloat32;
    case c10::ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case c10::ScalarType::Half:
      return Dtype::kFloat16;
    default:
      TORCH_CHECK(false, "kernels take f32, bf16 and fp16 tensors, not ", type);
  }
}

/// Calls visit(T()) for the C++ type T of the dtype.
template <typename Visit>
void visit_dtype(Dtype dtype, const Visit& visit) {
  switch (dtype) {
    case Dtype::kFloat32:
      return visit(float());
    case Dtype::kBFloat16:
      return visit(hwy::bfloat16_t());
    case Dtype::kFloat16:
      return visit(hwy::float16_t());
  }
}

/// Rows a thread takes at least: below some 32k numbers a hand-over costs more than the work.
inline int64_t rows_a_thread(int64_t row_values) {
  return row_values >= 32768 ? 1 : 32768 / (row_values > 0 ? row_values : 1);
}

}  // namespace pelago::chips::cpu
