// What pelago uses of libtorch, in one place that is compiled once (PCH): tensors and operators. A
// source that reaches it pays for the templates of whatever stands here, needed or not: gcc makes
// them anew at the end of each. With autograd's functions, operators' registration, torch/types.h
// and torch/utils.h as well it was 0.8 s of processor time more a source (docs/LOG.md); so the few
// sources that write such functions include <torch/csrc/autograd/custom_function.h>,
// <torch/library.h> or <torch/cuda.h> themselves.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

/// What torch/types.h and torch/utils.h would declare in namespace torch. Theirs, where a source
/// includes them too, hide these.
namespace pelago::chips::torch_names {
constexpr auto kUInt8 = at::kByte;
constexpr auto kInt8 = at::kChar;
constexpr auto kInt16 = at::kShort;
constexpr auto kInt32 = at::kInt;
constexpr auto kInt64 = at::kLong;
constexpr auto kFloat16 = at::kHalf;
constexpr auto kFloat32 = at::kFloat;
constexpr auto kFloat64 = at::kDouble;
}  // namespace pelago::chips::torch_names

namespace torch {
using namespace at;                          // NOLINT(google-build-using-namespace): as theirs does
using namespace pelago::chips::torch_names;  // NOLINT(google-build-using-namespace)
}  // namespace torch
