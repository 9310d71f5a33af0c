#include "chips/emulator/ops/op_traits.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <unordered_map>

#include "chips/torch.h"

namespace pelago::emulator {
namespace {

struct KnownOp {
  std::string_view name;
  CostKind cost;
  int left_idx = 0;
  uint64_t f32_outputs = 0;
};

constexpr KnownOp kKnownOps[] = {
    {"aten::mm", CostKind::kMatmul, 0},
    {"aten::bmm", CostKind::kMatmul, 0},
    {"aten::mv", CostKind::kMatmul, 0},
    {"aten::dot", CostKind::kMatmul, 0},
    {"aten::addmm", CostKind::kMatmul, 1},
    {"aten::baddbmm", CostKind::kMatmul, 1},
    {"aten::addbmm", CostKind::kMatmul, 1},
    {"aten::addmv", CostKind::kMatmul, 1},
    {"aten::index", CostKind::kGather},
    {"aten::index_select", CostKind::kGather},
    {"aten::embedding", CostKind::kGather},
    {"aten::gather", CostKind::kGather},
    {"aten::take", CostKind::kGather},
    {"aten::fill_", CostKind::kFill},
    {"aten::zero_", CostKind::kFill},
    {"aten::normal_", CostKind::kFill},
    {"aten::uniform_", CostKind::kFill},
    {"aten::resize_", CostKind::kFree},
    {"pelago::rms_norm", CostKind::kStream, 0, 0b10},
    {"pelago::add_rms_norm", CostKind::kStream, 0, 0b100},
    {"pelago::attention", CostKind::kAttention, 0, 0b10},
    {"pelago::attention_backward", CostKind::kAttentionBackward, 1},
    {"pelago::cross_entropy", CostKind::kCrossEntropy, 0, 0b1},
};

// Operators whose result's size depends on values: a real chip must report it to the host.
constexpr std::string_view kOpsThatWait[] = {
    "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim"};

/// A schema calls it an int; only its real type tells.
bool is_dtype(const c10::Argument& argument) {
  c10::TypePtr type = argument.real_type();
  if (const auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
  return type->kind() == c10::TypeKind::ScalarTypeType;
}

OpTraits read_traits(const c10::OperatorHandle& op) {
  const c10::FunctionSchema& schema = op.schema();
  OpTraits traits;
  traits.num_arguments = schema.arguments().size();
  traits.num_returns = schema.returns().size();
  for (size_t i = 0; i < std::min<size_t>(traits.num_arguments, 64); ++i) {
    const c10::Argument& argument = schema.arguments()[i];
    if (is_dtype(argument)) traits.dtypes |= uint64_t{1} << i;
    if (argument.alias_info() == nullptr || !argument.alias_info()->isWrite()) continue;
    traits.written |= uint64_t{1} << i;
    if (argument.kwarg_only()) traits.write_only |= uint64_t{1} << i;
  }
  for (const c10::Argument& result : schema.returns()) {
    const bool is_view = result.alias_info() != nullptr && !result.alias_info()->isWrite();
    if (is_view) traits.cost = CostKind::kFree;
    if (result.type()->kind() == c10::TypeKind::TensorType) continue;
    if (result.type()->kind() != c10::TypeKind::ListType) traits.host_waits = true;
  }
  const std::string& name = schema.name();
  const auto* const known = std::ranges::find(kKnownOps, std::string_view(name), &KnownOp::name);
  if (known != std::end(kKnownOps)) {
    traits.cost = known->cost;
    traits.left_idx = known->left_idx;
    traits.f32_outputs = known->f32_outputs;
  }
  traits.host_waits |= std::ranges::find(kOpsThatWait, name) != std::end(kOpsThatWait);
  return traits;
}

double bytes_of(const at::Tensor& tensor) {
  return static_cast<double>(tensor.numel()) * static_cast<double>(tensor.element_size());
}

const at::Tensor* find_argument(std::span<const TensorArgument> arguments, int argument_idx) {
  for (const TensorArgument& argument : arguments) {
    if (argument.argument_idx == argument_idx) return &argument.host;
  }
  return nullptr;
}

/// Two operations for each product over the last dimension of left.
double matmul_flops(const at::Tensor& left, const at::Tensor& right) {
  const double num_columns = right.dim() > 1 ? static_cast<double>(right.size(-1)) : 1.0;
  return 2.0 * static_cast<double>(left.numel()) * num_columns;
}

/// The forward pass makes two matmuls over the visible pairs of query and key; q: [B,T,H,E].
double attention_flops(const at::Tensor& q, const at::Tensor& k) {
  const auto num_queries = static_cast<double>(q.size(1));
  const auto num_keys = static_cast<double>(k.size(1));
  const double num_pairs =
      num_queries * (num_keys - num_queries) + num_queries * (num_queries + 1) / 2;
  return 4.0 * num_pairs * static_cast<double>(q.size(0) * q.size(2) * q.size(3));
}

double flops_of(const OpTraits& traits,
                const at::Tensor& left,
                const at::Tensor& right,
                std::span<const at::Tensor> outputs) {
  switch (traits.cost) {
    case CostKind::kMatmul:
      return matmul_flops(left, right);
    case CostKind::kAttention:
      return attention_flops(left, right);
    case CostKind::kAttentionBackward:
      return 2.5 * attention_flops(left, right);  // q k^T again, then four gradients: 5 for 2
    case CostKind::kCrossEntropy: {
      const double logits =
          2.0 * static_cast<double>(left.numel()) * static_cast<double>(right.size(0));
      const bool has_grad = outputs.size() > 1 && outputs[1].numel() > 0;
      return has_grad ? 3 * logits : logits;  // two more matmuls make the gradients
    }
    default:
      return 0;
  }
}

}  // namespace

OpTraits& traits_of(const c10::OperatorHandle& op) {
  thread_local std::unordered_map<const c10::FunctionSchema*, OpTraits> known;
  const c10::FunctionSchema* const key = &op.schema();
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  return known.emplace(key, read_traits(op)).first->second;
}

Cost cost_of(const OpTraits& traits,
             std::span<const TensorArgument> arguments,
             std::span<const at::Tensor> outputs) {
  Cost cost;
  if (traits.cost == CostKind::kFree) {
    cost.is_launched = false;
    return cost;
  }
  double read_bytes = 0;
  double written_bytes = 0;
  double index_bytes = 0;  // what a gather reads besides its table
  for (const TensorArgument& argument : arguments) {
    // A broadcast tensor is read once, whatever its shape says.
    const double bytes =
        std::min(bytes_of(argument.host), static_cast<double>(argument.host.storage().nbytes()));
    if (argument.is_read) read_bytes += bytes;
    if (argument.is_read && argument.argument_idx > 0) index_bytes += bytes;
    if (argument.is_written) written_bytes += bytes;
  }
  for (const at::Tensor& output : outputs) {
    if (output.defined()) written_bytes += bytes_of(output);
  }
  cost.bytes = read_bytes + written_bytes;
  if (traits.cost == CostKind::kFill) cost.bytes = written_bytes;
  if (traits.cost == CostKind::kGather) cost.bytes = index_bytes + 2 * written_bytes;

  const at::Tensor* const left = find_argument(arguments, traits.left_idx);
  const at::Tensor* const right = find_argument(arguments, traits.left_idx + 1);
  if (left != nullptr && right != nullptr) {
    const double flops = flops_of(traits, *left, *right, outputs);
    (left->element_size() <= 2 ? cost.flops_16bit : cost.flops_32bit) = flops;
  }
  return cost;
}

}  // namespace pelago::emulator
