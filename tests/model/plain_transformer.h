// The transformer once more, as loops over doubles that follow the papers and share no line with
// src/model: what the fast one is compared with. It can round where one that computes in bf16 does,
// so that what is left between the two is the order of sums.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "chips/tensor.h"
#include "model/config.h"
#include "model/plain_rounding.h"

namespace pelago::model {

class PlainTransformer {
 public:
  using Vector = std::vector<double>;

  /// flat: f32 [N] on the CPU, in parameter_specs() order.
  PlainTransformer(const ModelConfig& config,
                   const Tensor& flat,
                   PlainRounding rounding = PlainRounding::kNone)
      : config_(config), rounding_(rounding) {
    const float* values = flat.data_ptr<float>();
    for (const ParameterSpec& spec : parameter_specs(config)) {
      weights_[spec.name] = Vector(values, values + spec.num_values());
      values += spec.num_values();
    }
  }

  /// One sequence. Returns logits of every position, [T][V].
  std::vector<Vector> logits(const std::vector<int64_t>& tokens) const {
    const auto hidden_size = static_cast<size_t>(config_.hidden_size);
    const Vector& embedding = weights_.at("model.embed_tokens.weight");
    std::vector<Vector> stream;
    for (const int64_t token : tokens) {
      const auto row = embedding.begin() + token * config_.hidden_size;
      stream.emplace_back(row, row + config_.hidden_size);
    }
    for (int64_t layer_idx = 0; layer_idx < config_.num_hidden_layers; ++layer_idx) {
      const std::string prefix = "model.layers." + std::to_string(layer_idx) + ".";
      const std::vector<Vector> attended = attend(stream, prefix);
      for (size_t t = 0; t < stream.size(); ++t) {
        for (size_t d = 0; d < hidden_size; ++d) stream[t][d] += attended[t][d];
        const Vector normed =
            norm(stream[t], weights_.at(prefix + "post_attention_layernorm.weight"));
        Vector gate = project(normed, prefix + "mlp.gate_proj");
        const Vector up = project(normed, prefix + "mlp.up_proj");
        for (size_t f = 0; f < gate.size(); ++f)
          gate[f] = gate[f] / (1 + std::exp(-gate[f])) * up[f];
        const Vector fed = project(gate, prefix + "mlp.down_proj");
        for (size_t d = 0; d < hidden_size; ++d) stream[t][d] += fed[d];
      }
    }
    std::vector<Vector> all;
    for (const Vector& position : stream) {
      all.push_back(project(norm(position, weights_.at("model.norm.weight")),
                            config_.tie_word_embeddings ? "model.embed_tokens" : "lm_head"));
    }
    return all;
  }

  /// Cross entropy of one position.
  static double loss(const Vector& logits, int64_t target) {
    double total = 0;
    for (const double logit : logits) total += std::exp(logit);
    return std::log(total) - logits[static_cast<size_t>(target)];
  }

 private:
  Vector norm(const Vector& x, const Vector& weight) const {
    double sum = 0;
    for (const double value : x) sum += value * value;
    const double rms = std::sqrt(sum / static_cast<double>(x.size()) + config_.rms_norm_eps);
    Vector y;
    for (size_t idx = 0; idx < x.size(); ++idx) y.push_back(x[idx] / rms * weight[idx]);
    return y;
  }

  Vector project(Vector x, const std::string& name) const {
    round_plain(x, rounding_);
    const Vector& weight = weights_.at(name + ".weight");
    Vector y(weight.size() / x.size());
    for (size_t row = 0; row < y.size(); ++row) {
      for (size_t column = 0; column < x.size(); ++column) {
        y[row] += weight[row * x.size() + column] * x[column];
      }
    }
    if (weights_.contains(name + ".bias")) {
      for (size_t row = 0; row < y.size(); ++row) y[row] += weights_.at(name + ".bias")[row];
    }
    return y;
  }

