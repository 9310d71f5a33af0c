// Sites that train in step: ranks of several sites, each a thread here, whose messages pass through
// sockets as they pass through agents.
#include <doctest/doctest.h>
#include <poll.h>

#include <cmath>

#include "base/error.h"
#include "train/across/joint_collective.h"
#include "train/across/joint_courier.h"
#include "train/across/state_sharing.h"
#include "train/grid/schedule.h"
#include "train/rank_fixture.h"

namespace pelago::train {
namespace {

/// What agents and the line between them do: hands each part to the rank it is for.
class Cable {
 public:
  explicit Cable(size_t num_ranks) {
    for (size_t rank = 0; rank < num_ranks; ++rank) {
      auto [agents, workers] = BridgeSocket::make_pair();
      agents_.push_back(std::move(agents));
      workers_.push_back(std::move(workers));
    }
    for (size_t rank = 0; rank < num_ranks; ++rank) {
      threads_.emplace_back([this, rank] {
        BridgeHeader header;
        std::string part;
        while (agents_[rank].read(header, part)) give(header, part);
      });
    }
  }
  ~Cable() {
    for (BridgeSocket& end : agents_) end.shut_down();
  }
  BridgeSocket take(size_t rank) { return std::move(workers_[rank]); }
  void give(const BridgeHeader& header, const std::string& part) {
    const std::lock_guard lock(mutex_);
    agents_[static_cast<size_t>(header.to_rank)].write(header, std::as_bytes(std::span(part)));
  }

