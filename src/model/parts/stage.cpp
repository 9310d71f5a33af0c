#include "model/parts/stage.h"

#include <torch/csrc/autograd/autograd.h>

#include <limits>
#include <utility>

#include "base/error.h"
#include "chips/kernels.h"

namespace pelago::model {

namespace {

/// The same values, cut off from the graph that made them.
BlockState as_leaves(const BlockState& state) {
  BlockState leaves{.fed = state.fed.detach().requires_grad_(true), .stream = {}};
  if (state.stream.defined()) leaves.stream = state.stream.detach().requires_grad_(true);
  return leaves;
}

/// The largest magnitude, in one pass each. [] f32; NaN if a value is.
Tensor peak_of(const BlockState& state) {
  const torch::NoGradGuard no_grad;
  const auto peak = [](const Tensor& values) {
    return at::linalg_vector_norm(
        values.detach(), std::numeric_limits<double>::infinity(), {}, false, at::kFloat);
  };
  return state.stream.defined() ? at::maximum(peak(state.fed), peak(state.stream))
                                : peak(state.fed);
}

struct StateGradient {
  Tensor fed, stream;  // [N,D]
};

/// Gradients of the leaves `input`, from which `output` was made.
StateGradient back_propagate(const BlockState& output,
                             const StateGradient& gradient,
                             const BlockState& input) {
  torch::autograd::backward({output.fed, output.stream}, {gradient.fed, gradient.stream});
  StateGradient result{.fed = input.fed.grad(), .stream = {}};
  // An input of one tensor stands for both, and so does its gradient for the block before.
  result.stream = input.stream.defined() ? input.stream.grad() : result.fed;
  return result;
}

}  // namespace

Stage::Stage(const ModelConfig& config, Parameters& parameters, const StageOptions& options)
    : config_(config),
      parameters_(&parameters),
      options_(options),
      rope_(config, parameters.flat().device()) {
  const int num_ranks = options.tensor_group == nullptr ? 1 : options.tensor_group->num_ranks();
  PELAGO_ASSERT(num_ranks == parameters.part().tensor_count,
                "a stage's group has the ranks that its matrices are cut over");
}

/// of_all_tokens: [B,T]. Returns [N].
Tensor Stage::own_slice(const Tensor& of_all_tokens) const {
  const ModelPart& part = parameters_->part();
  const Tensor flat = of_all_tokens.reshape({-1});
  const int64_t length = flat.size(0) / part.tensor_count;
  return flat.narrow(0, part.tensor_idx * length, length);
}

BlockState Stage::run(size_t block_idx, const BlockState& input, const RopeTable::Rows& rope) {
  return run_block(config_,
                   parameters_->blocks()[block_idx],
                   input,
                   {.rope = rope, .tensor_group = options_.tensor_group});
}

StagePass Stage::forward(const StageInput& input) {
  const ModelPart& part = parameters_->part();
  const bool keeps = at::GradMode::is_enabled();
  StagePass pass;
  pass.rope_ = rope_.rows(0, input.num_tokens);
  BlockState state;
  if (part.has_embedding()) {
    const torch::NoGradGuard no_grad;
    pass.tokens_ = own_slice(input.tokens);
    state.fed = parameters_->embed(pass.tokens_);
  } else {
    state.fed = input.hidden.to(parameters_->flat().scalar_type());
  }
  const auto tamper = [&](size_t block_idx) {
    if (!options_.tamper) return;
    Tensor made = state.fed.variable_data();  // the same memory, unknown to autograd
    options_.tamper(/*is_forward=*/true, block_idx, made);
  };
  for (size_t block_idx = 0; block_idx < parameters_->blocks().size(); ++block_idx) {
    if (!keeps) {
      state = run(block_idx, state, pass.rope_);
      continue;
    }
    StagePass::Link& link = pass.links_.emplace_back();
    if (options_.recompute) {
      const torch::NoGradGuard no_grad;
      link.input.fed = state.sum();
      state = run(block_idx, link.input, pass.rope_);
    } else {
      link.input = as_leaves(state);
      link.output = state = run(block_idx, link.input, pass.rope_);
    }
    tamper(block_idx);
  }
  if (keeps) pass.peak = peak_of(state);
  if (!part.has_head()) {
    const torch::NoGradGuard no_grad;
    pass.output = state.sum();
    return pass;
  }
  if (keeps) state = pass.head_.input = as_leaves(state);
  const Tensor hidden = final_norm(config_, parameters_->final_norm(), state);
  pass.output = chips::cross_entropy_sum(hidden, parameters_->head(), own_slice(input.targets));
  return pass;
}

Tensor Stage::backward(StagePass&& pass,
                       const Tensor& output_gradient,
                       double scale,
                       Tensor& flat_gradient,
                       const OnUnitDone& on_done) {
  const ModelPart& part = parameters_->part();
  StateGradient gradient;
  if (part.has_head()) {
    const Tensor seed = at::full({}, scale, pass.output.options());
    torch::autograd::backward({pass.output}, {seed});
    gradient.fed = pass.head_.input.fed.grad();
    gradient.stream =
        pass.head_.input.stream.defined() ? pass.head_.input.stream.grad() : gradient.fed;
    pass.head_ = {};
    parameters_->move_head_gradients_into(flat_gradient);
    on_done(1 + part.num_blocks);
  } else {
    gradient.fed = gradient.stream = output_gradient.to(parameters_->flat().scalar_type());
  }
  for (size_t block_idx = pass.links_.size(); block_idx-- > 0;) {
    StagePass::Link link = std::move(pass.links_[block_idx]);
    if (options_.recompute) {
      const at::AutoGradMode with_gradients(true);
      link.input = as_leaves(link.input);
      link.output = run(block_idx, link.input, pass.rope_);
    }
    gradient = back_propagate(link.output, gradient, link.input);
    if (options_.tamper) options_.tamper(/*is_forward=*/false, block_idx, gradient.fed);
    parameters_->move_block_gradients_into(block_idx, flat_gradient);
    on_done(1 + part.first_block + static_cast<int64_t>(block_idx));
  }
  if (!part.has_embedding()) return gradient.fed;
  parameters_->add_embedding_gradient(pass.tokens_, gradient.fed, flat_gradient);
  on_done(0);
  return {};
}

}  // namespace pelago::model
