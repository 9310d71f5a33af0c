#include "model/layers/tensor_parallel.h"

#include <torch/csrc/autograd/custom_function.h>

#include "base/error.h"
#include "chips/torch.h"

namespace pelago::model {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor gathered(const Tensor& slice, chips::Collective& group) {
  const int64_t num_ranks = group.num_ranks();
  Tensor all = at::empty({slice.size(0) * num_ranks, slice.size(1)}, slice.options());  // [N,D]
  all.narrow(0, group.rank() * slice.size(0), slice.size(0)).copy_(slice);
  group.all_gather_slices(all);
  return all;
}

Tensor summed_slice(const Tensor& part, chips::Collective& group) {
  const int64_t num_rows = part.size(0) / group.num_ranks();
  PELAGO_ASSERT(num_rows * group.num_ranks() == part.size(0),
                "the plan lets ranks divide the tokens of a microbatch");
  Tensor sum = part.clone(at::MemoryFormat::Contiguous);
  group.reduce_scatter_sum(sum);
  return sum.narrow(0, group.rank() * num_rows, num_rows).clone();
}

chips::Collective& group_of(AutogradContext* context) {
  return *reinterpret_cast<chips::Collective*>(context->saved_data["group"].toInt());
}

void keep_group(AutogradContext* context, int64_t group) { context->saved_data["group"] = group; }

struct GatherTokens : torch::autograd::Function<GatherTokens> {
  static Tensor forward(AutogradContext* context, const Tensor& slice, int64_t group) {
    keep_group(context, group);
    return gathered(slice, group_of(context));
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {summed_slice(gradients[0], group_of(context)), Tensor()};
  }
};

struct ScatterSum : torch::autograd::Function<ScatterSum> {
  static Tensor forward(AutogradContext* context, const Tensor& part, int64_t group) {
    keep_group(context, group);
    return summed_slice(part, group_of(context));
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {gathered(gradients[0].contiguous(), group_of(context)), Tensor()};
  }
};

bool is_alone(const chips::Collective* group) {
  return group == nullptr || group->num_ranks() == 1;
}

/// Autograd keeps plain values only; the group outlives the backward pass.
int64_t address_of(chips::Collective* group) { return reinterpret_cast<int64_t>(group); }

}  // namespace

Tensor gather_tokens(const Tensor& slice, chips::Collective* group) {
  return is_alone(group) ? slice : GatherTokens::apply(slice, address_of(group));
}

Tensor scatter_sum(const Tensor& part, chips::Collective* group) {
  return is_alone(group) ? part : ScatterSum::apply(part, address_of(group));
}

}  // namespace pelago::model
