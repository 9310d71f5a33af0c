#include "model/transformer.h"

#include <doctest/doctest.h>

#include <cmath>

#include "base/error.h"
#include "model/model_support.h"
#include "model/plain_transformer.h"

namespace pelago::model {
namespace {

struct Variant {
  const char* model_type;
  bool tie_word_embeddings;
};
constexpr Variant kVariants[] = {
    {"llama", false}, {"llama", true}, {"qwen2", true}, {"qwen3", false}, {"qwen3", true}};

std::vector<int64_t> row_of(const Tensor& tokens, int64_t row) {
  const int64_t* begin = tokens.data_ptr<int64_t>() + row * tokens.size(1);
  return {begin, begin + tokens.size(1)};
}

/// The gradient of the summed loss over these rows, f32 [N].
Tensor gradient_of(const ModelConfig& config,
                   Parameters& parameters,
                   const Tensor& tokens,
                   const Tensor& targets) {
  const Transformer transformer(config, parameters);
  Tensor gradient = at::zeros({config.num_parameters()}, at::kFloat);
  transformer.loss_sum(tokens, targets).backward();
  parameters.move_gradients_into(gradient);
  return gradient;
}

double relative_distance(const Tensor& a, const Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

TEST_CASE("the loss equals that of plain loops over doubles, for every family and head") {
  for (const Variant& variant : kVariants) {
    CAPTURE(variant.model_type);
    CAPTURE(variant.tie_word_embeddings);
    const ModelConfig config = tiny_config(variant.model_type, variant.tie_word_embeddings);
    const Tensor flat = lively_weights(config, 3);
    const Tensor tokens = random_tokens(config, 2, 11);
    Tensor targets = tokens.roll(-1, 1);
    targets.select(1, -1).fill_(-100);

    const PlainTransformer plain(config, flat);
    double wanted = 0;
    for (int64_t row = 0; row < 2; ++row) {
      const std::vector<int64_t> sequence = row_of(tokens, row);
      const auto logits = plain.logits(sequence);
      for (size_t t = 0; t + 1 < sequence.size(); ++t) {
        wanted += PlainTransformer::loss(logits[t], sequence[t + 1]);
      }
    }
    const Parameters parameters(config, flat);
    const torch::NoGradGuard no_grad;
    const double got = Transformer(config, parameters).loss_sum(tokens, targets).item<double>();
    CHECK(got == doctest::Approx(wanted).epsilon(2e-6));  // f32: 24 bits, some 100 roundings deep
  }
}

TEST_CASE("the gradient equals the slope of the plain loss, for every kind of parameter") {
  for (const Variant& variant : kVariants) {
    CAPTURE(variant.model_type);
    const ModelConfig config = tiny_config(variant.model_type, variant.tie_word_embeddings);
    const Tensor flat = lively_weights(config, 4);
    const Tensor tokens = random_tokens(config, 1, 6);
    const Tensor targets = tokens.roll(-1, 1);
    Parameters parameters(config, flat);
    const Tensor gradient = gradient_of(config, parameters, tokens, targets);

    const std::vector<int64_t> sequence = row_of(tokens, 0);
    const auto plain_loss = [&](int64_t idx, float shift) {
      const Tensor moved = flat.clone();
      moved.data_ptr<float>()[idx] += shift;
      const auto logits = PlainTransformer(config, moved).logits(sequence);
      double loss = 0;
      for (size_t t = 0; t < sequence.size(); ++t) {
        loss += PlainTransformer::loss(logits[t], row_of(targets, 0)[t]);
      }
      return loss;
    };
    int64_t begin = 0;
    for (const ParameterSpec& spec : parameter_specs(config)) {
      // The largest gradient of each parameter: where a wrong one would show most.
      const Tensor range = gradient.narrow(0, begin, spec.num_values());
      const int64_t idx = begin + range.abs().argmax().item<int64_t>();
      begin += spec.num_values();
      constexpr float kShift = 0x1p-7F;
      const double slope = (plain_loss(idx, kShift) - plain_loss(idx, -kShift)) / (2 * kShift);
      CAPTURE(spec.name);
      // The error of the difference quotient is of order kShift^2 = 6e-5 times the curvature.
      CHECK(gradient[idx].item<double>() == doctest::Approx(slope).epsilon(0.01));
    }
  }
}

TEST_CASE("gradients of the parts of a batch add up to the gradient of the whole") {
  for (const Variant& variant : kVariants) {
    CAPTURE(variant.model_type);
    const ModelConfig config = tiny_config(variant.model_type, variant.tie_word_embeddings);
    Parameters parameters(config, lively_weights(config, 6));
    const Tensor tokens = random_tokens(config, 6, 16);
    const Tensor targets = tokens.roll(-1, 1);
    const Tensor whole = gradient_of(config, parameters, tokens, targets);
    for (const std::vector<int64_t>& split :
         {std::vector<int64_t>{1, 5}, {2, 2, 2}, {1, 1, 1, 1, 1, 1}}) {
      Tensor sum = at::zeros_like(whole);
      const auto token_parts = tokens.split_with_sizes(split);
      const auto target_parts = targets.split_with_sizes(split);
      const Transformer transformer(config, parameters);
      for (size_t part = 0; part < split.size(); ++part) {
        transformer.loss_sum(token_parts[part], target_parts[part]).backward();
        parameters.move_gradients_into(sum);
      }
      CHECK(relative_distance(sum, whole) < 1e-6);
    }
  }
}

TEST_CASE("a gradient is moved once and a forward pass without backward leaves none") {
  const ModelConfig config = tiny_config("qwen3", true);
  Parameters parameters(config, lively_weights(config, 6));
  const Tensor tokens = random_tokens(config, 1, 8);
  gradient_of(config, parameters, tokens, tokens);
  Tensor again = at::zeros({config.num_parameters()});
  parameters.move_gradients_into(again);
  CHECK(again.abs().sum().item<double>() == 0);
  Transformer(config, parameters).loss_sum(tokens, tokens);
  parameters.move_gradients_into(again);
  CHECK(again.abs().sum().item<double>() == 0);
}

TEST_CASE("a target of -100 counts for nothing") {
  const ModelConfig config = tiny_config("llama", true);
  Parameters parameters(config, lively_weights(config, 6));
  const Tensor tokens = random_tokens(config, 2, 8);
  const Tensor targets = at::full({2, 8}, -100, at::kLong);
  CHECK(gradient_of(config, parameters, tokens, targets).abs().sum().item<double>() == 0);
}

TEST_CASE("generation with a cache sees the same logits as reading everything anew") {
  for (const Variant& variant : kVariants) {
    CAPTURE(variant.model_type);
    const ModelConfig config = tiny_config(variant.model_type, variant.tie_word_embeddings);
    const Parameters parameters(config, lively_weights(config, 8));
    const Transformer transformer(config, parameters);
    const Tensor tokens = random_tokens(config, 2, 80);  // beyond the cache's first size
    const auto logits_of_last = [&](const std::vector<int64_t>& chunks) {
      KvCache cache(config, 2, at::kCPU, at::kFloat);
      Tensor logits;
      int64_t begin = 0;
      for (const int64_t chunk : chunks) {
        logits = transformer.next_logits(tokens.narrow(1, begin, chunk), cache);
        begin += chunk;
        CHECK(cache.num_tokens() == begin);
      }
      return logits;
    };
    const Tensor whole = logits_of_last({80});
    CHECK(relative_distance(logits_of_last({50, 30}), whole) < 1e-5);
    CHECK(relative_distance(logits_of_last({70, 1, 1, 7, 1}), whole) < 1e-5);
  }
}

TEST_CASE("llama3 rope scaling keeps fast pairs and slows slow ones by the factor") {
  ModelConfig config = tiny_config("llama", true);
  config.head_dim = 64;
  config.rope_theta = 500000;
  const RopeTable::Rows plain = RopeTable(config, at::kCPU).rows(0, 9);
  config.rope_scaling = RopeScaling{8, 1, 4, 8192};
  const RopeTable::Rows scaled = RopeTable(config, at::kCPU).rows(0, 9);
  CHECK(plain.cos.select(1, 0).equal(scaled.cos.select(1, 0)));
  // sin(8 a / 8) of position 8 against sin(a) of position 1, at the slowest pair.
  CHECK(scaled.sin[8][31].item<float>() == doctest::Approx(plain.sin[1][31].item<float>()));
}

TEST_CASE("initial weights depend on seed and name only") {
  const ModelConfig config = tiny_config("qwen3", true);
  ModelConfig deeper = config;
  deeper.num_hidden_layers = 3;
  const Tensor flat = initial_weights(config, Rng(7));
  CHECK(flat.equal(initial_weights(config, Rng(7))));
  CHECK_FALSE(flat.equal(initial_weights(config, Rng(8))));
  const Parameters shallow(config, flat);
  const Parameters deep(deeper, initial_weights(deeper, Rng(7)));
  const char* name = "model.layers.1.self_attn.q_proj.weight";
  CHECK(shallow.at(name).equal(deep.at(name)));
  CHECK_FALSE(shallow.at(name).equal(shallow.at("model.layers.0.self_attn.q_proj.weight")));
}

TEST_CASE("initial weights have the wanted spread, norms are one and biases zero") {
  const ModelConfig config = tiny_config("qwen2", true);
  const Parameters parameters(config, initial_weights(config, Rng(7)));
  const auto deviation = [&](const char* name) { return parameters.at(name).std().item<double>(); };
  CHECK(deviation("model.embed_tokens.weight") == doctest::Approx(0.02).epsilon(0.05));
  CHECK(deviation("model.layers.0.mlp.gate_proj.weight") == doctest::Approx(0.02).epsilon(0.05));
  CHECK(deviation("model.layers.0.mlp.down_proj.weight") == doctest::Approx(0.01).epsilon(0.05));
  CHECK(parameters.at("model.norm.weight").equal(at::ones({config.hidden_size})));
  CHECK(parameters.at("model.layers.1.self_attn.k_proj.bias").abs().sum().item<float>() == 0);
}

TEST_CASE("a parameter that does not exist is named") {
  const ModelConfig config = tiny_config("llama", true);
  const Parameters parameters(config, lively_weights(config, 1));
  CHECK(failure_of([&] { (void)parameters.at("lm_head.weight"); }) ==
        "the model has no parameter \"lm_head.weight\"");
}

}  // namespace
}  // namespace pelago::model
