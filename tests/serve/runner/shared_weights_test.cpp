// One packed copy of the weights for several runners. Here all are in this process; that a process
// that packs makes the others wait is the system's lock.
#include "serve/runner/shared_weights.h"

#include <doctest/doctest.h>

#include <cstring>
#include <fstream>

#include "base/error.h"
#include "model/model_support.h"
#include "model/transformer.h"
#include "serve/runner/model_runner.h"

namespace pelago::serve {
namespace {

TEST_CASE("pieces are what the first one put there, unless it went before all were") {
  const SharedWeightsFile file;
  {
    const auto first = SharedWeights::open(file.path(), 7);
    REQUIRE(first != nullptr);
    CHECK_FALSE(first->is_packed());
    std::memset(first->take(5000).data(), 3, 5000);  // and goes without finish()
  }
  const auto second = SharedWeights::open(file.path(), 7);
  REQUIRE(second != nullptr);
  CHECK_FALSE(second->is_packed());
  const auto small = second->take(100), large = second->take(size_t{5} << 20);
  CHECK(small.data()[0] == std::byte{0});
  std::memset(small.data(), 1, 100);
  std::memset(large.data(), 2, size_t{5} << 20);
  second->finish();
  const auto third = SharedWeights::open(file.path(), 7);
  REQUIRE(third != nullptr);
  CHECK(third->is_packed());
  const auto same_small = third->take(100), same_large = third->take(size_t{5} << 20);
  CHECK(std::memcmp(same_small.data(), small.data(), 100) == 0);
  CHECK(std::memcmp(same_large.data(), large.data(), size_t{5} << 20) == 0);
  CHECK(SharedWeights::open(file.path(), 8) == nullptr);  // other weights
  CHECK(model::failure_of([] {
          SharedWeights::open("/nowhere/at/all", 1);
        }).starts_with("/nowhere/at/all: "));
}

/// Pieces of such files that this process has mapped.
size_t num_shared_mappings() {
  std::ifstream maps("/proc/self/maps");
  size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    count += line.find("memfd:pelago-weights") != std::string::npos ? 1 : 0;
  }
  return count;
}

TEST_CASE("runners that share their weights compute what one alone does") {
  model::ModelConfig config = model::tiny_config("llama", false);
  config.max_position_embeddings = 320;
  const model::ScratchFolder folder;
  save_model_folder(folder.path(), config, model::lively_weights(config, 3), at::kBFloat16, {});
  for (const WeightDtype weights : {WeightDtype::kBf16, WeightDtype::kF32}) {
    RunnerOptions options = {.weights = weights, .page_tokens = 16, .num_pages = 8};
    const auto logits_of = [&] {
      const auto runner = open_cpu_runner(folder.path(), options);
      const std::vector<int32_t> tokens = {1, 5, 2, 9, 4, 7};
      const std::vector<int32_t> pages = {0};
      const SequenceChunk chunk = {.tokens = tokens, .pages = pages};
      const std::span<const float> logits = runner->forward({&chunk, 1}).logits;
      return std::pair(std::vector<float>(logits.begin(), logits.end()), num_shared_mappings());
    };
    const auto [alone, num_alone] = logits_of();
    CHECK(num_alone == 0);
    const SharedWeightsFile file;
    options.shared_weights = file.path();
    options.weights_key = 5;
    const auto [packed, num_packed] = logits_of();
    const auto [mapped, num_mapped] = logits_of();
    CHECK(packed == alone);
    CHECK(mapped == alone);
    CHECK(num_packed > 0);
    CHECK(num_mapped > 0);
    options.weights_key = 6;  // of others: a copy of its own
    const auto [own, num_own] = logits_of();
    CHECK(own == alone);
    CHECK(num_own == 0);
  }
}

}  // namespace
}  // namespace pelago::serve
