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

/// A block's leaves; leaf(shape) hands out the next one.
template <typename Leaf>
BlockWeights cut_block(const ModelConfig& config, int64_t tensor_count, const Leaf& leaf) {
  const int64_t hidden = config.hidden_size;
  const int64_t query = config.num_attention_heads * config.head_dim / tensor_count;
  const int64_t key_value = config.num_key_value_heads * config.head_dim / tensor_count;
  const int64_t feed_forward = config.intermediate_size / tensor_count;
  BlockWeights block;
  block.qkv = leaf({query + 2 * key_value, hidden});
  if (config.attention_bias) block.qkv_bias = leaf({query + 2 * key_value});
  block.output = leaf({hidden, query});
  if (config.qk_norm) {
    block.q_norm = leaf({config.head_dim});
    block.k_norm = leaf({config.head_dim});
  }
  block.gate_up = leaf({2 * feed_forward, hidden});
  block.down = leaf({hidden, feed_forward});
  block.input_norm = leaf({hidden});
  block.post_attention_norm = leaf({hidden});
  return block;
}

}  // namespace

Parameters::Parameters(const ModelConfig& config, Tensor flat)
    : Parameters(config, whole_model(config), std::move(flat)) {}

Parameters::Parameters(const ModelConfig& config, const ModelPart& part, Tensor flat)
    : flat_(std::move(flat)), part_(part), specs_(part_specs(config, part)) {
  PELAGO_ASSERT(flat_.dim() == 1 && flat_.is_contiguous() && !flat_.requires_grad(),
                "the flat vector is one contiguous range outside autograd");
  PELAGO_ASSERT(flat_.size(0) == num_values(specs_), "the flat vector holds the whole part");
  const torch::NoGradGuard no_grad;
  LeafCutter view_cutter(flat_);
  for (const PartSpec& spec : specs_) {
    idx_of_name_[spec.local.name] = views_.size();
    views_.push_back(view_cutter.next(spec.local.shape));
  }

  LeafCutter cutter(flat_);
  const auto leaf = [&](const std::vector<int64_t>& shape) {
    const int64_t begin = cutter.begin();
    leaves_.push_back({cutter.next(shape).requires_grad_(true), begin});
    return leaves_.back().weight;
  };
  const bool is_tied = config.tie_word_embeddings;
  const int64_t hidden = config.hidden_size;
  if (part.has_embedding() || (part.has_head() && is_tied)) {
    embedding_ = cutter.next({config.vocab_size, hidden});
  }
  for (int64_t block_idx = part.first_block; block_idx < part.last_block; ++block_idx) {
    first_leaves_.push_back(leaves_.size());
    blocks_.push_back(cut_block(config, part.tensor_count, leaf));
  }
  first_leaves_.push_back(leaves_.size());
  if (part.has_head()) {
    final_norm_ = leaf({hidden});
    if (is_tied) {
      head_ = embedding_.detach().requires_grad_(true);
      leaves_.push_back({head_, 0});
    } else {
      head_ = leaf({config.vocab_size, hidden});
    }
  }
  PELAGO_ASSERT(cutter.begin() == flat_.size(0), "leaves are cut in the order of specs()");
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

void Parameters::move_leaves_into(size_t begin, size_t end, Tensor& flat_gradient) {
  const torch::NoGradGuard no_grad;
  for (size_t i = begin; i < end; ++i) {
    Tensor& gradient = leaves_[i].weight.mutable_grad();
    if (!gradient.defined()) continue;
    Tensor sum = flat_gradient.narrow(0, leaves_[i].begin, gradient.numel());
    chips::accumulate(sum, gradient.reshape({-1}));
    gradient.reset();
  }
}

void Parameters::move_block_gradients_into(size_t block_idx, Tensor& flat_gradient) {
  move_leaves_into(first_leaves_[block_idx], first_leaves_[block_idx + 1], flat_gradient);
}

void Parameters::move_head_gradients_into(Tensor& flat_gradient) {
  move_leaves_into(first_leaves_.back(), leaves_.size(), flat_gradient);
}

void Parameters::add_embedding_gradient(const Tensor& tokens,
                                        const Tensor& row_gradients,
                                        Tensor& flat_gradient) const {
  const torch::NoGradGuard no_grad;
  Tensor sum = flat_gradient.narrow(0, 0, embedding_.numel()).view(embedding_.sizes());
  sum.index_add_(0, tokens, row_gradients.to(at::kFloat));
}

void Parameters::move_gradients_into(Tensor& flat_gradient) {
  move_leaves_into(0, leaves_.size(), flat_gradient);
  for (const LookedUp& lookup : looked_up_) {
    if (!lookup.rows.grad().defined()) continue;
    add_embedding_gradient(lookup.tokens, lookup.rows.grad(), flat_gradient);
  }
  looked_up_.clear();
}

}  // namespace pelago::model