 private:
  std::vector<BridgeSocket> agents_, workers_;
  std::mutex mutex_;  // guards writing
  std::vector<std::jthread> threads_;
};

struct JointShape {
  SiteShape grid;
  std::vector<int> site_of_rank;
  std::vector<int64_t> in_flight = {};  // by stage of every pipeline; empty: the usual
  int activation_bits = 32;
};

struct Curve {
  std::vector<double> losses, norms;
  Tensor master;  // [N]
};

TrainerOptions options_of(const JointShape& shape) {
  TrainerOptions options = options_of(shape.grid);
  options.site_of_rank = shape.site_of_rank;
  options.activation_bits = shape.activation_bits;
  for (plan::PipelinePlan& pipeline : options.site.pipelines) {
    for (size_t s = 0; s < shape.in_flight.size(); ++s) {
      pipeline.stages[s].in_flight = shape.in_flight[s];
    }
  }
  return options;
}

/// One rank, from its bridge to its steps.
void run_joint_rank(const JointShape& shape,
                    int rank,
                    Cable& cable,
                    std::vector<std::unique_ptr<ThreadGroup>>& sites,
                    const TokenSource& samples,
                    int64_t num_steps,
                    const SharedState& state,
                    Curve& curve) {
  at::set_num_threads(1);
  const TrainerOptions options = options_of(shape);
  const auto site = static_cast<size_t>(shape.site_of_rank[static_cast<size_t>(rank)]);
  const auto first =
      std::find(shape.site_of_rank.begin(), shape.site_of_rank.end(), static_cast<int>(site));
  const auto first_rank = static_cast<int>(first - shape.site_of_rank.begin());
  JointMembers members{
      .ranks = {}, .first_local_rank = first_rank, .num_local_ranks = sites[site]->num_ranks};
  for (size_t i = 0; i < shape.site_of_rank.size(); ++i) {
    members.ranks.push_back(static_cast<int>(i));
  }
  PlainDevice device(torch::kFloat32);
  ThreadCollective local(*sites[site], rank - first_rank);
  ThreadPost post;
  ThreadCourier unused(post, 0);
  Bridge bridge(cable.take(static_cast<size_t>(rank)), rank);
  const auto control =
      open_joint_collective(local, bridge, BridgeChannel::kControl, device, members);
  const auto reduction =
      open_joint_collective(local, bridge, BridgeChannel::kReduction, device, members);
  const auto courier = open_joint_courier(
      &unused,
      bridge,
      device,
      {.first_local_rank = rank, .num_local_ranks = 1, .is_8_bit = shape.activation_bits == 8});
  Trainer trainer(options, device, {control.get(), reduction.get(), courier.get()}, samples);
  const Tensor weights = model::initial_weights(options.model, Rng(7));
  trainer.load({.master = SharedState::values_of(weights), .m = {}, .v = {}}, {});
  for (int64_t step = 0; step < num_steps; ++step) {
    const StepReport report = trainer.step(step);
    if (rank == 0) curve.losses.push_back(report.loss);
    if (rank == 0) curve.norms.push_back(report.grad_norm);
  }
  trainer.store(state.host(), {0, state.master.numel()});
  control->barrier();
}

Curve train_in_step(const JointShape& shape, const TokenSource& samples, int64_t num_steps) {
  const size_t num_ranks = shape.site_of_rank.size();
  std::vector<std::unique_ptr<ThreadGroup>> sites;
  for (int site = 0; site <= shape.site_of_rank.back(); ++site) {
    const auto count = std::count(shape.site_of_rank.begin(), shape.site_of_rank.end(), site);
    sites.push_back(std::make_unique<ThreadGroup>(static_cast<int>(count)));
  }
  Cable cable(num_ranks);
  const SharedState state(shape.grid.model.num_parameters());
  Curve curve;
  {
    std::vector<std::jthread> ranks;
    for (size_t rank = 0; rank < num_ranks; ++rank) {
      ranks.emplace_back([&, rank] {
        run_joint_rank(
            shape, static_cast<int>(rank), cable, sites, samples, num_steps, state, curve);
      });
    }
  }
  curve.master = state.master;
  return curve;
}

Curve train_in_one_site(const SiteShape& shape, const TokenSource& samples, int64_t num_steps) {
  const SharedState state(shape.model.num_parameters());
  Curve curve;
  run_grid(shape, samples, [&](TestRank& rank) {
    for (int64_t step = 0; step < num_steps; ++step) {
      const StepReport report = rank.trainer.step(step);
      if (rank.rank == 0) curve.losses.push_back(report.loss);
      if (rank.rank == 0) curve.norms.push_back(report.grad_norm);
    }
    rank.store(state);
  });
  curve.master = state.master;
  return curve;
}

SiteShape two_stages() {
  SiteShape shape{.sequences = {6}, .microbatch = 1};
  shape.model = tiny_model();
  shape.model.tie_word_embeddings = true;
  shape.pipelines = {{{1, 1}, {1, 1}}};
  return shape;
}

TEST_CASE("two sites in step train as one site does, bit for bit, however deep the pipeline is") {
  const MemorySource samples = learnable_tokens(3000);
  const Curve expected = train_in_one_site(two_stages(), samples, 8);
  for (const int64_t depth : {2, 5}) {
    const Curve curve = train_in_step({two_stages(), {0, 1}, {depth, 1}}, samples, 8);
    CAPTURE(depth);
    CHECK(curve.losses == expected.losses);
    CHECK(curve.norms == expected.norms);
    CHECK(curve.master.equal(expected.master));
  }
}

TEST_CASE("pipelines beside each other over two sites train as they would in one") {
  const MemorySource samples = learnable_tokens(3000);
  SiteShape grid{.sequences = {3, 2}, .microbatch = 1};
  grid.model.tie_word_embeddings = true;
  grid.pipelines = {{{1, 1}, {1, 1}}, {{1, 1}, {1, 1}}};
  JointShape joint{grid, {0, 1, 1, 2}, {3, 1}};
  const Curve expected = train_in_one_site(grid, samples, 6);
  const Curve curve = train_in_step(joint, samples, 6);
  CHECK(curve.losses == expected.losses);
  CHECK(curve.norms == expected.norms);
}

TEST_CASE("activations of 16 and of 8 bits keep to the loss curve of exact ones") {
  const MemorySource samples = learnable_tokens(4000);
  const Curve exact = train_in_one_site(two_stages(), samples, 40);
  for (const int bits : {16, 8}) {
    const Curve curve = train_in_step({two_stages(), {0, 1}, {3, 1}, bits}, samples, 40);
    double worst = 0;
    for (size_t step = 0; step < curve.losses.size(); ++step) {
      worst = std::max(worst, std::abs(curve.losses[step] - exact.losses[step]));
    }
    CAPTURE(bits);
    CAPTURE(worst);
    CHECK(curve.losses != exact.losses);
    CHECK(worst < 0.02);  // nats, while the loss falls by more than one
    CHECK(curve.losses.back() < exact.losses.front() - 1);
  }
}

TEST_CASE("eight bits are within half a level of each block's largest value, and tell of a NaN") {
  const Tensor values = torch::linspace(-3, 5, 200).to(torch::kBFloat16);
  const std::vector<std::byte> encoded = encode_activations(values);
  CHECK(encoded.size() == encoded_bytes(200));
  Tensor back = torch::empty({200}, torch::kFloat32);
  decode_activations(encoded, back);
  CHECK((back - values.to(torch::kFloat32)).abs().max().item<double>() <= 5.0 / 127 / 2 + 1e-6);
  Tensor broken = values.clone();
  broken[7] = std::numeric_limits<float>::infinity();
  decode_activations(encode_activations(broken), back);
  CHECK(back.isnan().all().item<bool>());
}

TEST_CASE("a stage keeps no more microbatches than it may, and each goes forward first") {
  for (const int64_t in_flight : {1, 2, 7, 50}) {
    int64_t kept = 0, most = 0;
    std::vector<bool> was_forward(10);
    for (const Turn& turn : one_forward_one_backward(in_flight, 10)) {
      const auto idx = static_cast<size_t>(turn.microbatch_idx);
      if (!turn.is_forward) CHECK(was_forward[idx]);
      was_forward[idx] = true;
      kept += turn.is_forward ? 1 : -1;
      most = std::max(most, kept);
    }
    CHECK(kept == 0);
    CHECK(most == std::min<int64_t>(in_flight, 10));
  }
}

TEST_CASE("a message of many parts comes whole, and an urgent one overtakes it") {
  auto [near, far] = BridgeSocket::make_pair();
  Bridge a(std::move(near), 0);
  std::vector<std::byte> large(5 * kBridgePartBytes + 7, std::byte{3}), urgent(9, std::byte{5});
  a.send({BridgeChannel::kState, 1, 1}, large);  // more than the socket holds, and nobody reads yet
  a.send({BridgeChannel::kControl, 1, 1}, urgent);
  Bridge b(std::move(far), 1);
  std::vector<std::byte> came(urgent.size());
  const double urgent_s = b.receive({BridgeChannel::kControl, 0, 1}, came);
  CHECK((came == urgent));
  came.resize(large.size());
  CHECK(b.receive({BridgeChannel::kState, 0, 1}, came) >= urgent_s);
  CHECK((came == large));
}

TEST_CASE("whoever waits for a rank that is silent or lost hears why") {
  Cable cable(2);
  Bridge silent(cable.take(0), 0), waiting(cable.take(1), 1, /*timeout_s=*/0.05);
  std::vector<std::byte> came(1);
  const BridgeKey key{BridgeChannel::kControl, 0, 1};
  CHECK_THROWS_WITH(waiting.receive(key, came), "rank 0 of all sites was silent for 0.05 s");
  const std::string why = "the line from site a lost 3 messages: it was broken for too long";
  cable.give({.to_rank = 1, .channel = BridgeChannel::kFailure, .num_bytes = why.size()}, why);
  std::string heard;
  while (heard.find("lost") == std::string::npos) {
    try {
      waiting.receive(key, came);
    } catch (const Failure& failure) {
      heard = failure.what();
    }
  }
  CHECK(heard == why);
}

TEST_CASE("sites give each other what they hold, so that each has the whole state") {
  const model::ModelConfig model = tiny_model();
  plan::Plan plan;
  plan.num_blocks = 2;
  plan.num_parameters = model.num_parameters();
  plan.sites.resize(2);
  plan.pipelines.resize(1);
  for (int i = 0; i < 2; ++i) {
    plan.sites[static_cast<size_t>(i)].devices.emplace_back().device = "cpu";
    plan.pipelines[0].stages.push_back({.first_block = i, .last_block = i + 1, .ranks = {i}});
  }
  const auto ranges = ranges_by_site(plan, model);
  int64_t num_values = 0;
  for (const auto& own : ranges) {
    for (const Fragment& range : own) num_values += range.end - range.begin;
  }
  CHECK(num_values == model.num_parameters());
  Cable cable(2);
  const SharedState a(num_values), b(num_values);
  const SharedState* states[] = {&a, &b};
  std::vector<std::jthread> sites;
  for (size_t site = 0; site < 2; ++site) {
    for (const Fragment& range : ranges[site]) {
      for (const Tensor& part : {states[site]->master, states[site]->m, states[site]->v}) {
        part.narrow(0, range.begin, range.end - range.begin).fill_(static_cast<double>(site + 1));
      }
    }
    sites.emplace_back([&, site] {
      Bridge bridge(cable.take(site), static_cast<int>(site));
      share_state(states[site]->host(), plan, model, site, bridge);
    });
  }
  sites.clear();
  CHECK(a.master.equal(b.master));
  CHECK(a.v.equal(b.v));
  CHECK((a.m > 0).all().item<bool>());
  CHECK(a.m.min().item<double>() == 1);
  CHECK(a.m.max().item<double>() == 2);
}

}  // namespace
}  // namespace pelago::train
