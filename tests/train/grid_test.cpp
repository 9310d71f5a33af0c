// The laws of the grid: however a site is cut into pipelines, stages, slices and microbatches, it
// computes what one device would.
#include <doctest/doctest.h>

#include <cmath>

#include "chips/catalogue.h"
#include "plan/cost/plan_costs.h"
#include "plan/cost/sizes.h"
#include "plan/planner/planner.h"
#include "train/grid/copies_out.h"
#include "train/grid/schedule.h"
#include "train/rank_fixture.h"

namespace pelago::train {
namespace {

constexpr uint64_t kGridSeed = 20261122;

/// Writes down which copies begin and which are waited for.
class CopyingDevice final : public PlainDevice {
 public:
  CopyingDevice() : PlainDevice(torch::kFloat32) {}
  std::unique_ptr<chips::HostCopy> start_copy_to_host(const Tensor& tensor,
                                                      const chips::WorkMark&) override {
    events += fmt::format("begin {}, ", num_begun);
    return std::make_unique<Copy>(*this, tensor, num_begun++);
  }
  std::string events;
  int num_begun = 0;

 private:
  struct Copy final : chips::HostCopy {
    Copy(CopyingDevice& its_device, Tensor its_values, int its_idx)
        : device(&its_device), values(std::move(its_values)), idx(its_idx) {}
    bool is_done() override { return false; }
    const Tensor& wait() override {
      device->events += fmt::format("wait {}, ", idx);
      return values;
    }
    CopyingDevice* device;
    Tensor values;
    int idx;
  };
};

model::ModelConfig four_blocks(bool is_tied) {
  model::ModelConfig config = tiny_model();
  config.num_hidden_layers = 4;
  config.num_key_value_heads = 2;
  config.tie_word_embeddings = is_tied;
  return config;
}

/// Any way to cut four blocks into stages, over at most `ranks_max` ranks.
std::vector<StageShape> any_pipeline(Rng& rng, int ranks_max, bool may_recompute) {
  std::vector<StageShape> stages;
  int num_ranks = 0;
  for (int64_t left = 4; left > 0;) {
    const bool is_last = num_ranks + 1 >= ranks_max;
    StageShape stage;
    stage.num_blocks =
        is_last ? left : 1 + static_cast<int64_t>(rng.next_below(static_cast<uint64_t>(left)));
    left -= stage.num_blocks;
    const int spare = ranks_max - num_ranks - (left > 0 ? 1 : 0);
    stage.width = spare >= 2 && rng.next_below(3) == 0 ? 2 : 1;
    stage.recompute = may_recompute && rng.next_below(2) == 0;
    num_ranks += stage.width;
    stages.push_back(stage);
  }
  return stages;
}

SiteShape any_grid(Rng& rng, int64_t batch) {
  SiteShape shape;
  shape.model = four_blocks(rng.next_below(2) == 0);
  shape.microbatch = 1 + static_cast<int64_t>(rng.next_below(3));
  shape.slice_optimizer = rng.next_below(2) == 0;
  shape.sequences.clear();
  const int64_t num_pipelines = 1 + static_cast<int64_t>(rng.next_below(3));
  for (int64_t i = 0; i < num_pipelines; ++i) {
    const int64_t spare = batch - (num_pipelines - i - 1);
    const int64_t share =
        i + 1 == num_pipelines
            ? batch
            : 1 + static_cast<int64_t>(rng.next_below(static_cast<uint64_t>(spare)));
    batch -= share;
    shape.sequences.push_back(share);
    shape.pipelines.push_back(any_pipeline(rng, 3, true));
  }
  return shape;
}

std::string describe(const SiteShape& shape) {
  std::string text = fmt::format("tied {} sliced {} microbatch {}:",
                                 shape.model.tie_word_embeddings,
                                 shape.slice_optimizer,
                                 shape.microbatch);
  for (size_t i = 0; i < shape.pipelines.size(); ++i) {
    text += fmt::format(" [{} seq", shape.sequences[i]);
    for (const StageShape& stage : shape.pipelines[i]) {
      text += fmt::format(" {}x{}{}", stage.num_blocks, stage.width, stage.recompute ? "r" : "");
    }
    text += "]";
  }
  return text;
}

struct Outcome {
  Tensor gradient;  // [N] of the first step
  Tensor master;    // [N] after the last
  std::vector<double> losses;
};

Outcome train(const SiteShape& shape, const TokenSource& samples, int64_t num_steps) {
  const int64_t num_values = shape.model.num_parameters();
  const SharedState gradient(num_values), state(num_values);
  Outcome outcome;
  run_grid(shape, samples, [&](TestRank& rank) {
    for (int64_t step = 0; step < num_steps; ++step) {
      const StepReport report = rank.trainer.step(step);
      if (step == 0) rank.trainer.store_gradient(gradient.host().master);
      if (rank.rank == 0) outcome.losses.push_back(report.loss);
    }
    rank.store(state);
  });
  outcome.gradient = gradient.master;
  outcome.master = state.master;
  return outcome;
}

TEST_CASE(
    "a snapshot's copies all begin before one is waited for, but for what the host can hold") {
  CopyingDevice device;
  std::vector<double> taken;
  const auto take = [&](const Tensor& host) { taken.push_back(host.flatten()[0].item<double>()); };
  CopiesOut small(device, nullptr);
  for (const double value : {1.0, 2.0, 3.0}) small.add(torch::full({4}, value), take);
  CHECK(taken.empty());
  small.finish();
  CHECK(device.events == "begin 0, begin 1, begin 2, wait 0, wait 1, wait 2, ");
  CHECK(taken == std::vector<double>{1, 2, 3});
  device.events.clear();
  taken.clear();
  CopiesOut large(device, nullptr);
  const int64_t num_values = 40 << 20;  // 160 MB, of which none is there
  for (const double value : {4.0, 5.0})
    large.add(torch::full({1}, value).expand({num_values}), take);
  CHECK(taken == std::vector<double>{4});
  large.finish();
  CHECK(device.events == "begin 3, wait 3, begin 4, wait 4, ");
  CHECK(taken == std::vector<double>{4, 5});
}

TEST_CASE("every grid gives the gradient of a single device") {
  const MemorySource samples = learnable_tokens(3000);
  Rng rng(kGridSeed);
  for (int i = 0; i < 24; ++i) {
    const SiteShape shape = any_grid(rng, 7);
    CAPTURE(kGridSeed);
    CAPTURE(i);
    CAPTURE(describe(shape));
    const SiteShape alone{.sequences = {7}, .microbatch = 7, .model = shape.model};
    const Outcome expected = train(alone, samples, 1);
    const Outcome outcome = train(shape, samples, 1);
    CHECK(relative_difference(outcome.gradient, expected.gradient) < 1e-6);
    CHECK(outcome.losses[0] == doctest::Approx(expected.losses[0]).epsilon(1e-6));
    CHECK(relative_difference(outcome.master, expected.master) < 1e-5);
  }
}

TEST_CASE("every grid without cut matrices gives the weights of a single device under Muon") {
  const MemorySource samples = learnable_tokens(3000);
  Rng rng(kGridSeed + 3);
  for (int i = 0; i < 12; ++i) {
    SiteShape shape = any_grid(rng, 7);
    shape.optimizer = "muon";
    shape.slice_optimizer = false;
    for (auto& pipeline : shape.pipelines) {
      for (StageShape& stage : pipeline) stage.width = 1;
    }
    CAPTURE(describe(shape));
    const Outcome expected = train(
        {.sequences = {7}, .microbatch = 7, .model = shape.model, .optimizer = "muon"}, samples, 4);
    const Outcome outcome = train(shape, samples, 4);
    // Small singular values grow 485 times in a step, and with them what sums in another order
    // differ by.
    CHECK(relative_difference(outcome.master, expected.master) < 1e-5);
    CHECK(outcome.losses[3] == doctest::Approx(expected.losses[3]).epsilon(1e-5));
  }
}

TEST_CASE("every grid follows the loss curve of a single device") {
  const MemorySource samples = learnable_tokens(3000);
  Rng rng(kGridSeed + 1);
  for (int i = 0; i < 3; ++i) {
    const SiteShape shape = any_grid(rng, 6);
    CAPTURE(describe(shape));
    const Outcome expected =
        train({.sequences = {6}, .microbatch = 6, .model = shape.model}, samples, 50);
    const Outcome outcome = train(shape, samples, 50);
    double worst = 0;
    for (size_t step = 0; step < 50; ++step) {
      worst = std::max(worst, std::abs(outcome.losses[step] / expected.losses[step] - 1));
    }
    CHECK(worst < 1e-4);
  }
}

TEST_CASE("a pipeline of bf16 and f32 chips learns as one of bf16 chips does") {
  const MemorySource samples = learnable_tokens(4000);
  SiteShape shape{.sequences = {4, 2}, .microbatch = 2, .dtype = "auto"};
  shape.model = four_blocks(true);
  shape.pipelines = {{{2, 1}, {2, 1}}, {{4, 1}}};
  SUBCASE("with AdamW") {}
  SUBCASE("with Muon, whose steps are rounded as each chip rounds") { shape.optimizer = "muon"; }
  shape.device_dtypes = {torch::kBFloat16, torch::kBFloat16, torch::kBFloat16};
  const Outcome same = train(shape, samples, 40);
  shape.device_dtypes = {torch::kBFloat16, torch::kFloat32, torch::kBFloat16};
  const Outcome mixed = train(shape, samples, 40);
  CHECK(mixed.losses.back() < 0.75 * mixed.losses.front());
  CHECK(mixed.losses.back() == doctest::Approx(same.losses.back()).epsilon(0.02));
}

TEST_CASE("tokens of a pipeline count once, whatever its stages") {
  const MemorySource samples = learnable_tokens(3000);
  SiteShape shape{.sequences = {3, 2}, .microbatch = 2};
  shape.model = four_blocks(false);
  shape.pipelines = {{{1, 2}, {3, 1}}, {{4, 1}}};
  run_ranks(shape, samples, [&](Trainer& trainer, int rank) {
    const StepReport report = trainer.step(0);
    if (rank != 0) return;
    CHECK(report.tokens == 5 * 16);
    CHECK(report.ranks[0].tokens + report.ranks[1].tokens + report.ranks[2].tokens == 3 * 16);
    CHECK(report.ranks[2].tokens == 36);  // three blocks of four
    CHECK(report.ranks[3].tokens == 2 * 16);
  });
}

TEST_CASE("1F1B goes forward and backward with each microbatch once, and keeps few of them") {
  for (int64_t num_stages = 1; num_stages <= 5; ++num_stages) {
    for (int64_t num_microbatches = 1; num_microbatches <= 9; ++num_microbatches) {
      for (int64_t stage = 0; stage < num_stages; ++stage) {
        int64_t in_flight = 0, most = 0, next_forward = 0, next_backward = 0;
        for (const Turn& turn : one_forward_one_backward(num_stages - stage, num_microbatches)) {
          REQUIRE(turn.microbatch_idx == (turn.is_forward ? next_forward++ : next_backward++));
          in_flight += turn.is_forward ? 1 : -1;
          most = std::max(most, in_flight);
          REQUIRE(in_flight >= 0);
        }
        CHECK(next_forward == num_microbatches);
        CHECK(next_backward == num_microbatches);
        CHECK(most == std::min(num_stages - stage, num_microbatches));
      }
    }
  }
}

TEST_CASE("buckets of a site hold every value that a rank has, once, in one order for all") {
  Rng rng(kGridSeed + 2);
  for (int i = 0; i < 40; ++i) {
    const SiteShape shape = any_grid(rng, 9);
    CAPTURE(describe(shape));
    const TrainerOptions options = options_of(shape);
    const auto num_ranks = static_cast<int>(options.site.devices.size());
    std::map<std::vector<int>, std::vector<int64_t>> first_seen;  // sizes, by group
    for (int rank = 0; rank < num_ranks; ++rank) {
      const SiteBuckets buckets = buckets_of(options.model, options.site, rank, 700);
      const auto specs = model::part_specs(
          options.model, part_of(options.site, options.model.num_hidden_layers, rank));
      std::vector<int> times_held(static_cast<size_t>(model::num_values(specs)), 0);
      std::map<std::vector<int>, std::vector<int64_t>> sizes;
      for (const Bucket& bucket : buckets.own) {
        CHECK(std::count(bucket.ranks.begin(), bucket.ranks.end(), rank) == 1);
        sizes[bucket.ranks].push_back(bucket.num_values);
        for (const Piece& piece : bucket.pieces) {
          for (int64_t row = 0; row < piece.num_rows; ++row) {
            for (int64_t column = 0; column < piece.num_columns; ++column) {
              ++times_held[static_cast<size_t>(piece.local_begin + row * piece.local_stride +
                                               column)];
            }
          }
        }
      }
      CHECK(std::all_of(times_held.begin(), times_held.end(), [](int n) { return n == 1; }));
      for (const auto& [ranks, list] : sizes) {
        const std::vector<int64_t> seen = first_seen.emplace(ranks, list).first->second;
        CHECK(std::equal(seen.begin(), seen.end(), list.begin(), list.end()));
      }
    }
  }
}

TEST_CASE("one call of the optimizer takes a whole matrix of a block under Muon, else neighbours") {
  const TrainerOptions options =
      options_of(SiteShape{.sequences = {2}, .model = four_blocks(true)});
  const SiteBuckets buckets = buckets_of(options.model, options.site, 0, /*bucket_values=*/5000);
  int64_t num_matrices = 0, num_values = 0, num_joined = 0, num_runs = 0;
  for (const Bucket& bucket : buckets.own) {
    num_joined += static_cast<int64_t>(update_runs(bucket, {0, bucket.num_values}).size());
    int64_t end = 0;
    for (const UpdateRun& run : update_runs(bucket, {0, bucket.num_values, true})) {
      CHECK(run.begin == end);
      end = run.end;
      ++num_runs;
      if (run.matrix_rows == 0) continue;
      ++num_matrices;
      num_values += run.end - run.begin;
      CHECK(run.decays);
      CHECK((run.end - run.begin) % run.matrix_rows == 0);
    }
    CHECK(end == bucket.num_values);
  }
  CHECK(num_matrices == 4 * 7);
  CHECK(num_joined < num_runs);
  int64_t expected = 0;
  for (const model::ParameterSpec& spec : model::parameter_specs(options.model)) {
    const bool is_matrix = spec.shape.size() == 2 && spec.name.starts_with("model.layers.");
    expected += is_matrix ? spec.num_values() : 0;
  }
  CHECK(num_values == expected);
}

TEST_CASE("plans count the buckets that the trainer makes") {
  const chips::Catalogue catalogue = chips::Catalogue::built_in();
  for (const char* preset : {"2m", "10m", "100m"}) {
    CAPTURE(preset);
    plan::JobConfig job;
    job.model = model::preset(preset);
    job.model.vocab_size = 1024;
    job.data.sequence_length = 128;
    job.train.pipeline = "never";
    plan::FleetConfig fleet;
    fleet.emulation_slowdown = 1000;
    fleet.sites.emplace_back().name = "a";
    for (int i = 0; i < 2; ++i) {
      plan::FleetDevice device;
      device.device = "emulated:nvidia-h20";
      device.cores = {i};
      device.chip = "nvidia-h20";
      fleet.sites[0].devices.push_back(device);
    }
    const plan::Plan made = plan::make_plan(job, fleet, catalogue, nullptr, 2);
    REQUIRE(made.sites[0].pipelines.size() == 2);
    const auto num_parameters = static_cast<double>(job.model.num_parameters());
    const SiteBuckets buckets =
        buckets_of(job.model,
                   made.sites[0],
                   /*rank=*/0,
                   static_cast<int64_t>(plan::usual_bucket_values(num_parameters)));
    CHECK(buckets.own.size() > 2);
    CHECK(plan::run_of_plan(made, job, 0).reductions.size() == buckets.own.size());
  }
}

}  // namespace
}  // namespace pelago::train