  /// One head of a projection, normalised if norm_name is a weight, and rotated.
  Vector rotated_head(const Vector& all,
                      size_t head,
                      const std::string& norm_name,
                      size_t t) const {
    const auto head_dim = static_cast<size_t>(config_.head_dim);
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(head * head_dim);
    Vector x(begin, begin + config_.head_dim);
    if (weights_.contains(norm_name)) x = norm(x, weights_.at(norm_name));
    Vector y(x);
    for (size_t pair = 0; pair < head_dim / 2; ++pair) {
      const double angle = static_cast<double>(t) * std::pow(config_.rope_theta,
                                                             -2.0 * static_cast<double>(pair) /
                                                                 static_cast<double>(head_dim));
      const double first = x[pair], second = x[pair + head_dim / 2];
      y[pair] = first * std::cos(angle) - second * std::sin(angle);
      y[pair + head_dim / 2] = second * std::cos(angle) + first * std::sin(angle);
    }
    return y;
  }

  /// One query over the keys up to it, kept as they are with their scales.
  Vector mix(Vector query,
             const std::vector<Vector>& keys,
             const Vector& key_scales,
             const std::vector<Vector>& values,
             const Vector& value_scales,
             size_t num_seen) const {
    const double scale = 1 / (std::log(2.0) * std::sqrt(static_cast<double>(query.size())));
    for (double& value : query) value *= scale;  // scores are of base 2
    round_plain(query, rounding_);
    Vector weights(num_seen);
    for (size_t seen = 0; seen < num_seen; ++seen) {
      for (size_t e = 0; e < query.size(); ++e) weights[seen] += query[e] * keys[seen][e];
      weights[seen] *= key_scales[seen];
    }
    const double top = *std::max_element(weights.begin(), weights.end());
    double total = 0;
    for (size_t seen = 0; seen < num_seen; ++seen) {
      const double weight = std::exp2(weights[seen] - top);
      total += weight;
      weights[seen] = weight * value_scales[seen];
    }
    round_plain(weights, rounding_);
    Vector mixed(query.size());
    for (size_t seen = 0; seen < num_seen; ++seen) {
      for (size_t e = 0; e < mixed.size(); ++e) mixed[e] += weights[seen] * values[seen][e];
    }
    for (double& value : mixed) value /= total;
    return mixed;
  }

  std::vector<Vector> attend(const std::vector<Vector>& stream, const std::string& prefix) const {
    const auto head_dim = static_cast<size_t>(config_.head_dim);
    const auto num_heads = static_cast<size_t>(config_.num_attention_heads);
    const auto key_heads = static_cast<size_t>(config_.num_key_value_heads);
    std::vector<Vector> q, mixed(stream.size());
    std::vector<std::vector<Vector>> keys(key_heads), values(key_heads);
    std::vector<Vector> key_scales(key_heads), value_scales(key_heads);
    for (size_t t = 0; t < stream.size(); ++t) {
      const Vector normed = norm(stream[t], weights_.at(prefix + "input_layernorm.weight"));
      q.push_back(project(normed, prefix + "self_attn.q_proj"));
      const Vector k = project(normed, prefix + "self_attn.k_proj");
      const Vector v = project(normed, prefix + "self_attn.v_proj");
      for (size_t head = 0; head < key_heads; ++head) {
        keys[head].push_back(rotated_head(k, head, prefix + "self_attn.k_norm.weight", t));
        const auto begin = v.begin() + static_cast<std::ptrdiff_t>(head * head_dim);
        values[head].emplace_back(begin, begin + config_.head_dim);
        key_scales[head].push_back(keep_plain(keys[head].back(), rounding_));
        value_scales[head].push_back(keep_plain(values[head].back(), rounding_));
      }
    }
    std::vector<Vector> attended;
    for (size_t t = 0; t < stream.size(); ++t) {
      for (size_t head = 0; head < num_heads; ++head) {
        const size_t key_head = head / (num_heads / key_heads);
        const Vector part = mix(rotated_head(q[t], head, prefix + "self_attn.q_norm.weight", t),
                                keys[key_head],
                                key_scales[key_head],
                                values[key_head],
                                value_scales[key_head],
                                t + 1);
        mixed[t].insert(mixed[t].end(), part.begin(), part.end());
      }
      attended.push_back(project(mixed[t], prefix + "self_attn.o_proj"));
    }
    return attended;
  }

  ModelConfig config_;
  PlainRounding rounding_;
  std::map<std::string, Vector> weights_;
};

}  // namespace pelago::model
