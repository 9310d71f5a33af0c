// Nothing that a broken chip makes reaches the weights: 1,000 injected values, the audit.
#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <limits>

#include "train/health/audit.h"
#include "train/health/plausibility.h"
#include "train/rank_fixture.h"

namespace pelago::train {
namespace {

constexpr uint64_t kHealthSeed = 20261122;

enum class Phase { kForward, kBackward, kReduced, kMoments };

/// One wrong value, at one place of one step.
struct Injection {
  Phase phase = Phase::kForward;
  int rank = 0;
  uint64_t layer = 0;  // block or bucket, modulo how many there are
  uint64_t place = 0;
  float value = 0;
};

Injection any_injection(Rng& rng, int num_ranks) {
  constexpr float kValues[] = {std::numeric_limits<float>::quiet_NaN(),
                               std::numeric_limits<float>::infinity(),
                               -std::numeric_limits<float>::infinity(),
                               1e30F,
                               -1e30F};
  return {.phase = static_cast<Phase>(rng.next_below(4)),
          .rank = static_cast<int>(rng.next_below(static_cast<uint64_t>(num_ranks))),
          .layer = rng.next_below(64),
          .place = rng.next_u64() >> 1,
          .value = kValues[rng.next_below(5)]};
}

/// Places the injection of a step on a rank, and counts those that happened.
class Saboteur {
 public:
  explicit Saboteur(std::atomic<int>& num_fired) : num_fired_(&num_fired) {}
  void order(const Injection& injection) {
    injection_ = injection;
    is_armed_ = true;
  }
  StepTamper tamper(int rank, uint64_t num_blocks, uint64_t num_buckets) {
    StepTamper result;
    result.blocks = [=, this](bool is_forward, size_t block_idx, Tensor& values) {
      if (!is_due(is_forward ? Phase::kForward : Phase::kBackward, rank)) return;
      if (block_idx == injection_.layer % num_blocks) spoil(values);
    };
    result.reduced = [=, this](size_t bucket_idx, Tensor& values) {
      if (is_due(Phase::kReduced, rank) && bucket_idx == injection_.layer % num_buckets) {
        spoil(values);
      }
    };
    result.moments = [=, this](size_t bucket_idx, Tensor& m, Tensor& v) {
      if (is_due(Phase::kMoments, rank) && bucket_idx == injection_.layer % num_buckets) {
        spoil(injection_.place % 2 == 0 ? m : v);
      }
    };
    return result;
  }

