// Few bits: what rounding may cost, that GPTQ costs less where it counts, and that what is written
// is what is read.
#include "compress/quantise.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "compress/levels.h"
#include "model/model_support.h"
#include "model/stored_model.h"

namespace pelago::compress {
namespace {

using model::failure_of;
using model::ScratchFolder;

model::ModelConfig grouped_config() {
  model::ModelConfig config = model::tiny_config("qwen3", false);
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.head_dim = 16;
  return config;
}

Tensor random_matrix(int64_t rows, int64_t columns, uint64_t seed) {
  return at::randn({rows, columns}, at::detail::createCPUGenerator(seed), at::kFloat);
}

TEST_CASE("rounding to nearest is off by half a step of the group's scale at most") {
  const Tensor weight = random_matrix(24, 128, 1);
  const QuantisedMatrix matrix = round_to_nearest(weight, {.bits = 8, .group_size = 32});
  const Tensor error = (matrix.numbers - weight).abs().view({24, 4, 32}).amax(-1);  // [Out,G]
  // f16 keeps 11 bits of a scale: 127 levels of it may end 127 * 2^-12 of a step short.
  CHECK((error <= matrix.scales.to(at::kFloat) * 0.54).all().item<bool>());
}

TEST_CASE("scales of 4 bits leave less squared error than the largest value's") {
  const Tensor weight = random_matrix(64, 256, 2);
  const QuantisedMatrix matrix = round_to_nearest(weight, {.bits = 4, .group_size = 64});
  const Tensor groups = weight.view({64, 4, 64});
  const Tensor scales = groups.abs().amax(-1, true) / 7;
  const Tensor plain = (groups / scales).round() * scales;
  CHECK((matrix.numbers - weight).square().sum().item<double>() <
        0.95 * (plain - groups).square().sum().item<double>());
}

TEST_CASE("gptq leaves less error in what a layer computes than rounding does") {
  // Inputs that lie near a few directions, as activations do.
  const Tensor inputs = at::mm(random_matrix(512, 16, 3), random_matrix(16, 128, 4)) +
                        random_matrix(512, 128, 5) * 0.3;
  const Tensor weight = random_matrix(48, 128, 6);
  const Tensor squares = at::mm(inputs.t(), inputs).to(at::kDouble);
  const auto error_of = [&](const QuantisedMatrix& matrix) {
    return at::mm(inputs, (matrix.numbers - weight).t()).square().sum().item<double>();
  };
  const model::Quantisation format{.bits = 4, .group_size = 32};
  CHECK(error_of(gptq(weight, squares, format, 0.01)) <
        0.6 * error_of(round_to_nearest(weight, format)));
}

TEST_CASE("an input that is always 0 does not stop gptq") {
  Tensor inputs = random_matrix(64, 64, 7);
  inputs.select(1, 5).zero_();
  const Tensor squares = at::mm(inputs.t(), inputs).to(at::kDouble);
  const QuantisedMatrix matrix =
      gptq(random_matrix(8, 64, 8), squares, {.bits = 8, .group_size = 32}, 0.01);
  CHECK(matrix.numbers.isfinite().all().item<bool>());
}

TEST_CASE("a quantised folder says its format and reads as the numbers that were rounded") {
  const model::ModelConfig config = grouped_config();
  const ScratchFolder plain, quantised;
  const Tensor flat = model::lively_weights(config, 1);
  save_model_folder(plain.path(), config, flat, at::kFloat, {});
  for (const int bits : {4, 8}) {
    CAPTURE(bits);
    const model::Quantisation format{.bits = bits, .group_size = 32};
    const Tensor tokens = model::random_tokens(config, 3, 20);
    const QuantiseReport report =
        quantise_folder(plain.path(), quantised.path(), {.format = format}, Tensor(), tokens, {});
    CHECK(report.num_matrices == 14);
    CHECK(report.relative_error < (bits == 8 ? 0.01 : 0.12));
    CHECK(report.bytes_after < report.bytes_before);
    CHECK(report.loss_after == doctest::Approx(report.loss_before).epsilon(bits == 8 ? 0.02 : 0.2));
    CHECK(model::read_quantisation(quantised.path() / "config.json") == format);

    const Tensor read = model::load_model_folder(quantised.path()).flat;
    const double difference = (read - flat).norm().item<double>() / flat.norm().item<double>();
    CHECK(difference < (bits == 8 ? 0.01 : 0.12));
    CHECK(difference > 1e-4);
    const model::StoredModel stored(quantised.path());
    const std::string name = "model.layers.1.mlp.down_proj.weight";
    const Tensor wanted =
        round_to_nearest(model::StoredModel(plain.path()).parameter(name).numbers, format).numbers;
    CHECK(model::to_numbers(stored.parameter(name), stored.quantisation()).equal(wanted));
    CHECK(stored.parameter("lm_head.weight").numbers.is_floating_point());
  }
}

TEST_CASE("gptq of a folder is closer to the plain model's loss than rounding") {
  const model::ModelConfig config = grouped_config();
  const ScratchFolder plain, rounded, solved;
  save_model_folder(plain.path(), config, model::lively_weights(config, 1), at::kFloat, {});
  const Tensor tokens = model::random_tokens(config, 24, 40);
  QuantiseOptions options{.format = {.bits = 4, .group_size = 32}};
  const auto distance = [](const QuantiseReport& report) {
    return std::abs(report.loss_after - report.loss_before);
  };
  const double by_rounding =
      distance(quantise_folder(plain.path(), rounded.path(), options, Tensor(), tokens, {}));
  options.method = Method::kGptq;
  const double by_gptq =
      distance(quantise_folder(plain.path(), solved.path(), options, tokens, tokens, {}));
  CHECK(by_gptq < by_rounding);
}

TEST_CASE("what cannot be quantised, or read, is refused with the reason") {
  const model::ModelConfig config = grouped_config();
  const ScratchFolder plain, out;
  save_model_folder(plain.path(), config, model::lively_weights(config, 1), at::kFloat, {});
  const auto quantise = [&](int64_t group) {
    QuantiseOptions options{.format = {.bits = 8, .group_size = group}};
    quantise_folder(plain.path(), out.path(), options, Tensor(), Tensor(), {});
  };
  const std::string refusal = failure_of([&] { quantise(64); });
  CHECK(refusal ==
        "--group 64: it does not divide the model's intermediate_size = 96; take --group 32");
  quantise(32);
  std::filesystem::copy(out.path() / "config.json",
                        plain.path() / "config.json",
                        std::filesystem::copy_options::overwrite_existing);
  CHECK(failure_of([&] { quantise(32); }).find("is quantised already") != std::string::npos);

  nlohmann::json json = nlohmann::json::parse(read_text_file(out.path() / "config.json"));
  json["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = false;
  write_file(out.path() / "config.json", json.dump());
  CHECK(failure_of([&] {
          model::load_model_folder(out.path());
        }).find("quantization_config: symmetric is false") != std::string::npos);
}

}  // namespace
}  // namespace pelago::compress
