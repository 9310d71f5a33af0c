#include "plan/serving/serving_plan.h"

#include <doctest/doctest.h>

#include <string>

#include "base/error.h"
#include "base/rng.h"

namespace pelago::plan {
namespace {

const chips::Catalogue& served_catalogue() {
  static const chips::Catalogue catalogue = chips::Catalogue::built_in();
  return catalogue;
}

ServingKind emulated_kind(const char* name, double count = 1) {
  return {.chip = &served_catalogue().find(name), .count = count, .is_emulated = true};
}

/// Llama 2 7B: every head has keys and values of its own.
model::ModelConfig llama_7b() {
  model::ModelConfig config = model::preset("1b");
  config.vocab_size = 32000;
  config.hidden_size = 4096;
  config.intermediate_size = 11008;
  config.num_hidden_layers = config.num_attention_heads = config.num_key_value_heads = 32;
  config.head_dim = 128;
  config.tie_word_embeddings = false;
  return config;
}

TEST_CASE("a chip of much arithmetic reads prompts for one of fast memory, which gains a fifth") {
  const std::vector<ServingKind> kinds = {emulated_kind("h20"), emulated_kind("910b")};
  const ServingPlan plan = plan_serving(llama_7b(), kinds, {}, 25e9);
  REQUIRE(!plan.flows.empty());
  CHECK(plan.flows[0].prefill_idx == 1);
  CHECK(plan.flows[0].decode_idx == 0);
  CHECK(plan.flows[0].share > 0.9);
  CHECK(plan.requests_s.lo > 1.2 * plan.each_both_requests_s.lo);
  // An emulated chip goes at one pace.
  CHECK(plan.requests_s.lo == plan.requests_s.hi);
  CHECK(plan.describe(kinds)[0].find("910B2 reads the prompt, H20 96GB writes") !=
        std::string::npos);
}

TEST_CASE("like chips trade nothing") {
  const std::vector<ServingKind> kinds = {emulated_kind("h20", 3), emulated_kind("h20", 2)};
  const ServingPlan plan = plan_serving(llama_7b(), kinds, {.step_tokens = 2048}, 25e9);
  CHECK(plan.requests_s.lo >= plan.each_both_requests_s.lo * 0.999);
  CHECK(plan.requests_s.lo <= plan.each_both_requests_s.lo * 1.1);
}

TEST_CASE("over a line too thin for all prompts as many go as it carries") {
  const std::vector<ServingKind> kinds = {emulated_kind("h20"), emulated_kind("910b")};
  const ServingPlan wide = plan_serving(llama_7b(), kinds, {}, 25e9);
  const ServingPlan thin = plan_serving(llama_7b(), kinds, {}, 3e9);
  const ServingPlan none = plan_serving(llama_7b(), kinds, {}, 0);
  CHECK(thin.link_bytes_s == doctest::Approx(3e9));
  CHECK(thin.requests_s.lo < wide.requests_s.lo);
  CHECK(thin.requests_s.lo > none.requests_s.lo);
  CHECK(none.link_bytes_s == 0);
  CHECK(none.requests_s.lo == doctest::Approx(none.each_both_requests_s.lo));
  CHECK(thin.local_share(0) > 0);
  CHECK(thin.local_share(0) < 1);
}

TEST_CASE("whatever the chips, load and line, trading is never worse than each doing both") {
  const char* const names[] = {"h20", "910b", "a100", "h100", "mlu370", "910a", "a800"};
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    CAPTURE(seed);
    Rng rng(seed);
    std::vector<ServingKind> kinds;
    for (uint64_t idx = 0, count = 1 + rng.next_below(4); idx < count; ++idx) {
      kinds.push_back(emulated_kind(names[rng.next_below(std::size(names))],
                                    static_cast<double>(1 + rng.next_below(16))));
    }
    const ServingLoad load = {.prompt_tokens = static_cast<double>(16 + rng.next_below(4000)),
                              .answer_tokens = static_cast<double>(1 + rng.next_below(1000)),
                              .sequences_max = static_cast<double>(1 + rng.next_below(128))};
    const double link_bytes_s = 1e9 * static_cast<double>(rng.next_below(100));
    const ServingPlan plan = plan_serving(llama_7b(), kinds, load, link_bytes_s);
    CHECK(plan.requests_s.lo >= plan.each_both_requests_s.lo * (1 - 1e-9));
    CHECK(plan.link_bytes_s <= link_bytes_s * (1 + 1e-9));
    double shares = 0;
    for (const ServingFlow& flow : plan.flows) shares += flow.share;
    CHECK(shares == doctest::Approx(1));
  }
}

TEST_CASE("real chips' plans say how sure they are") {
  std::vector<ServingKind> kinds = {emulated_kind("h20"), emulated_kind("910b")};
  for (ServingKind& kind : kinds) kind.is_emulated = false;
  const ServingPlan plan = plan_serving(llama_7b(), kinds, {}, 25e9);
  CHECK(plan.requests_s.lo < plan.requests_s.hi);
  CHECK(plan.each_both_requests_s.lo < plan.each_both_requests_s.hi);
  // Where nothing is split nothing is lost either, at both ends of what may be.
  const ServingPlan none = plan_serving(llama_7b(), kinds, {}, 0);
  CHECK(none.requests_s.lo == none.each_both_requests_s.lo);
  CHECK(none.requests_s.hi == none.each_both_requests_s.hi);
}

TEST_CASE("a model that no chip holds is refused") {
  model::ModelConfig huge = llama_7b();
  huge.num_hidden_layers = 800;
  const std::vector<ServingKind> kinds = {emulated_kind("h20")};
  CHECK_THROWS_WITH_AS(plan_serving(huge, kinds, {}, 1e9),
                       doctest::Contains("none of the chips can hold the model's"),
                       Failure);
}

}  // namespace
}  // namespace pelago::plan