 private:
  bool is_due(Phase phase, int rank) const {
    return is_armed_ && injection_.phase == phase && injection_.rank == rank;
  }
  void spoil(Tensor& values) {
    if (values.numel() == 0) return;
    const auto place =
        static_cast<int64_t>(injection_.place % static_cast<uint64_t>(values.numel()));
    values.view({-1})[place] = injection_.value;
    is_armed_ = false;
    ++*num_fired_;
  }
  std::atomic<int>* num_fired_;
  Injection injection_;
  bool is_armed_ = false;
};

/// Trains with an injection every other step. Returns how many reached the weights.
struct Sabotaged {
  int num_fired = 0;
  int num_reached = 0;
  int num_skipped = 0;
};
Sabotaged sabotage(SiteShape shape, int num_injections, uint64_t seed) {
  const MemorySource text = learnable_tokens(2000);
  std::atomic<int> num_fired = 0;
  const auto num_ranks = static_cast<int>(options_of(shape).site.devices.size());
  std::vector<Saboteur> saboteurs(static_cast<size_t>(num_ranks), Saboteur(num_fired));
  std::vector<Injection> injections;
  Rng rng(seed);
  for (int i = 0; i < num_injections; ++i) injections.push_back(any_injection(rng, num_ranks));
  shape.tamper = [&](int rank) {
    const TrainerOptions options = options_of(shape);
    const plan::Place place = plan::place_of(options.site, rank);
    const auto& stage = options.site.pipelines[place.pipeline_idx].stages[place.stage_idx];
    const auto num_buckets =
        buckets_of(options.model, options.site, rank, /*bucket_values=*/4 << 20).own.size();
    return saboteurs[static_cast<size_t>(rank)].tamper(
        rank, static_cast<uint64_t>(stage.last_block - stage.first_block), num_buckets);
  };
  Sabotaged result;
  SharedState state(options_of(shape).model.num_parameters());
  run_grid(shape, text, [&](TestRank& rank) {
    int64_t step = 0;
    for (int i = 0; i < 4; ++i) rank.trainer.step(step++);
    for (const Injection& injection : injections) {
      rank.store(state);
      const Tensor before = state.master.clone();
      rank.collective.barrier();
      saboteurs[static_cast<size_t>(rank.rank)].order(injection);
      const StepReport report = rank.trainer.step(step++);
      rank.store(state);
      if (rank.rank == 0) {
        // Damaged moments are forgotten and the step goes on: Adam moves a weight by a few times
        // the learning rate, 1e-2 here, at most. With a sliced optimizer a rank holds reduced
        // gradients that it never uses. Everything else must stop the step.
        const bool may_go_on = injection.phase == Phase::kMoments ||
                               (injection.phase == Phase::kReduced && shape.slice_optimizer);
        const auto moved = (state.master - before).abs().max().item<double>();
        result.num_reached += moved <= (may_go_on && !report.skipped ? 0.1 : 0) ? 0 : 1;
        result.num_skipped += report.skipped ? 1 : 0;
      }
      rank.collective.barrier();
    }
  });
  result.num_fired = num_fired;
  return result;
}

TEST_CASE(
    "of 1,000 NaN, infinities and 1e30 at any rank, layer and phase none reaches the weights") {
  SiteShape alike;  // two pipelines, whole models
  alike.sequences = {2, 1};
  alike.microbatch = 2;
  SiteShape stages;  // one block each, and a pipeline beside it
  stages.sequences = {2, 1};
  stages.microbatch = 1;
  stages.pipelines = {{{1}, {1}}, {{2}}};
  SiteShape sliced = stages;
  sliced.slice_optimizer = true;
  int num_fired = 0;
  for (size_t i = 0; i < 3; ++i) {
    const Sabotaged result =
        sabotage(std::vector{alike, stages, sliced}[i], i == 0 ? 334 : 333, kHealthSeed + i);
    INFO("grid ", i);
    CHECK(result.num_reached == 0);
    CHECK(result.num_skipped > 100);
    num_fired += result.num_fired;
  }
  CHECK(num_fired == 1000);  // every fault fired
}

TEST_CASE("with Muon, too, no NaN, infinity or 1e30 reaches the weights") {
  SiteShape shape;
  shape.sequences = {2, 1};
  shape.microbatch = 1;
  shape.pipelines = {{{1}, {1}}, {{2}}};
  shape.optimizer = "muon";
  const Sabotaged result = sabotage(shape, 200, kHealthSeed + 3);
  CHECK(result.num_reached == 0);
  CHECK(result.num_skipped > 60);
  CHECK(result.num_fired == 200);
}

TEST_CASE("gradients of ordinary training are let through, a thousandfold one is not") {
  GradientWatch watch;
  Rng rng(kHealthSeed);
  double norm = 8;
  for (int step = 0; step < 500; ++step) {
    norm = std::max(0.05, norm * 0.98);
    const bool is_spike = rng.next_below(40) == 0;
    CHECK(watch.accepts(is_spike ? 50 * norm : norm * (0.5 + rng.next_uniform())));
  }
  CHECK_FALSE(watch.accepts(1e4));
  CHECK_FALSE(watch.accepts(1e30));
  CHECK_FALSE(watch.accepts(std::numeric_limits<double>::quiet_NaN()));
  CHECK(watch.accepts(norm));
}

TEST_CASE("before the size of gradients is known only what no model shows is refused") {
  GradientWatch watch;
  CHECK(watch.accepts(5e4));
  CHECK_FALSE(watch.accepts(1e7));
}

TEST_CASE("pipelines of unlike depth agree in an audit, which changes no weight") {
  SiteShape shape;
  shape.sequences = {2, 1, 1};
  shape.microbatch = 1;
  shape.pipelines = {{{1}, {1}}, {{2}}, {{2}}};
  const MemorySource text = learnable_tokens(2000);
  SharedState before(options_of(shape).model.num_parameters());
  SharedState after(before.master.numel());
  run_grid(shape, text, [&](TestRank& rank) {
    for (int64_t step = 0; step < 3; ++step) rank.trainer.step(step);
    rank.store(before);
    const std::vector<AuditSums> sums = rank.trainer.audit(3);
    rank.store(after);
    CHECK(sums.size() == 3);
    CHECK(sums[0].loss > 0);
    CHECK(sums[0].block_norms.size() == 2);
    CHECK(all_agree(sums, audit_bounds(rank.trainer.has_16_bits())));
  });
  CHECK(before.master.equal(after.master));
}

/// rank 1 of three pipelines is wrong in every pass, or in the first alone.
std::vector<size_t> audit_with_fault(bool is_lasting, int num_pipelines) {
  SiteShape shape;
  shape.sequences.assign(static_cast<size_t>(num_pipelines), 1);
  shape.microbatch = 1;
  std::atomic<int> num_fired = 0;
  shape.tamper = [&](int rank) {
    StepTamper tamper;
    if (rank != 1) return tamper;
    tamper.blocks = [&, is_lasting](bool is_forward, size_t block_idx, Tensor& values) {
      if (!is_forward || block_idx != 0 || (num_fired > 0 && !is_lasting)) return;
      values.view({-1})[5] += 1;
      ++num_fired;
    };
    return tamper;
  };
  const MemorySource text = learnable_tokens(2000);
  std::vector<size_t> wrong;
  run_grid(shape, text, [&](TestRank& rank) {
    const AuditBounds bounds = audit_bounds(rank.trainer.has_16_bits());
    const std::vector<AuditSums> first = rank.trainer.audit(0);
    const std::vector<AuditSums> second = rank.trainer.audit(0);
    if (rank.rank != 0) return;
    CHECK_FALSE(all_agree(first, bounds));
    wrong = wrong_pipelines(first, second, bounds);
  });
  CHECK(num_fired == (is_lasting ? 2 : 1));
  return wrong;
}

TEST_CASE("an audit names the pipeline with a wrong element, lasting or not") {
  CHECK(audit_with_fault(/*is_lasting=*/false, 2) == std::vector<size_t>{1});
  CHECK(audit_with_fault(/*is_lasting=*/true, 3) == std::vector<size_t>{1});
  // Of two that both stick to their answers nobody can tell which is wrong.
  CHECK(audit_with_fault(/*is_lasting=*/true, 2).empty());
}

TEST_CASE("an audit in f32 finds each of 200 wrong elements, wherever it is") {
  SiteShape shape;
  shape.sequences = {1, 1};
  shape.microbatch = 1;
  shape.pipelines = {{{1}, {1}}, {{2}}};
  Rng rng(kHealthSeed);
  uint64_t place = 0;
  size_t block = 0;
  bool is_forward = true;
  std::atomic<bool> is_armed = false;
  std::atomic<int> num_fired = 0;
  shape.tamper = [&](int rank) {
    StepTamper tamper;
    if (rank != 2) return tamper;  // the pipeline of one stage, which holds both blocks
    tamper.blocks = [&](bool forward, size_t block_idx, Tensor& values) {
      if (!is_armed || forward != is_forward || block_idx != block) return;
      Tensor flat = values.view({-1});
      const auto idx = static_cast<int64_t>(place % static_cast<uint64_t>(flat.numel()));
      // As the emulator's: off by its own size, and by 1 at least.
      flat[idx] += std::max(1.0F, std::abs(flat[idx].item<float>()));
      is_armed = false;
      ++num_fired;
    };
    return tamper;
  };
  const MemorySource text = learnable_tokens(2000);
  int num_found = 0;
  run_grid(shape, text, [&](TestRank& rank) {
    const AuditBounds bounds = audit_bounds(rank.trainer.has_16_bits());
    for (int i = 0; i < 200; ++i) {
      if (rank.rank == 0) {
        place = rng.next_u64();
        is_forward = rng.next_below(2) == 0;
        // What goes backward out of block 0 reaches the embedding alone, which is not compared.
        block = is_forward ? rng.next_below(2) : 1;
        is_armed = true;
      }
      rank.collective.barrier();
      const std::vector<AuditSums> first = rank.trainer.audit(i);
      const std::vector<AuditSums> second = rank.trainer.audit(i);
      if (rank.rank != 0) continue;
      const bool is_named = wrong_pipelines(first, second, bounds) == std::vector<size_t>{1};
      num_found += !all_agree(first, bounds) && is_named ? 1 : 0;
    }
  });
  CHECK(num_fired == 200);
  CHECK(num_found == 200);
}

TEST_CASE("a snapshot taken behind steps holds the state before them") {
  // Without memory for a copy the next step waits, with it several steps may pass.
  for (const int64_t memory_bytes : {int64_t{0}, int64_t{1} << 30}) {
    CAPTURE(memory_bytes);
    SiteShape shape;
    shape.sequences = {2, 1};
    shape.microbatch = 1;
    shape.pipelines = {{{1}, {1}}, {{2}}};
    shape.memory_bytes = memory_bytes;
    const MemorySource text = learnable_tokens(2000);
    SharedState plain(options_of(shape).model.num_parameters());
    SharedState behind(plain.master.numel()), later(plain.master.numel());
    std::atomic<int> num_done = 0;
    run_grid(shape, text, [&](TestRank& rank) {
      for (int64_t step = 0; step < 3; ++step) rank.trainer.step(step);
      rank.store(plain);
      rank.trainer.store_behind(behind.host(), [&] { ++num_done; });
      for (int64_t step = 3; step < 5; ++step) rank.trainer.step(step);
      rank.trainer.finish_storing();
      rank.store(later);
    });
    CHECK(num_done == 3);
    CHECK(plain.master.equal(behind.master));
    CHECK(plain.m.equal(behind.m));
    CHECK(plain.v.equal(behind.v));
    CHECK_FALSE(plain.master.equal(later.master));
  }
}

TEST_CASE("ranks that hold other bits of a value take those of the rank that owns it") {
  SiteShape shape;
  shape.sequences = {2, 2};
  std::atomic<bool> is_aligned = false;
  std::vector<Tensor> seen[2];  // by rank: Adam's first moments, bucket by bucket
  shape.tamper = [&](int rank) {
    StepTamper tamper;
    tamper.moments = [&, rank](size_t, Tensor& m, Tensor&) {
      if (is_aligned) {
        seen[rank].push_back(m.clone());
      } else if (rank == 1) {
        m.mul_(1.5);
      }
    };
    return tamper;
  };
  const MemorySource text = learnable_tokens(2000);
  SharedState scratch(options_of(shape).model.num_parameters());
  run_grid(shape, text, [&](TestRank& rank) {
    rank.trainer.step(0);
    rank.trainer.step(1);
    rank.trainer.align_ranks(scratch.host());
    is_aligned = true;
    rank.collective.barrier();
    rank.trainer.step(2);
  });
  REQUIRE(seen[0].size() == seen[1].size());
  REQUIRE_FALSE(seen[0].empty());
  for (size_t i = 0; i < seen[0].size(); ++i) CHECK(seen[0][i].equal(seen[1][i]));
}

TEST_CASE("copies with the same bits agree, and one that is off by a thousandth is seen") {
  for (const int64_t wrong_element : {int64_t{-1}, int64_t{0}, int64_t{700}}) {
    CAPTURE(wrong_element);
    SiteShape shape;
    shape.sequences = {2, 2};
    shape.tamper = [&](int rank) {
      StepTamper tamper;
      tamper.moments = [&, rank](size_t bucket, Tensor&, Tensor& v) {
        if (rank == 1 && bucket == 0 && wrong_element >= 0) {
          v.view(torch::kInt32)[wrong_element % v.numel()].bitwise_xor_(1 << 12);
        }
      };
      return tamper;
    };
    const MemorySource text = learnable_tokens(2000);
    std::atomic<int> num_agree = 0;
    run_grid(shape, text, [&](TestRank& rank) {
      rank.trainer.step(0);
      rank.trainer.step(1);
      num_agree += rank.trainer.copies_agree() ? 1 : 0;
    });
    CHECK(num_agree == (wrong_element < 0 ? 2 : 0));
  }
}

}  // namespace
}  // namespace pelago::train
