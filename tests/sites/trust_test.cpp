// Deltas that are not what they should be: found, and honest ones left alone.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <functional>
#include <limits>

#include "base/rng.h"
#include "sites/trust/delta_watch.h"
#include "sites/trust/robust_mean.h"
#include "sites/trust/suspects.h"

namespace pelago::sites {
namespace {

using Deltas = std::vector<std::vector<float>>;

/// Sites that learn the same thing from different text: a common direction and noise of their own,
/// each at its own scale, all of it changing from round to round as the learning rate does.
class HonestSites {
 public:
  HonestSites(size_t num_sites, size_t num_values, double agreement, uint64_t seed)
      : rng_(Rng(seed).fork("honest")), num_values_(num_values), agreement_(agreement) {
    for (size_t i = 0; i < num_sites; ++i) {
      names_.push_back(fmt::format("site{}", i));
      scales_.push_back(std::exp(0.5 * rng_.next_normal()));
    }
  }

  const std::vector<std::string>& names() const { return names_; }

  Deltas next() {
    level_ *= std::exp(0.1 * rng_.next_normal());
    std::vector<double> common(num_values_);
    for (double& value : common) value = rng_.next_normal();
    Deltas deltas;
    for (const double scale : scales_) {
      std::vector<float> delta(num_values_);
      const double size = level_ * scale * std::exp(0.1 * rng_.next_normal());
      for (size_t i = 0; i < num_values_; ++i) {
        delta[i] = static_cast<float>(
            size *
            (agreement_ * common[i] + std::sqrt(1 - agreement_ * agreement_) * rng_.next_normal()));
      }
      deltas.push_back(std::move(delta));
    }
    momentum_.resize(num_values_);
    for (size_t i = 0; i < num_values_; ++i) {
      momentum_[i] = static_cast<float>(level_ * common[i]);
    }
    return deltas;
  }
  std::span<const float> momentum() const { return momentum_; }

