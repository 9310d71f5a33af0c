// The peer: the same model as a person would write it on libtorch's modules, without a thought for
// speed: a Linear for each projection, softmax over masked scores, all logits at once,
// torch::optim::AdamW. Same shapes, same dtype, same tokens.
#pragma once

#include <cmath>
#include <vector>

#include "chips/torch.h"
#include "model/config.h"

namespace pelago::bench {

using torch::Tensor;

struct PlainNorm : torch::nn::Module {
  PlainNorm(int64_t width, double eps_in)
      : weight(register_parameter("weight", torch::ones({width}))), eps(eps_in) {}
  Tensor forward(const Tensor& x) const {
    const Tensor wide = x.to(torch::kFloat32);
    const Tensor y = wide * torch::rsqrt(wide.pow(2).mean(-1, true) + eps);
    return weight * y.to(x.scalar_type());
  }
  Tensor weight;
  double eps;
};

struct PlainBlock : torch::nn::Module {
  explicit PlainBlock(const model::ModelConfig& config_in) : config(config_in) {
    const int64_t hidden = config.hidden_size;
    const int64_t query = config.num_attention_heads * config.head_dim;
    const int64_t key = config.num_key_value_heads * config.head_dim;
    const auto linear = [&](const char* name, int64_t in, int64_t out) {
      return register_module(name,
                             torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false)));
    };
    q = linear("q", hidden, query);
    k = linear("k", hidden, key);
    v = linear("v", hidden, key);
    o = linear("o", query, hidden);
    gate = linear("gate", hidden, config.intermediate_size);
    up = linear("up", hidden, config.intermediate_size);
    down = linear("down", config.intermediate_size, hidden);
    const auto norm = [&](const char* name, int64_t width) {
      return register_module(name, std::make_shared<PlainNorm>(width, config.rms_norm_eps));
    };
    input_norm = norm("input_norm", hidden);
    post_norm = norm("post_norm", hidden);
    q_norm = norm("q_norm", config.head_dim);
    k_norm = norm("k_norm", config.head_dim);
  }

  /// x: [B,H,T,E]; cos, sin: [T,E].
  static Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin) {
    const std::vector<Tensor> halves = x.chunk(2, -1);
    return x * cos + torch::cat({-halves[1], halves[0]}, -1) * sin;
  }

  Tensor attend(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& mask) {
    const int64_t batch = x.size(0), num_tokens = x.size(1);
    const auto heads = [&](const Tensor& y) {
      return y.view({batch, num_tokens, -1, config.head_dim});
    };
    const int64_t group = config.num_attention_heads / config.num_key_value_heads;
    const Tensor queries = rotate(q_norm->forward(heads(q(x))).transpose(1, 2), cos, sin);
    const Tensor keys = rotate(k_norm->forward(heads(k(x))).transpose(1, 2), cos, sin);
    const Tensor values = heads(v(x)).transpose(1, 2);
    const Tensor scores =
        torch::matmul(queries, keys.repeat_interleave(group, 1).transpose(-1, -2)) /
            std::sqrt(static_cast<double>(config.head_dim)) +
        mask;  // [B,H,T,T]
    const Tensor shares = torch::softmax(scores.to(torch::kFloat32), -1).to(queries.scalar_type());
    const Tensor mixed = torch::matmul(shares, values.repeat_interleave(group, 1));
    return o(mixed.transpose(1, 2).reshape({batch, num_tokens, -1}));
  }

  Tensor forward(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& mask) {
    const Tensor attended = x + attend(input_norm->forward(x), cos, sin, mask);
    const Tensor normed = post_norm->forward(attended);
    return attended + down(torch::silu(gate(normed)) * up(normed));
  }

  model::ModelConfig config;
  torch::nn::Linear q{nullptr}, k{nullptr}, v{nullptr}, o{nullptr};
  torch::nn::Linear gate{nullptr}, up{nullptr}, down{nullptr};
  std::shared_ptr<PlainNorm> input_norm, post_norm, q_norm, k_norm;
};

struct PlainModel : torch::nn::Module {
  explicit PlainModel(const model::ModelConfig& config_in) : config(config_in) {
    embedding =
        register_module("embedding", torch::nn::Embedding(config.vocab_size, config.hidden_size));
    embedding->weight.detach().normal_(0, config.initializer_range);
    for (int64_t layer_idx = 0; layer_idx < config.num_hidden_layers; ++layer_idx) {
      blocks.push_back(register_module("block" + std::to_string(layer_idx),
                                       std::make_shared<PlainBlock>(config)));
    }
    norm = register_module("norm",
                           std::make_shared<PlainNorm>(config.hidden_size, config.rms_norm_eps));
  }

  /// tokens, targets: [B,T] int64. Returns the mean loss.
  Tensor loss(const Tensor& tokens, const Tensor& targets) {
    const auto dtype = embedding->weight.scalar_type();
    const int64_t num_tokens = tokens.size(1);
    const Tensor exponents = torch::arange(0, config.head_dim, 2, torch::kFloat32) /
                             static_cast<double>(config.head_dim);
    const Tensor angles = torch::outer(torch::arange(num_tokens, torch::kFloat32),
                                       torch::pow(torch::full({}, config.rope_theta), -exponents));
    const Tensor cos = torch::cat({angles, angles}, -1).cos().to(dtype);
    const Tensor sin = torch::cat({angles, angles}, -1).sin().to(dtype);
    const Tensor mask = torch::full({num_tokens, num_tokens}, -INFINITY).triu(1).to(dtype);
    Tensor x = embedding(tokens);  // [B,T,D]
    for (const auto& block : blocks) x = block->forward(x, cos, sin, mask);
    const Tensor logits = torch::matmul(norm->forward(x), embedding->weight.t());
    return torch::nn::functional::cross_entropy(
        logits.reshape({-1, config.vocab_size}).to(torch::kFloat32), targets.reshape({-1}));
  }

  model::ModelConfig config;
  torch::nn::Embedding embedding{nullptr};
  std::vector<std::shared_ptr<PlainBlock>> blocks;
  std::shared_ptr<PlainNorm> norm;
};

}  // namespace pelago::bench
