#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <memory>

#include "sites/exchange/fragment_exchange.h"
#include "sites/exchange/global_state.h"
#include "sites/exchange/exchange_values.h"

namespace pelago::sites {
namespace {

/// Carries an exchange out among all its members without a network.
struct Exchanged {
  std::vector<std::unique_ptr<FragmentExchange>> members;
};

Exchanged exchange(const ExchangeSpec& shared,
                   const std::vector<float>& global,
                   const std::vector<std::vector<float>>& locals,
                   const std::vector<std::vector<float>>& errors,
                   const std::vector<size_t>& arrival = {}) {
  Exchanged done;
  const size_t count = shared.tokens.size();
  for (size_t i = 0; i < count; ++i) {
    ExchangeSpec spec = shared;
    spec.member_idx = static_cast<int64_t>(i);
    done.members.push_back(std::make_unique<FragmentExchange>(spec, global, locals[i], errors[i]));
  }
  std::vector<size_t> order = arrival;
  for (size_t i = 0; order.size() < count; ++i) order.push_back(i);
  const auto each_pair = [&](auto&& visit) {
    for (const size_t from : order) {
      for (const size_t to : order) {
        if (from != to) visit(from, to);
      }
    }
  };
  each_pair([&](size_t from, size_t to) {
    const auto status = done.members[to]->accept_delta(
        static_cast<int64_t>(from), done.members[from]->delta_slice(static_cast<int64_t>(to)));
    REQUIRE(status);
  });
  each_pair([&](size_t from, size_t to) {
    if (!done.members[from]->has_summed()) return;
    REQUIRE(done.members[to]->accept_mean(
        static_cast<int64_t>(from), done.members[from]->mean_slice(static_cast<int64_t>(to))));
  });
  return done;
}

Exchanged exchange(int bits,
                   const std::vector<int64_t>& tokens,
                   const std::vector<float>& global,
                   const std::vector<std::vector<float>>& locals,
                   const std::vector<std::vector<float>>& errors) {
  return exchange(ExchangeSpec{.bits = bits, .tokens = tokens}, global, locals, errors);
}

TEST_CASE("slices cover a fragment without gap, in whole blocks, for any number of members") {
  for (const int64_t num_values : {1, 63, 64, 65, 1000, 4097}) {
    for (int64_t num_members = 1; num_members <= 5; ++num_members) {
      CAPTURE(num_values);
      CAPTURE(num_members);
      const std::vector<train::Fragment> slices = cut_slices(num_values, num_members, 128);
      REQUIRE(static_cast<int64_t>(slices.size()) == num_members);
      CHECK(slices.front().begin == 0);
      CHECK(slices.back().end == num_values);
      for (size_t i = 0; i + 1 < slices.size(); ++i) {
        CHECK(slices[i].end == slices[i + 1].begin);
        CHECK((slices[i].end % 128 == 0 || slices[i].end == num_values));
      }
    }
  }
}

TEST_CASE("two, three and five sites hold the same bits after an exchange, at any width") {
  for (const size_t num_members : {2U, 3U, 5U}) {
    for (const int bits : {2, 4, 8, 32}) {
      CAPTURE(num_members);
      CAPTURE(bits);
      const std::vector<float> global = random_values(777, 1);
      std::vector<std::vector<float>> locals, errors;
      std::vector<int64_t> tokens;
      for (size_t i = 0; i < num_members; ++i) {
        locals.push_back(random_values(777, 10 + i));
        errors.push_back(random_values(777, 20 + i, 0.01));
        tokens.push_back(static_cast<int64_t>(1000 * (i + 1)));
      }
      const Exchanged done = exchange(bits, tokens, global, locals, errors);
      for (const auto& member : done.members) {
        REQUIRE(member->is_whole());
        CHECK(same_bits(member->mean(), done.members[0]->mean()));
      }
    }
  }
}

TEST_CASE("a site with three times the tokens counts three times") {
  const std::vector<float> global(256, 0.0F), none(256, 0.0F);
  const std::vector<std::vector<float>> locals{std::vector<float>(256, -1.0F),
                                               std::vector<float>(256, -5.0F)};
  const Exchanged done = exchange(32, {3000, 1000}, global, locals, {none, none});
  for (const float value : done.members[1]->mean()) CHECK(value == doctest::Approx(2.0));
}

TEST_CASE("a site without tokens changes nothing") {
  const std::vector<float> global(128, 0.0F), none(128, 0.0F);
  const std::vector<std::vector<float>> locals{std::vector<float>(128, -1.0F),
                                               random_values(128, 3, 100)};
  const Exchanged done = exchange(32, {1000, 0}, global, locals, {none, none});
  for (const float value : done.members[0]->mean()) CHECK(value == 1.0F);
}

TEST_CASE("kept errors lose nothing: agreed + owed is the true sum, at every width, for rounds") {
  constexpr size_t kNumValues = 5000;
  const std::vector<float> global(kNumValues, 0.0F);
  const std::vector<int64_t> tokens{3000, 1000, 500};
  for (const int bits : {2, 4, 8, 32}) {
    CAPTURE(bits);
    std::vector<std::vector<float>> errors(3, std::vector<float>(kNumValues, 0.0F));
    std::vector<double> agreed(kNumValues, 0.0), truth(kNumValues, 0.0);
    for (uint64_t round = 0; round < 20; ++round) {
      std::vector<std::vector<float>> locals;
      for (uint64_t i = 0; i < 3; ++i) {
        locals.push_back(random_values(kNumValues, 100 * i + round, 1e-2));
      }
      const Exchanged done = exchange(bits, tokens, global, locals, errors);
      for (size_t i = 0; i < kNumValues; ++i) {
        agreed[i] += static_cast<double>(done.members[0]->mean()[i]);
        for (size_t site = 0; site < 3; ++site) {
          truth[i] -=
              static_cast<double>(tokens[site]) / 4500.0 * static_cast<double>(locals[site][i]);
        }
      }
      for (size_t site = 0; site < 3; ++site) {
        errors[site].assign(done.members[site]->new_error().begin(),
                            done.members[site]->new_error().end());
      }
    }
    for (size_t i = 0; i < kNumValues; ++i) {
      double owed = 0;
      for (size_t site = 0; site < 3; ++site) {
        owed += static_cast<double>(tokens[site]) / 4500.0 * static_cast<double>(errors[site][i]);
      }
      REQUIRE(agreed[i] + owed == doctest::Approx(truth[i]).epsilon(1e-4).scale(1e-2));
    }
  }
}

TEST_CASE("at 4 bits the gap between what was agreed and the true sum does not grow") {
  constexpr size_t kNumValues = 512;
  const std::vector<float> global(kNumValues, 0.0F);
  std::vector<std::vector<float>> errors(2, std::vector<float>(kNumValues, 0.0F));
  std::vector<double> agreed(kNumValues, 0.0), truth(kNumValues, 0.0);
  double first_gap = 0;
  for (uint64_t round = 0; round < 50; ++round) {
    const std::vector<std::vector<float>> locals{random_values(kNumValues, 100 + round),
                                                 random_values(kNumValues, 200 + round)};
    const Exchanged done = exchange(4, {3000, 1000}, global, locals, errors);
    double gap = 0;
    for (size_t i = 0; i < kNumValues; ++i) {
      agreed[i] += done.members[0]->mean()[i];
      truth[i] += -0.75 * locals[0][i] - 0.25 * locals[1][i];
      gap += (agreed[i] - truth[i]) * (agreed[i] - truth[i]);
    }
    gap = std::sqrt(gap / kNumValues);
    if (round == 0) first_gap = gap;
    // Without kept errors the gap of independent roundings would grow as the root of the rounds, to
    // seven times the first; with them it stays where one round leaves it.
    CHECK(gap < 4 * first_gap);
    for (size_t site = 0; site < 2; ++site) {
      errors[site].assign(done.members[site]->new_error().begin(),
                          done.members[site]->new_error().end());
    }
  }
  CHECK(first_gap > 0.01);  // 4 bits do lose something
}

TEST_CASE("the order in which slices arrive changes no bit of the mean or of what is owed") {
  const std::vector<float> global = random_values(20'000, 1, 0.02);
  std::vector<std::vector<float>> locals, errors;
  for (uint64_t i = 0; i < 4; ++i) {
    locals.push_back(random_values(20'000, 10 + i, 0.02));
    errors.push_back(random_values(20'000, 20 + i, 1e-4));
  }
  for (const int bits : {2, 4, 8, 32}) {
    for (const MergeRule rule : {MergeRule::kMean, MergeRule::kDirection}) {
      CAPTURE(bits);
      const ExchangeSpec spec{.bits = bits, .tokens = {400, 300, 200, 100}, .rule = rule};
      const Exchanged first = exchange(spec, global, locals, errors, {0, 1, 2, 3});
      const Exchanged other = exchange(spec, global, locals, errors, {2, 0, 3, 1});
      for (size_t i = 0; i < 4; ++i) {
        CHECK(same_bits(first.members[0]->mean(), other.members[i]->mean()));
        CHECK(same_bits(first.members[i]->new_error(), other.members[i]->new_error()));
      }
    }
  }
}

TEST_CASE("merged by direction, orthogonal deltas keep their length, equal ones their value") {
  std::vector<float> global(512, 0.0F), none(512, 0.0F);
  std::vector<float> one(512, 0.0F), two(512, 0.0F);
  for (size_t i = 0; i < 512; ++i) (i % 2 == 0 ? one : two)[i] = -1.0F;
  const ExchangeSpec spec{.bits = 32, .tokens = {1, 1}, .rule = MergeRule::kDirection};
  const auto length = [](std::span<const float> values) {
    double sum = 0;
    for (const float x : values) sum += static_cast<double>(x) * static_cast<double>(x);
    return std::sqrt(sum);
  };
  const Exchanged orthogonal = exchange(spec, global, {one, two}, {none, none});
  // A slice is merged on its own: 256 values, of which each site changed 128.
  CHECK(length(orthogonal.members[0]->mean().first(256)) == doctest::Approx(std::sqrt(128.0)));
  const Exchanged equal = exchange(spec, global, {one, one}, {none, none});
  CHECK(equal.members[1]->mean()[0] == doctest::Approx(1.0));
  std::vector<float> opposite = one;
  for (float& x : opposite) x = -x;
  const Exchanged cancelled = exchange(spec, global, {one, opposite}, {none, none});
  for (const float x : cancelled.members[0]->mean()) CHECK(x == 0.0F);
}

TEST_CASE("with decay a kept error counts less, without it whole") {
  const std::vector<float> zeros(256, 0.0F), owed(256, 1.0F);
  for (const double decay : {1.0, 0.5}) {
    const ExchangeSpec spec{.bits = 32, .tokens = {1, 1}, .error_decay = decay};
    const Exchanged done = exchange(spec, zeros, {zeros, zeros}, {owed, owed});
    CHECK(done.members[0]->mean()[3] == doctest::Approx(decay));
  }
}

TEST_CASE("two sites send less than half a byte a parameter at 4 bits, however even the levels") {
  constexpr size_t kNumValues = 128 * 100;
  const std::vector<float> global(kNumValues, 0.0F), none(kNumValues, 0.0F);
  const Exchanged done = exchange(4,
                                  {1, 1},
                                  global,
                                  {random_values(kNumValues, 1), random_values(kNumValues, 2)},
                                  {none, none});
  const size_t num_bytes =
      done.members[0]->delta_slice(1).size() + done.members[0]->mean_slice(1).size();
  CHECK(static_cast<double>(num_bytes) / kNumValues < 0.5);
}

TEST_CASE("thin deltas of different places reach everyone whole") {
  constexpr size_t kNumValues = 4096;
  const std::vector<float> global(kNumValues, 0.0F), none(kNumValues, 0.0F);
  std::vector<std::vector<float>> locals(3, none);
  for (size_t i = 0; i < 300; ++i) locals[i % 3][11 * i] = -1.0F;  // 100 places each
  const Exchanged done = exchange(2, {1, 1, 1}, global, locals, {none, none, none});
  for (const auto& member : done.members) {
    for (size_t i = 0; i < kNumValues; ++i) {
      const float expected = i % 11 == 0 && i < 3300 ? 1.0F / 3 : 0.0F;
      REQUIRE(member->mean()[i] == doctest::Approx(expected).epsilon(0.07));
    }
  }
}

TEST_CASE("a site sends 0.03 byte a parameter in thin form to each of the others") {
  constexpr size_t kNumValues = 4096 * 200;
  const std::vector<float> global(kNumValues, 0.0F), none(kNumValues, 0.0F);
  for (const size_t num_members : {2U, 3U, 5U}) {
    std::vector<std::vector<float>> locals, errors(num_members, none);
    for (size_t i = 0; i < num_members; ++i) locals.push_back(random_values(kNumValues, i));
    const Exchanged done =
        exchange(2, std::vector<int64_t>(num_members, 1), global, locals, errors);
    size_t num_bytes = 0;
    for (size_t to = 1; to < num_members; ++to) {
      num_bytes += done.members[0]->delta_slice(static_cast<int64_t>(to)).size() +
                   done.members[0]->mean_slice(static_cast<int64_t>(to)).size();
    }
    CHECK(static_cast<double>(num_bytes) / kNumValues <
          0.031 * static_cast<double>(num_members - 1));
  }
}

TEST_CASE("a thin mean that lacks a member's delta is refused and changes nothing") {
  const std::vector<float> global(8192, 0.0F), none(8192, 0.0F);
  const ExchangeSpec spec{.bits = 2, .member_idx = 1, .tokens = {1, 1, 1}};
  FragmentExchange member(spec, global, random_values(8192, 5), none);
  for (const std::string& payload : {std::string(), std::string(4, '\0'), std::string(130, '\0')}) {
    CHECK(!member.accept_mean(2, payload));
  }
  const Status refused = member.accept_mean(2, std::string(4, '\xFF') + std::string(126, 'x'));
  REQUIRE(!refused);
  CHECK(refused.error().code == ErrorCode::kCorrupt);
  CHECK(!member.has_mean(2));
}

TEST_CASE("what a thin exchange leaves out stays in local weights, and their mean stays the same") {
  constexpr size_t kNumValues = 9000;
  const std::vector<int64_t> tokens{3000, 1000, 500};
  std::vector<float> global(kNumValues, 0.0F);
  std::vector<std::vector<float>> locals(3, global);
  for (uint64_t round = 0; round < 10; ++round) {
    std::vector<double> wanted(kNumValues, 0.0);
    for (size_t site = 0; site < 3; ++site) {
      const std::vector<float> trained = random_values(kNumValues, 100 * site + round, 1e-2);
      for (size_t i = 0; i < kNumValues; ++i) {
        locals[site][i] += trained[i];
        wanted[i] += static_cast<double>(tokens[site]) / 4500.0 * double{locals[site][i]};
      }
    }
    const Exchanged done = exchange(2, tokens, global, locals, {{}, {}, {}});
    std::vector<double> mean(kNumValues, 0.0);
    for (size_t i = 0; i < kNumValues; ++i) global[i] -= done.members[0]->mean()[i];
    for (size_t site = 0; site < 3; ++site) {
      for (size_t i = 0; i < kNumValues; ++i) {
        locals[site][i] = global[i] - done.members[site]->new_error()[i];
        mean[i] += static_cast<double>(tokens[site]) / 4500.0 * double{locals[site][i]};
      }
    }
    for (size_t i = 0; i < kNumValues; ++i) {
      REQUIRE(mean[i] == doctest::Approx(wanted[i]).epsilon(1e-5).scale(1e-2));
    }
  }
}

TEST_CASE("the exchange after the last step is at least 4 bits wide") {
  for (const auto& [bits, expected] :
       {std::pair(2, 4), std::pair(4, 4), std::pair(8, 8), std::pair(32, 32)}) {
    CHECK(ExchangeSpec{.bits = bits, .tokens = {}}.final().bits == expected);
  }
}

TEST_CASE("the outer step after the last one makes the plain mean, whatever the momentum") {
  GlobalState state(std::vector<float>(4, 1.0F), {{0, 4}});
  const std::vector<float> first(4, 0.5F), second(4, 0.25F);
  state.apply(0, 0, state.outer_step(0, first, {.lr = 1, .momentum = 0.9}));
  const float before = state.global()[0];
  state.apply(0, 1, state.outer_step(0, second, OuterOptions::final()));
  CHECK(state.global()[0] == before - 0.25F);
}

TEST_CASE("a delta that is not finite is never sent") {
  std::vector<float> global(64, 0.0F), none(64, 0.0F), local(64, 0.0F);
  local[7] = std::numeric_limits<float>::infinity();
  CHECK_THROWS_AS(
      FragmentExchange({.bits = 4, .member_idx = 0, .tokens = {1, 1}}, global, local, none),
      Failure);
}

TEST_CASE("the outer step is Nesterov with lr and momentum, and only apply() changes the state") {
  GlobalState state({1.0F, 2.0F}, {{.begin = 0, .end = 2}});
  const std::vector<float> mean{0.5F, -0.25F};
  const OuterOptions options{.lr = 0.4, .momentum = 0.9};
  const FragmentOutcome first = state.outer_step(0, mean, options);
  CHECK(state.global()[0] == 1.0F);
  // velocity = mean; update = lr * (mean + 0.9 * velocity).
  CHECK(first.global[0] == doctest::Approx(1.0 - 0.4 * 1.9 * 0.5));
  state.apply(0, 0, first);
  const FragmentOutcome second = state.outer_step(0, mean, options);
  CHECK(second.momentum[1] == doctest::Approx(-0.25 * 1.9));
  CHECK(second.global[1] == doctest::Approx(2.0 + 0.4 * 1.9 * 0.25 + 0.4 * 0.25 * (1 + 0.9 * 1.9)));
  CHECK(state.applied() == std::vector<int64_t>{0});
}

TEST_CASE("a fetched fragment is taken only whole and with the right hash") {
  GlobalState donor(random_values(100, 1), {{.begin = 0, .end = 40}, {.begin = 40, .end = 100}});
  donor.apply(1, 5, donor.outer_step(1, random_values(60, 2), {}));
  GlobalState joiner(random_values(100, 9), donor.fragments());
  const std::string bytes = donor.to_bytes(1), hash = donor.fragment_hash(1);
  std::string damaged = bytes;
  damaged[100] = static_cast<char>(damaged[100] ^ 1);
  CHECK_FALSE(joiner.from_bytes(1, damaged, hash));
  CHECK_FALSE(joiner.from_bytes(0, bytes, hash));
  CHECK_FALSE(joiner.from_bytes(1, bytes.substr(4), hash));
  const auto fetched = joiner.from_bytes(1, bytes, hash);
  REQUIRE(fetched);
  joiner.apply(1, 5, *fetched);
  CHECK(joiner.fragment_hash(1) == hash);
}

}  // namespace
}  // namespace pelago::sites
