#include "sites/exchange/exchange_parts.h"

#include <doctest/doctest.h>

#include <memory>

#include "sites/exchange/exchange_values.h"

namespace pelago::sites {
namespace {

/// Carries an exchange in parts out, whatever the order in which members begin theirs.
std::vector<std::unique_ptr<ExchangeParts>> exchange_parts(
    const ExchangeSpec& shared,
    std::span<const float> global,
    const std::vector<std::vector<float>>& locals) {
  std::vector<std::unique_ptr<ExchangeParts>> members;
  for (size_t i = 0; i < locals.size(); ++i) {
    ExchangeSpec spec = shared;
    spec.member_idx = static_cast<int64_t>(i);
    members.push_back(
        std::make_unique<ExchangeParts>(spec, global, locals[i], std::span<const float>()));
  }
  const auto count = static_cast<int64_t>(members.size());
  for (int64_t idx = 0; idx < members[0]->num_parts(); ++idx) {
    for (const auto& member : members) REQUIRE(member->begin_next() == idx);
    for (const bool of_mean : {false, true}) {
      for (int64_t from = 0; from < count; ++from) {
        const FragmentExchange& sender = members[static_cast<size_t>(from)]->part(idx);
        for (int64_t to = 0; to < count; ++to) {
          if (from == to || (of_mean && !sender.has_summed())) continue;
          FragmentExchange& receiver = members[static_cast<size_t>(to)]->part(idx);
          REQUIRE((of_mean ? receiver.accept_mean(from, sender.mean_slice(to))
                           : receiver.accept_delta(from, sender.delta_slice(to))));
        }
      }
    }
  }
  return members;
}

TEST_CASE("an exchange in parts has the outcome of the whole where nothing is rounded") {
  constexpr size_t kNumValues = 5000;
  const std::vector<float> global = random_values(kNumValues, 1);
  const std::vector<std::vector<float>> locals{
      random_values(kNumValues, 2), random_values(kNumValues, 3), random_values(kNumValues, 4)};
  ExchangeSpec spec{.bits = 32, .tokens = {300, 200, 100}};
  const GlobalState state(global, {{0, kNumValues}});
  const auto whole = exchange_parts(spec, global, locals);
  REQUIRE(whole[0]->num_parts() == 1);
  const std::string wanted = state.outer_step(0, whole[0]->part(0).mean(), {}).hash;
  spec.part_values = 700;
  for (const auto& member : exchange_parts(spec, global, locals)) {
    CHECK(member->num_parts() == 7);
    CHECK_FALSE(member->has_more());
    CHECK(member->has_summed());
    FragmentOutcome outcome;
    for (int64_t idx = 0; idx < member->num_parts(); ++idx) {
      REQUIRE(member->part(idx).is_whole());
      state.outer_step_of_part(0, member->range(idx).begin, member->part(idx).mean(), {}, outcome);
    }
    CHECK(hash_fragment(outcome.global, outcome.momentum) == wanted);
    for (int64_t other = 0; other < 3; ++other) CHECK(member->has_all_of(other));
  }
}

TEST_CASE("parts keep what rounding lost where it belongs, at any width") {
  constexpr size_t kNumValues = 20000;
  const std::vector<float> global(kNumValues, 0.0F);
  for (const int bits : {2, 4, 8}) {
    CAPTURE(bits);
    const std::vector<std::vector<float>> locals{random_values(kNumValues, 5, 1e-2),
                                                 random_values(kNumValues, 6, 1e-2)};
    const ExchangeSpec spec{.bits = bits, .tokens = {100, 100}, .part_values = 4096};
    const auto members = exchange_parts(spec, global, locals);
    CHECK(members[0]->num_parts() == 4);
    const std::vector<float> first = members[0]->new_error(), second = members[1]->new_error();
    for (int64_t idx = 0; idx < members[0]->num_parts(); ++idx) {
      const auto begin = static_cast<size_t>(members[0]->range(idx).begin);
      const std::span<const float> mean = members[0]->part(idx).mean();
      REQUIRE(same_bits(mean, members[1]->part(idx).mean()));
      for (size_t i = 0; i < mean.size(); ++i) {
        const float wanted = -0.5F * (locals[0][begin + i] + locals[1][begin + i]);
        const float owed = 0.5F * (first[begin + i] + second[begin + i]);
        REQUIRE(mean[i] + owed == doctest::Approx(wanted).epsilon(1e-4).scale(1e-2));
      }
    }
  }
}

TEST_CASE("mean directions are those of whole slices: such an exchange has one part") {
  const std::vector<float> global(9000, 0.0F);
  const ExchangeSpec spec{.tokens = {1, 1}, .rule = MergeRule::kDirection, .part_values = 128};
  CHECK(ExchangeParts(spec, global, global, {}).num_parts() == 1);
}

}  // namespace
}  // namespace pelago::sites
