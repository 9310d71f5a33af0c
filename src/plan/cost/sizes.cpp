#include "plan/cost/sizes.h"

#include <algorithm>
#include <cmath>

namespace pelago::plan {

ModelSizes sizes_of(const model::ModelConfig& config, int64_t sequence_length) {
  ModelSizes sizes;
  sizes.hidden = static_cast<double>(config.hidden_size);
  sizes.feed_forward = static_cast<double>(config.intermediate_size);
  sizes.vocab = static_cast<double>(config.vocab_size);
  sizes.query = static_cast<double>(config.num_attention_heads * config.head_dim);
  sizes.key = static_cast<double>(config.num_key_value_heads * config.head_dim);
  sizes.query_heads = static_cast<double>(config.num_attention_heads);
  sizes.key_heads = static_cast<double>(config.num_key_value_heads);
  sizes.tokens = static_cast<double>(sequence_length);
  sizes.is_tied = config.tie_word_embeddings;
  sizes.has_qk_norm = config.qk_norm;
  sizes.has_bias = config.attention_bias;
  sizes.num_blocks = config.num_hidden_layers;
  return sizes;
}

ModelSizes sizes_of(const JobConfig& job, int64_t sequence_length) {
  ModelSizes sizes = sizes_of(job.model, sequence_length);
  if (job.experts.is_dense()) return sizes;
  sizes.feed_forward = static_cast<double>(job.experts.moe_intermediate_size);
  sizes.experts = static_cast<double>(job.experts.num_experts);
  sizes.experts_per_token = static_cast<double>(job.experts.num_experts_per_tok);
  return sizes;
}

std::vector<BlockMatrix> block_matrices(const ModelSizes& sizes) {
  std::vector<BlockMatrix> matrices = {{sizes.query, sizes.hidden, 1},
                                       {sizes.key, sizes.hidden, 2},
                                       {sizes.hidden, sizes.query, 1},
                                       {sizes.feed_forward, sizes.hidden, 2 * sizes.experts},
                                       {sizes.hidden, sizes.feed_forward, sizes.experts}};
  if (!sizes.is_dense()) matrices.push_back({sizes.experts, sizes.hidden, 1});
  return matrices;
}

double block_values(const ModelSizes& sizes, double width) {
  const double projected = sizes.query + 2 * sizes.key;
  const double cut =
      sizes.hidden * (projected + sizes.query + 3 * sizes.feed_forward * sizes.experts) +
      (sizes.has_bias ? projected : 0);
  const double head_dim = sizes.query / sizes.query_heads;
  const double router = sizes.is_dense() ? 0 : sizes.hidden * sizes.experts;
  return cut / width + router + 2 * sizes.hidden + (sizes.has_qk_norm ? 2 * head_dim : 0);
}

double held_values(const ModelSizes& sizes, const StageShape& shape) {
  const double table = sizes.vocab * sizes.hidden;
  double values =
      static_cast<double>(shape.num_blocks) * block_values(sizes, static_cast<double>(shape.width));
  if (shape.has_embedding || (shape.has_head && sizes.is_tied)) values += table;
  if (shape.has_head) values += sizes.hidden + (sizes.is_tied ? 0 : table);
  return values;
}

double decaying_runs(const ModelSizes& sizes) {
  return 1.0 + (sizes.has_bias ? 1 : 0) + (sizes.has_qk_norm ? 1 : 0);
}

double update_runs(const ModelSizes& sizes, const StageShape& shape) {
  // A block begins with matrices and ends with norms; biases and the norms of queries and keys
  // stand between matrices.
  double runs = static_cast<double>(shape.num_blocks) * 2 * decaying_runs(sizes);
  if (shape.has_embedding) runs += 1;
  if (shape.has_head) runs += sizes.is_tied && shape.has_embedding ? 1 : 2;
  return runs;
}

double usual_bucket_values(double num_parameters) {
  constexpr double kFewest = 1 << 18, kMost = 1 << 22;
  constexpr double kBuckets = 16;
  return std::clamp(std::floor(num_parameters / kBuckets), kFewest, kMost);
}

bool can_be_cut(const ModelSizes& sizes, int64_t width) {
  const auto divides = [&](double value) {
    return std::fmod(value, static_cast<double>(width)) == 0;
  };
  return divides(sizes.query_heads) && divides(sizes.key_heads) && divides(sizes.feed_forward) &&
         divides(sizes.tokens);
}

}  // namespace pelago::plan