 private:
  Rng rng_;
  size_t num_values_;
  double agreement_;
  std::vector<std::string> names_;
  std::vector<double> scales_;
  std::vector<float> momentum_;
  double level_ = 1e-3;
};

SliceGram gram_of(const Deltas& deltas, std::span<const float> reference) {
  SliceGram gram(deltas.size());
  std::vector<std::span<const float>> views(deltas.begin(), deltas.end());
  gram.add(views, reference);
  return gram;
}

std::vector<DeltaFault> judged(DeltaWatch& watch, const HonestSites& sites, const Deltas& deltas) {
  const SliceGram gram = gram_of(deltas, sites.momentum());
  const std::vector<bool> all(deltas.size(), true);
  auto faults = watch.judge(sites.names(), all, gram);
  std::vector<bool> teaches;
  for (const DeltaFault fault : faults) teaches.push_back(fault == DeltaFault::kNone);
  watch.learn(sites.names(), teaches, gram);
  return faults;
}

TEST_CASE("honest deltas are at fault less than once in ten thousand, whatever sites agree on") {
  int num_judged = 0, num_faults = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const size_t num_sites = 2 + seed % 5;
    const double agreement = 0.1 + 0.2 * static_cast<double>(seed % 4);
    HonestSites sites(num_sites, 256, agreement, seed);
    DeltaWatch watch;
    for (int round = 0; round < 100; ++round) {
      for (const DeltaFault fault : judged(watch, sites, sites.next())) {
        ++num_judged;
        num_faults += fault == DeltaFault::kNone ? 0 : 1;
      }
    }
  }
  CAPTURE(num_faults);
  CHECK(num_judged > 15'000);
  CHECK(num_faults <= 1);
}

TEST_CASE(
    "a delta negated, a hundred times too large, zero or not finite is found at once, and alone") {
  struct Attack {
    DeltaFault fault;
    std::function<void(std::vector<float>&)> spoil;
  };
  const Attack attacks[] = {{DeltaFault::kDirection,
                             [](auto& delta) {
                               for (float& value : delta) value = -value;
                             }},
                            {DeltaFault::kNorm,
                             [](auto& delta) {
                               for (float& value : delta) value *= 100;
                             }},
                            {DeltaFault::kNorm,
                             [](auto& delta) {
                               for (float& value : delta) value *= 0.01F;
                             }},
                            {DeltaFault::kZero,
                             [](auto& delta) {
                               for (float& value : delta) value = 0;
                             }},
                            {DeltaFault::kNotFinite, [](auto& delta) {
                               delta[5] = std::numeric_limits<float>::quiet_NaN();
                             }}};
  for (size_t num_sites = 2; num_sites <= 6; ++num_sites) {
    for (const Attack& attack : attacks) {
      for (const int known_rounds : {0, 8}) {
        if (num_sites == 2 && known_rounds == 0) continue;  // nobody knows who of the two
        HonestSites sites(num_sites, 1024, 0.7, 5 * num_sites);
        DeltaWatch watch;
        for (int round = 0; round < known_rounds; ++round) judged(watch, sites, sites.next());
        Deltas deltas = sites.next();
        const size_t bad = num_sites / 2;
        attack.spoil(deltas[bad]);
        const auto faults = judged(watch, sites, deltas);
        CAPTURE(num_sites);
        CAPTURE(known_rounds);
        CAPTURE(name_of(attack.fault));
        for (size_t idx = 0; idx < num_sites; ++idx) {
          CHECK(name_of(faults[idx]) == name_of(idx == bad ? attack.fault : DeltaFault::kNone));
        }
      }
    }
  }
}

TEST_CASE("a site that grows slowly is followed, one that starts small is not at fault for it") {
  HonestSites sites(3, 512, 0.5, 9);
  DeltaWatch watch;
  double factor = 0.2;
  for (int round = 0; round < 60; ++round) {
    Deltas deltas = sites.next();
    for (float& value : deltas[1]) value *= static_cast<float>(factor);
    factor *= 1.05;
    for (const DeltaFault fault : judged(watch, sites, deltas)) CHECK(fault == DeltaFault::kNone);
  }
}

TEST_CASE("a site that has not trained is not at fault for standing still") {
  HonestSites sites(3, 256, 0.5, 1);
  Deltas deltas = sites.next();
  std::fill(deltas[2].begin(), deltas[2].end(), 0.0F);
  const auto faults =
      DeltaWatch().judge(sites.names(), {true, true, false}, gram_of(deltas, sites.momentum()));
  for (const DeltaFault fault : faults) CHECK(fault == DeltaFault::kNone);
}

TEST_CASE("products gathered in pieces are those of the whole") {
  HonestSites sites(3, 1000, 0.5, 2);
  const Deltas deltas = sites.next();
  const SliceGram whole = gram_of(deltas, sites.momentum());
  SliceGram pieces(3);
  for (size_t begin = 0; begin < 1000; begin += 300) {
    const size_t length = std::min<size_t>(300, 1000 - begin);
    std::vector<std::span<const float>> views;
    for (const auto& delta : deltas) views.push_back(std::span(delta).subspan(begin, length));
    pieces.add(views, sites.momentum().subspan(begin, length));
  }
  CHECK(pieces.num_values() == 1000);
  for (size_t one = 0; one < 3; ++one) {
    CHECK(pieces.rms(one) == doctest::Approx(whole.rms(one)));
    CHECK(pieces.cosine_to_reference(one) == doctest::Approx(whole.cosine_to_reference(one)));
  }
  CHECK(pieces.cosine(0, 2) == doctest::Approx(whole.cosine(0, 2)));
}

TEST_CASE("half of the members convict, fewer do not, and nobody is left without partners") {
  const Accusation of_b{.site = "b", .fault = "norm"}, of_a{.site = "a", .fault = "zero"};
  CHECK(Suspects::convict({{of_b}, {}, {}}).empty());
  const auto convicted = Suspects::convict({{of_b}, {of_b}, {of_a}, {}});
  REQUIRE(convicted.size() == 1);
  CHECK(convicted.front().site == "b");
  CHECK(convicted.front().fault == "norm");
  CHECK(Suspects::convict({{of_a}, {of_b}}).empty());  // each accuses the other
  CHECK(Suspects::convict({{of_b}, {}}).size() == 1);
}

TEST_CASE(
    "a suspect sits a round out, longer the second time, and is cleared after two clean rounds") {
  Suspects suspects(/*exchanges_per_round=*/4);
  CHECK(suspects.suspend("a", 10) == 14);
  CHECK(suspects.sits_out("a", 13));
  CHECK_FALSE(suspects.sits_out("a", 14));
  CHECK_FALSE(suspects.sits_out("b", 11));
  CHECK(suspects.suspend("a", 15) == 23);
  for (int64_t exchange = 16; exchange < 23; ++exchange) {
    CHECK(suspects.on_commit(exchange, {"b"}).empty());
  }
  for (int64_t exchange = 23; exchange < 30; ++exchange) {
    CHECK(suspects.on_commit(exchange, {"a", "b"}).empty());
  }
  CHECK(suspects.on_commit(30, {"a", "b"}) == std::vector<std::string>{"a"});
  CHECK(suspects.suspend("a", 40) == 44);  // forgiven
}

TEST_CASE("one delta of any size moves a robust mean no farther than honest ones reach") {
  Rng rng = Rng(4).fork("robust");
  for (const MeanKind kind : {MeanKind::kTrimmed, MeanKind::kMedianOfMeans}) {
    for (size_t num_sites = 4; num_sites <= 9; ++num_sites) {
      Deltas deltas(num_sites, std::vector<float>(64));
      std::vector<float> weights(num_sites, 1.0F / static_cast<float>(num_sites)), mean(64);
      for (auto& delta : deltas) {
        for (float& value : delta) value = static_cast<float>(rng.next_uniform());  // in [0, 1)
      }
      for (const float size : {1e30F, -1e30F}) {
        std::fill(deltas[num_sites / 2].begin(), deltas[num_sites / 2].end(), size);
        const std::vector<std::span<const float>> views(deltas.begin(), deltas.end());
        robust_mean(kind, views, weights, mean);
        for (const float value : mean) {
          CHECK(value >= 0.0F);
          CHECK(value <= 1.0F);
        }
      }
    }
  }
}

TEST_CASE("a robust mean of equal deltas is that delta, and of three members the plain mean") {
  const Deltas same(5, std::vector<float>{1.0F, -2.0F, 0.5F});
  const std::vector<std::span<const float>> views(same.begin(), same.end());
  const std::vector<float> weights(5, 0.2F);
  std::vector<float> mean(3), plain(3);
  for (const MeanKind kind : {MeanKind::kPlain, MeanKind::kTrimmed, MeanKind::kMedianOfMeans}) {
    robust_mean(kind, views, weights, mean);
    for (size_t i = 0; i < 3; ++i) CHECK(mean[i] == doctest::Approx(same[0][i]));
  }
  const Deltas three = {{1.0F, 2.0F, 100.0F}, {3.0F, 2.0F, 1.0F}, {4.0F, 8.0F, 1.0F}};
  const std::vector<std::span<const float>> few(three.begin(), three.end());
  const std::vector<float> unequal = {0.5F, 0.25F, 0.25F};
  robust_mean(MeanKind::kTrimmed, few, unequal, mean);
  robust_mean(MeanKind::kPlain, few, unequal, plain);
  CHECK(mean == plain);
}

}  // namespace
}  // namespace pelago::sites
