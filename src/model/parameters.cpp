#include "model/parameters.h"

#include <utility>

#include "base/error.h"
#include "chips/kernels.h"

namespace pelago::model {

namespace {

/// Hands out consecutive ranges of the flat vector as leaves, in the order of parameter_specs().
class LeafCutter {
 public:
  explicit LeafCutter(const Tensor& flat) : flat_(flat) {}
  int64_t begin() const { return begin_; }

  /// The next values as a view. shape: [rows, columns] or [values].
  Tensor next(const std::vector<int64_t>& shape) {
    int64_t num_values = 1;
    for (const int64_t extent : shape) num_values *= extent;
    const Tensor view = flat_.narrow(0, begin_, num_values).view(shape).detach();
    begin_ += num_values;
    return view;
  }

 private:
  const Tensor& flat_;
  int64_t begin_ = 0;
};

}  // namespace

Parameters::Parameters(const ModelConfig& config, Tensor flat)
    : flat_(std::move(flat)), specs_(parameter_specs(config)) {
  PELAGO_ASSERT(flat_.dim() == 1 && flat_.is_contiguous() && !flat_.requires_grad(),
                "the flat vector is one contiguous range outside autograd");
  PELAGO_ASSERT(flat_.size(0) == config.num_parameters(), "the flat vector holds the whole model");
  const torch::NoGradGuard no_grad;
  LeafCutter view_cutter(flat_);
  for (const ParameterSpec& spec : specs_) {
    idx_of_name_[spec.name] = views_.size();
    views_.push_back(view_cutter.next(spec.shape));
  }

  LeafCutter cutter(flat_);
  const auto leaf = [&](const std::vector<int64_t>& shape) {
    const int64_t begin = cutter.begin();
    leaves_.push_back({cutter.next(shape).requires_grad_(true), begin});
    return leaves_.back().weight;
  };
  const int64_t hidden = config.hidden_size;
  const int64_t query = config.num_attention_heads * config.head_dim;
  const int64_t query_key_value = query + 2 * config.num_key_value_heads * config.head_dim;
  embedding_ = cutter.next({config.vocab_size, hidden});
  for (int64_t layer_idx = 0; layer_idx < config.num_hidden_layers; ++layer_idx) {
    BlockWeights block;
    block.qkv = leaf({query_key_value, hidden});
    if (config.attention_bias) block.qkv_bias = leaf({query_key_value});
    block.output = leaf({hidden, query});
    if (config.qk_norm) {
      block.q_norm = leaf({config.head_dim});
      block.k_norm = leaf({config.head_dim});
    }
    block.gate_up = leaf({2 * config.intermediate_size, hidden});
    block.down = leaf({hidden, config.intermediate_size});
    block.input_norm = leaf({hidden});
    block.post_attention_norm = leaf({hidden});
    blocks_.push_back(std::move(block));
  }
  final_norm_ = leaf({hidden});
  if (config.tie_word_embeddings) {
    head_ = embedding_.detach().requires_grad_(true);
    leaves_.push_back({head_, 0});
  } else {
    head_ = leaf({config.vocab_size, hidden});
  }
  PELAGO_ASSERT(cutter.begin() == flat_.size(0), "leaves are cut in parameter_specs() order");
}

const Tensor& Parameters::at(std::string_view name) const {
  const auto found = idx_of_name_.find(name);
  if (found == idx_of_name_.end()) fail("the model has no parameter \"{}\"", name);
  return views_[found->second];
}

Tensor Parameters::embed(const Tensor& tokens) const {
  Tensor rows;  // [N,D]
  {
    const torch::NoGradGuard no_grad;
    rows = at::embedding(embedding_, tokens);
  }
  if (at::GradMode::is_enabled()) {
    rows.requires_grad_(true);
    looked_up_.push_back({tokens, rows});
  }
  return rows;
}

void Parameters::move_gradients_into(Tensor& flat_gradient) {
  const torch::NoGradGuard no_grad;
  for (const Leaf& leaf : leaves_) {
    Tensor& gradient = leaf.weight.mutable_grad();
    if (!gradient.defined()) continue;
    Tensor sum = flat_gradient.narrow(0, leaf.begin, leaf.weight.numel());
    chips::accumulate(sum, gradient.reshape({-1}));
    gradient.reset();
  }
  Tensor embedding_sum = flat_gradient.narrow(0, 0, embedding_.numel()).view(embedding_.sizes());
  for (const LookedUp& lookup : looked_up_) {
    if (!lookup.rows.grad().defined()) continue;
    embedding_sum.index_add_(0, lookup.tokens, lookup.rows.grad().to(at::kFloat));
  }
  looked_up_.clear();
}

}  // namespace pelago::model
