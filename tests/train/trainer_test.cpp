#include "train/rank/trainer.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "train/rank_fixture.h"

namespace pelago::train {
namespace {

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.numel() == b.numel() &&
         std::memcmp(a.data_ptr(), b.data_ptr(), static_cast<size_t>(a.nbytes())) == 0;
}

int64_t num_values(const SiteShape& shape) { return shape.model.num_parameters(); }

Tensor gradient_of_first_step(const SiteShape& shape, const TokenSource& samples) {
  const SharedState shared(num_values(shape));
  run_ranks(shape, samples, [&](Trainer& trainer, int /*rank*/) {
    trainer.step(0);
    trainer.store_gradient(shared.host().master);
  });
  return shared.master;
}

/// The state as each rank has it, as far as it keeps it.
SharedState own_state(const TestRank& rank) {
  SharedState own(tiny_model().num_parameters());
  rank.trainer.store(own.host(), {0, own.master.numel()});
  return own;
}

TEST_CASE("any split of a batch over ranks and microbatches gives the same gradient") {
  const MemorySource samples = learnable_tokens(2000);
  const Tensor whole = gradient_of_first_step({.sequences = {6}, .microbatch = 6}, samples);
  for (const SiteShape& shape : {SiteShape{.sequences = {6}, .microbatch = 1},
                                 SiteShape{.sequences = {4, 2}, .microbatch = 3},
                                 SiteShape{.sequences = {1, 5}, .microbatch = 2},
                                 SiteShape{.sequences = {3, 1, 2}, .microbatch = 2}}) {
    CAPTURE(shape.sequences.size());
    CHECK(relative_difference(gradient_of_first_step(shape, samples), whole) < 1e-6);
  }
}

TEST_CASE("the samples of two sites together are those of one site, each once") {
  const MemorySource samples = learnable_tokens(2000);
  const Tensor whole = gradient_of_first_step({.sequences = {6}}, samples);
  const Tensor first = gradient_of_first_step({.sequences = {3, 1}, .batch_sequences = 6}, samples);
  const Tensor second = gradient_of_first_step(
      {.sequences = {2}, .first_sequence = 4, .batch_sequences = 6}, samples);
  CHECK(relative_difference(first + second, whole) < 1e-6);
}

TEST_CASE("all ranks end a step with the same report") {
  const MemorySource samples = learnable_tokens(2000);
  std::vector<StepReport> reports(3);
  run_ranks({.sequences = {3, 1, 2}}, samples, [&](Trainer& trainer, int rank) {
    for (int64_t step = 0; step < 3; ++step)
      reports[static_cast<size_t>(rank)] = trainer.step(step);
  });
  CHECK(reports[0].loss == reports[2].loss);
  CHECK(reports[0].grad_norm == reports[2].grad_norm);
  CHECK(reports[0].tokens == 6 * 16);
  REQUIRE(reports[0].ranks.size() == 3);
  CHECK(reports[0].ranks[2].tokens == 2 * 16);
}

TEST_CASE("a rank's seconds fall into parts, which go with its report") {
  const MemorySource samples = learnable_tokens(2000);
  StepReport report;
  run_ranks({.sequences = {3, 1}}, samples, [&](Trainer& trainer, int rank) {
    for (int64_t step = 0; step < 2; ++step) {
      const StepReport own = trainer.step(step);
      if (rank == 0) report = own;
    }
  });
  const StepReport read = step_report_from_json(to_json(report));
  for (const RankReport& rank : read.ranks) {
    CHECK(rank.parts.forward_s > 0);
    CHECK(rank.parts.backward_s > 0);
    CHECK(rank.parts.optimizer_s > 0);
    CHECK(rank.parts.reduce_s > 0);
    CHECK(rank.parts.bubble_s == 0);  // no other stage is waited for
    CHECK(rank.parts.line_s == 0);    // which only whoever stands above knows
  }
}

TEST_CASE("the loss falls steadily, in f32 and in bf16") {
  const MemorySource samples = learnable_tokens(4000);
  for (const c10::ScalarType dtype : {torch::kFloat32, torch::kBFloat16}) {
    CAPTURE(std::string(c10::toString(dtype)));
    std::vector<double> losses;
    run_ranks({.sequences = {4}, .dtype = "auto", .device_dtype = dtype},
              samples,
              [&](Trainer& trainer, int /*rank*/) {
                for (int64_t step = 0; step < 40; ++step) losses.push_back(trainer.step(step).loss);
              });
    CHECK(losses.front() == doctest::Approx(std::log(32.0)).epsilon(0.05));
    CHECK(losses.back() < 0.75 * losses.front());
  }
}

TEST_CASE("the same seed gives the same bits, and so does going on from a saved state") {
  const MemorySource samples = learnable_tokens(2000);
  SiteShape shape{.sequences = {2, 2}, .dtype = "bf16"};
  SUBCASE("with AdamW") {}
  SUBCASE("with Muon") { shape.optimizer = "muon"; }
  SharedState straight(num_values(shape)), again(num_values(shape)), resumed(num_values(shape));
  for (const SharedState* result : {&straight, &again}) {
    run_grid(shape, samples, [&](TestRank& rank) {
      for (int64_t step = 0; step < 6; ++step) rank.trainer.step(step);
      rank.store(*result);
    });
  }
  CHECK(same_bits(straight.master, again.master));

  const SharedState saved(num_values(shape));
  TrainState counters;
  run_grid(shape, samples, [&](TestRank& rank) {
    for (int64_t step = 0; step < 3; ++step) rank.trainer.step(step);
    rank.store(saved);
    if (rank.rank == 0) rank.trainer.save_counters(counters);
  });
  run_grid(shape, samples, [&](TestRank& rank) {
    rank.trainer.load(saved.host(), counters);
    for (int64_t step = 3; step < 6; ++step) rank.trainer.step(step);
    rank.store(resumed);
  });
  CHECK(same_bits(straight.master, resumed.master));
}

TEST_CASE("a gradient that is not finite on one rank is applied on none") {
  const MemorySource samples = learnable_tokens(2000);
  std::vector<StepReport> reports(2);
  std::vector<TrainState> states(2);
  std::vector<SharedState> before(2, SharedState(0)), after(2, SharedState(0));
  run_grid({.sequences = {3, 1}}, samples, [&](TestRank& rank) {
    const auto idx = static_cast<size_t>(rank.rank);
    rank.trainer.step(0);
    if (rank.rank == 1) {
      const SharedState broken(tiny_model().num_parameters());
      broken.master.fill_(std::numeric_limits<float>::infinity());
      TrainState counters;
      counters.adam_steps = 1;
      rank.trainer.load(broken.host(), counters);
    }
    before[idx] = own_state(rank);
    reports[idx] = rank.trainer.step(1);
    after[idx] = own_state(rank);
    rank.trainer.save_counters(states[idx]);
  });
  CHECK(reports[0].skipped);
  CHECK(reports[1].skipped);
  CHECK(same_bits(before[0].master, after[0].master));
  CHECK(same_bits(before[1].master, after[1].master));
  CHECK(states[0].adam_steps == 1);  // the skipped step does not count for the bias correction
  CHECK(states[0].loss_scale == 8);  // halved from 16 on every rank, whatever its dtype
  CHECK(states[1].loss_scale == 8);
}

TEST_CASE("the update is that of a gradient clipped to its norm, and spares norms from decay") {
  const MemorySource samples = learnable_tokens(2000);
  run_grid({.sequences = {4}}, samples, [&](TestRank& rank) {
    const Tensor before = own_state(rank).master;
    const StepReport report = rank.trainer.step(0);
    const SharedState gradient(before.numel());
    rank.trainer.store_gradient(gradient.host().master);
    const SharedState after = own_state(rank);
    const Tensor mean = gradient.master / static_cast<double>(report.tokens);
    CHECK(report.grad_norm == doctest::Approx(mean.norm().item<double>()).epsilon(1e-5));
    const double clip = std::min(1.0, 1.0 / report.grad_norm);
    // After one step m = 0.1 g and v = 0.05 g^2, corrected for bias: the update is lr * sign(g).
    CHECK(relative_difference(after.m, 0.1 * clip * mean) < 1e-5);
    int64_t begin = 0;
    for (const model::ParameterSpec& spec : model::parameter_specs(tiny_model())) {
      const auto range = [&](const Tensor& flat) {
        return flat.narrow(0, begin, spec.num_values());
      };
      const Tensor g = clip * range(mean);
      const double decay = spec.decays ? 1.0 - report.lr * 0.1 : 1.0;
      const Tensor expected = range(before) * decay - report.lr * g / (g.abs() + 1e-8);
      CAPTURE(spec.name);
      CHECK((range(after.master) - expected).abs().max().item<double>() < 1e-5);
      begin += spec.num_values();
    }
  });
}

TEST_CASE("a model that knows nothing needs log2 of the vocabulary bits for each token's bytes") {
  const MemorySource samples = learnable_tokens(2000);
  const MemorySource heldout = learnable_tokens(16 * 5 + 9, /*seed=*/11);  // five windows, a rest
  std::vector<int32_t> token_bytes(32);
  for (size_t token = 0; token < 32; ++token) token_bytes[token] = static_cast<int32_t>(token % 5);
  std::vector<int64_t> tokens(16 * 5 + 1);
  heldout.read(0, tokens);
  double num_bytes = 0;
  for (size_t i = 1; i < tokens.size(); ++i) num_bytes += static_cast<double>(tokens[i] % 5);
  for (const std::vector<int64_t>& shares : {std::vector<int64_t>{4}, {3, 1}, {1, 2, 1}}) {
    run_ranks({.sequences = shares, .microbatch = 2}, samples, [&](Trainer& trainer, int rank) {
      trainer.load(SharedState(tiny_model().num_parameters()).host(), {});
      const EvaluationReport report = trainer.evaluate(heldout, token_bytes, 12);
      if (rank != 0) return;
      CHECK(report.step == 12);
      CHECK(report.tokens == 80);
      CHECK(report.loss == doctest::Approx(std::log(32.0)).epsilon(1e-6));
      CHECK(report.bits_per_byte == doctest::Approx(80 * 5 / num_bytes).epsilon(1e-6));
    });
  }
}

TEST_CASE("a merge mixes one fragment, alike on all ranks, and leaves the rest alone") {
  const MemorySource samples = learnable_tokens(2000);
  for (const bool slices : {false, true}) {
    CAPTURE(slices);
    const SiteShape shape{.sequences = {3, 1}, .dtype = "bf16", .slice_optimizer = slices};
    const Fragment fragment{100, 400};
    const std::vector<float> global(static_cast<size_t>(num_values(shape)), 2.0F);
    const SharedState before(num_values(shape)), after(num_values(shape)),
        scratch(num_values(shape));
    run_grid(shape, samples, [&](TestRank& rank) {
      rank.store(before);
      rank.trainer.merge(fragment, global, {.keep = 0.25, .take = 0.75}, scratch.host());
      rank.store(after);
    });
    const Tensor expected = before.master.clone();
    expected.narrow(0, 100, 300).mul_(0.25).add_(1.5);
    CHECK(torch::allclose(after.master, expected, 1e-6, 1e-7));
    CHECK(same_bits(after.master.narrow(0, 400, 500), before.master.narrow(0, 400, 500)));
  }
}

TEST_CASE(
    "Muon steps the matrices of blocks and nothing else, and keeps no second moment of them") {
  const MemorySource samples = learnable_tokens(2000);
  std::vector<SharedState> after(2, SharedState(0));
  for (const bool has_muon : {false, true}) {
    SiteShape shape{.sequences = {4}};
    if (has_muon) shape.optimizer = "muon";
    run_grid(shape, samples, [&](TestRank& rank) {
      rank.trainer.step(0);
      after[has_muon ? 1 : 0] = own_state(rank);
    });
  }
  const Tensor initial = model::initial_weights(tiny_model(), Rng(7));
  int64_t begin = 0;
  for (const model::ParameterSpec& spec : model::parameter_specs(tiny_model())) {
    CAPTURE(spec.name);
    const auto range = [&, from = begin](const Tensor& flat) {
      return flat.narrow(0, from, spec.num_values());
    };
    begin += spec.num_values();
    const bool is_matrix = spec.shape.size() == 2 && spec.name.starts_with("model.layers.");
    CHECK(same_bits(range(after[0].master), range(after[1].master)) == !is_matrix);
    CHECK((range(after[1].v).abs().max().item<double>() == 0) == is_matrix);
    if (!is_matrix) continue;
    // As long as an AdamW step of the same rate, which is 1e-2 in every value here.
    const Tensor step = range(after[1].master) - range(initial) * (1 - 1e-2 * 0.1);
    const double mean_square = step.square().mean().item<double>();
    CHECK(std::sqrt(mean_square) > 0.1 * 0.01);
    CHECK(std::sqrt(mean_square) < 0.3 * 0.01);
  }
}

TEST_CASE("Muon refuses plans that cut matrices, in one line with what to do") {
  const MemorySource samples = learnable_tokens(2000);
  const auto refusal_of = [&](const SiteShape& shape) -> std::string {
    PlainDevice device(torch::kFloat32);
    ThreadGroup group(2);
    ThreadCollective collective(group, 0);
    try {
      Trainer(options_of(shape), device, {&collective, &collective}, samples);
    } catch (const Failure& failure) {
      return failure.what();
    }
    return "";
  };
  CHECK(
      refusal_of({.sequences = {2, 2}, .slice_optimizer = true, .optimizer = "muon"}) ==
      "plan: slice_optimizer = true cuts matrices, which optimizer = \"muon\" needs whole: make it "
      "false, or plan with optimizer = \"adamw\"");
  CHECK(refusal_of({.sequences = {2}, .pipelines = {{{2, 2}}}, .optimizer = "muon"}) ==
        "plan.pipelines[0].stages[0]: its 2 ranks cut matrices, which optimizer = \"muon\" needs "
        "whole: one rank a stage, or plan with optimizer = \"adamw\"");
}

TEST_CASE("a corpus smaller than one sequence is refused with both numbers") {
  const MemorySource samples = learnable_tokens(16);
  PlainDevice device(torch::kFloat32);
  ThreadGroup group(1);
  ThreadCollective collective(group, 0);
  CHECK_THROWS_WITH_AS(Trainer(options_of({}), device, {&collective, &collective}, samples),
                       "the corpus has 16 tokens, one sequence needs 17: add text or shorten "
                       "data.sequence_length",
                       Failure);
}

}  // namespace
}  // namespace pelago::train
