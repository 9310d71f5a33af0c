#include "train/rank/rank_run.h"

#include <algorithm>
#include <array>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/text/json.h"
#include "chips/torch.h"
#include "data/tokenizer.h"
#include "model/safetensors.h"
#include "model/transformer.h"
#include "plan/across/joint.h"
#include "train/across/state_sharing.h"
#include "train/process/worker_set.h"
#include "train/recovery/plan_files.h"
#include "train/recovery/restart_point.h"
#include "train/run_folder.h"

namespace pelago::train {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int64_t kCopyStepsMax = 16;  // what takes longer than this is not worth waiting for
/// While rank 0 waits for the outside, the others hear from it this often: far below the silence
/// after which a collective gives a peer up.
constexpr double kStillHereS = 1;

constexpr int kSkippedMax = 3;

std::vector<int32_t> token_lengths(const plan::JobConfig& job) {
  const auto tokenizer = data::Tokenizer::read(fs::path(job.data.dir) / "tokenizer.json");
  std::vector<int32_t> lengths(static_cast<size_t>(tokenizer.vocab_size()));
  for (size_t token = 0; token < lengths.size(); ++token) {
    const auto id = static_cast<data::TokenId>(token);
    // Special tokens decode to nothing: there is no text behind them.
    lengths[token] = static_cast<int32_t>(tokenizer.decode(std::span(&id, 1)).size());
  }
  return lengths;
}

/// The values of a contiguous f32 tensor on the host.
std::span<float> values_of(const Tensor& tensor) {
  return {tensor.data_ptr<float>(), static_cast<size_t>(tensor.numel())};
}

std::string typed(const char* type, const std::string& fields_json) {
  json message = parse_json(fields_json);
  message["type"] = type;
  return message.dump();
}

}  // namespace

ExchangeSchedule schedule_of(const plan::Plan& plan) {
  ExchangeSchedule schedule;
  schedule.num_steps = plan.steps;
  if (plan.sites.size() < 2) return schedule;
  schedule.inner_steps = plan.exchange.inner_steps;
  schedule.num_fragments = plan.exchange.fragments;
  schedule.overlap_steps = plan.exchange.overlap_steps;
  return schedule;
}

// Rank 0 hashes the shards before anyone trains on them; the other ranks would only read the same
// bytes again.
RankRun::RankRun(const WorkerOptions& options,
                 const WorkerSetup& setup,
                 SharedWeights shared,
                 std::optional<OpenDevice> opened,
                 Control& control)
    : options_(options),
      setup_(setup),
      shared_(std::move(shared)),
      control_(&control),
      job_(read_run_job(options.run_dir)),
      plan_(read_plan(
          options.run_dir, read_run_plan(options.run_dir), options.site_idx, setup.plan_idx)),
      schedule_(schedule_of(plan_)),
      train_stream_(job_.data.dir, "train", options.rank == 0 && setup.check_data),
      heldout_stream_(job_.data.dir, "heldout", options.rank == 0 && setup.check_data),
      samples_(train_stream_),
      heldout_(heldout_stream_),
      token_bytes_(token_lengths(job_)),
      state_(identity_of(job_)),
      saving_(options.site_dir / "checkpoints", control) {
  if (plan_.num_parameters != job_.model.num_parameters()) {
    fail("plan.json is for a model of {} parameters, job.toml's has {}: plan again",
         plan_.num_parameters,
         job_.model.num_parameters());
  }
  if (plan_.optimizer != job_.train.optimizer) {
    fail("plan.json is for optimizer {}, job.toml has {}: plan again",
         plan_.optimizer,
         job_.train.optimizer);
  }
  const plan::SitePlan& site = plan_.sites.at(static_cast<size_t>(options.site_idx));
  const plan::DevicePlan& share = site.devices.at(static_cast<size_t>(options.rank));
  if (schedule_.num_fragments > 0) {
    fragments_ = cut_fragments(job_.model, schedule_.num_fragments);
  }
  opened_ = opened ? std::move(*opened) : open_examined(plan_, share, job_.train.known_answer);
  device_ = opened_.device.get();
  SiteBoard& board = shared_.board();
  control.set_answer([this, &board](int64_t question) {
    device_->synchronize();
    board.answer(static_cast<size_t>(options_.rank)) = question;
  });
  if (plan::is_joint(plan_)) {
    const auto site_idx = static_cast<size_t>(options.site_idx);
    bridge_ = std::make_unique<Bridge>(BridgeSocket(kBridgeDescriptor),
                                       plan::first_joint_rank(plan_, site_idx) + options.rank);
    links_ = std::make_unique<SiteLinks>(plan_, site_idx, *bridge_, *device_, setup.rendezvous_dir);
  } else {
    links_ = std::make_unique<SiteLinks>(site, options.rank, *device_, setup.rendezvous_dir);
  }
  collective_ = &links_->control();
  RankLinks links = links_->rank_links();
  links.pulse = &board.pulse(static_cast<size_t>(options.rank));
  TrainerOptions training = trainer_options(job_, plan_, options.site_idx);
  training.data_shift = setup.data_shift;
  trainer_ = std::make_unique<Trainer>(std::move(training), *device_, links, samples_);
  snapshots_ = std::make_unique<Snapshots>(shared_,
                                           *trainer_,
                                           static_cast<size_t>(options.rank),
                                           site.devices.size(),
                                           // Sites in step go back to a checkpoint together.
                                           is_joint() ? 0 : job_.train.snapshot_every_steps);
  load_weights(setup);
}

RankRun::~RankRun() { control_->set_answer(nullptr); }

void RankRun::load_weights(const WorkerSetup& setup) {
  state_.step = setup.start_step;
  if (setup.slot_idx >= 0) {
    const auto slot_idx = static_cast<size_t>(setup.slot_idx);
    const SnapshotCounters& counters = shared_.board().counters(slot_idx);
    state_.tokens = counters.tokens;
    state_.adam_steps = counters.adam_steps;
    state_.loss_scale = counters.loss_scale;
    state_.loss_scale_steps = counters.loss_scale_steps;
    trainer_->load(shared_.snapshot(slot_idx), state_);
    snapshots_->resume_from(slot_idx, state_.step);
    is_fresh_ = false;
  } else if (!setup.resume_from.empty()) {
    const fs::path dir = setup.resume_from;
    const fs::path state_path = dir / "state.json";
    const TrainState found = train_state_from_json(read_text_file(state_path), state_path.string());
    refuse_other_run(found, state_, dir.string());
    const model::SafetensorsFile weights(dir / "weights.safetensors");
    const model::SafetensorsFile optimizer(dir / "optimizer.safetensors");
    const Tensor master = weights.tensor("master");
    const Tensor m = optimizer.tensor("m");
    const Tensor v = optimizer.tensor("v");
    trainer_->load({values_of(master), values_of(m), values_of(v)}, found);
    state_.step = found.step;
    state_.tokens = found.tokens;
    saved_step_ = found.step;
    is_fresh_ = false;
  } else if (setup.start_from_shared) {
    wait_together([this] { return control_->has_weights(); });
    trainer_->load({.master = shared_.local(), .m = {}, .v = {}}, {});
    is_fresh_ = false;
  } else {
    const Tensor fresh =
        model::initial_weights(job_.model, Rng(static_cast<uint64_t>(job_.train.seed)));
    trainer_->load({.master = values_of(fresh), .m = {}, .v = {}}, {});
  }
}

void RankRun::run() {
  control_->send(json({{"type", "ready"}}).dump());
  wait_together([this] { return control_->may_train(); });
  const bool was_finished = !is_fresh_ && state_.step >= plan_.steps;
  if (is_fresh_) evaluate();
  Orders orders;
  while (state_.step < plan_.steps) {
    orders = share_orders();
    carry_out(orders);
    if (orders.order != Order::kGoOn) break;
    if (orders.leaves_out) {
      leave_out_step();
    } else {
      const int64_t audit_every = job_.train.audit_every_steps;
      if (audit_every > 0 && state_.step > 0 && state_.step % audit_every == 0) audit();
      train_step();
    }
    const int64_t eval_every = job_.train.eval_every_steps;
    if (eval_every > 0 && state_.step % eval_every == 0 && state_.step < plan_.steps &&
        state_.step > setup_.evaluated_step) {
      evaluate();
    }
    if (state_.step < plan_.steps && state_.step > setup_.saved_step &&
        schedule_.is_checkpoint_step(state_.step, job_.train.checkpoint_every_steps)) {
      save_checkpoint(Saving::kBehind);
    }
  }
  if (orders.order == Order::kPause) return leave();
  finish(orders.order, was_finished);
}

void RankRun::finish(Order order, bool was_finished) {
  if (order == Order::kStopWithCheckpoint && saved_step_ != state_.step)
    save_checkpoint(Saving::kAtOnce);
  if (order == Order::kGoOn) {
    // Whoever is lost from here on need not repeat a step: merges before may be overwritten.
    if (!was_finished && !fragments_.empty()) store_at_once();
    if (!was_finished) take_last_merges();
    if (evaluated_step_ != state_.step || !fragments_.empty()) evaluate();
    if (!was_finished) save_checkpoint(Saving::kAtOnce);
  }
  trainer_->store({.master = shared_.local(), .m = {}, .v = {}}, {0, plan_.num_parameters});
  finish_saving();
  collective_->barrier();  // a rank that leaves earlier could take its transport from the others
  control_->send(json({{"type", "finished"}, {"step", state_.step}}).dump());
}

/// The site is to start again with other devices: nothing of what was done is lost.
void RankRun::leave() {
  store_at_once();
  control_->send(json({{"type", "left"}, {"step", state_.step}}).dump());
}

void RankRun::store_at_once() {
  finish_saving();
  trainer_->save_counters(state_);
  trainer_->store(snapshots_->begin_at_once(), {0, plan_.num_parameters});
  snapshots_->finish_at_once(state_);
  collective_->barrier();
}

/// Returns on every rank once rank 0 finds that something has come.
void RankRun::wait_together(const std::function<bool()>& has_come) {
  std::array<std::byte, 1> come{};
  for (double patience_s = 0;; patience_s = kStillHereS) {
    ++shared_.board().pulse(static_cast<size_t>(options_.rank));
    if (speaks_for_site()) control_->listen(0);
    if (is_first_rank()) {
      control_->listen(0);
      const double deadline_s = steady_now_s() + patience_s;
      while (!has_come() && steady_now_s() < deadline_s) {
        control_->listen(deadline_s - steady_now_s());
      }
      come[0] = std::byte{has_come()};
    }
    collective_->broadcast(come, 0);
    if (come[0] != std::byte{0}) return;
    opened_.health->examine_when_idle(steady_now_s());
  }
}

RankRun::Orders RankRun::share_orders() {
  Orders orders;
  if (speaks_for_site()) {
    control_->listen(0);
    watch_saving();
  }
  if (is_first_rank()) {
    const auto& request = control_->stop_request();
    // Later than asked is possible if the request came late; in flight is not.
    if (request && state_.step >= request->step && schedule_.is_quiet(state_.step)) {
      orders.order = request->with_checkpoint ? Order::kStopWithCheckpoint : Order::kStop;
    } else if (control_->should_pause()) {
      orders.order = Order::kPause;
    } else {
      orders.leaves_out = leaves_out_next();
      orders.begins_snapshot = !orders.leaves_out && !saving_.is_busy() && !saves_soon() &&
                               snapshots_->is_due(state_.step, steady_now_s());
      orders.plan_idx = control_->take_new_shares(state_.step + setup_.data_shift).value_or(0);
    }
  }
  collective_->broadcast(std::as_writable_bytes(std::span(&orders, 1)), 0);
  return orders;
}

void RankRun::carry_out(const Orders& orders) {
  if (orders.begins_snapshot) {
    trainer_->save_counters(state_);
    snapshots_->begin(state_);
  }
  if (orders.plan_idx == 0) return;
  const plan::Plan changed = read_plan(options_.run_dir, plan_, options_.site_idx, orders.plan_idx);
  trainer_->take_shares(changed.sites.at(static_cast<size_t>(options_.site_idx)));
}

void RankRun::train_step() {
  const double begin_s = steady_now_s();
  StepReport report = trainer_->step(state_.step);
  state_.step = report.step;
  state_.tokens += report.tokens;
  num_skipped_ = report.skipped ? num_skipped_ + 1 : 0;
  report.wait_line_s = exchange_after_step();
  report.step_s = steady_now_s() - begin_s;
  if (speaks_for_site()) control_->send(typed("step", to_json(own_part(report))));
  // fp16 alone skips a step now and then; more in a row may be a broken chip.
  if (num_skipped_ > 0 && num_skipped_ % kSkippedMax == 0) opened_.health->examine();
}

/// Of sites in step each tells its own ranks' share of the tokens, so that they add up.
StepReport RankRun::own_part(StepReport report) const {
  if (!is_joint()) return report;
  const auto site_idx = static_cast<size_t>(options_.site_idx);
  const auto first = report.ranks.begin() + plan::first_joint_rank(plan_, site_idx);
  const auto num_ranks = static_cast<std::ptrdiff_t>(plan_.sites[site_idx].devices.size());
  report.ranks = std::vector<RankReport>(first, first + num_ranks);
  report.tokens = 0;
  for (const RankReport& rank : report.ranks) report.tokens += rank.tokens;
  return report;
}

void RankRun::evaluate() {
  const EvaluationReport report = trainer_->evaluate(heldout_, token_bytes_, state_.step);
  evaluated_step_ = state_.step;
  if (is_first_rank()) control_->send(typed("evaluation", to_json(report)));
  opened_.health->examine();
}

/// Of a checkpoint in mid-run, the ranks copy their state to the slot while the next step computes:
/// training stands still only for what that step could not hide. Unlike chips that keep copies of
/// one master, and hold other bits, first take the same, so that a run that resumes goes on as this
/// one does: that takes the way over the hosts, and is longer than a step of a small batch.
void RankRun::save_checkpoint(Saving how) {
  const double begin_s = steady_now_s();
  finish_saving();
  copying_begun_s_ = trainer_->storing_s();
  trainer_->save_counters(state_);
  size_t slot_idx = 0;
  const bool differ = !is_joint() && trainer_->may_differ() && !trainer_->copies_agree();
  if (how == Saving::kAtOnce || is_joint() || differ) {
    const HostState slot = snapshots_->begin_at_once();
    trainer_->align_ranks(slot);
    slot_idx = snapshots_->finish_at_once(state_);
  } else {
    slot_idx = snapshots_->begin(state_);
  }
  saved_step_ = state_.step;
  if (!speaks_for_site()) return;
  TrainState counters = state_;
  counters.data_step = state_.step + setup_.data_shift;
  log_info("checkpoint begun step={} stall_s={:.4f}", state_.step, steady_now_s() - begin_s);
  const HostState slot = shared_.snapshot(slot_idx);
  saving_.begin({.state = slot,
                 .counters = counters,
                 .is_whole = [this,
                              slot_idx,
                              step = state_.step] { return snapshots_->is_whole(slot_idx, step); },
                 .complete = [this, slot] { take_parts_of_others(slot); }});
}

/// Afterwards the slots are whole on all ranks, and none is being written to disk.
void RankRun::finish_saving() {
  trainer_->finish_storing();
  collective_->barrier();
  saving_.wait();
}

/// A checkpoint is a snapshot too; it would have to wait for one that is still being copied.
bool RankRun::saves_soon() const {
  for (int64_t step = state_.step + 1; step <= state_.step + copy_steps_; ++step) {
    if (schedule_.is_checkpoint_step(step, job_.train.checkpoint_every_steps)) return true;
  }
  return false;
}

/// On the writer's thread: sites in step each hold a part of the state.
void RankRun::take_parts_of_others(const HostState& state) {
  if (!is_joint()) return;
  share_state(state, plan_, job_.model, static_cast<size_t>(options_.site_idx), *bridge_);
}

void RankRun::watch_saving() {
  if (!saving_.poll()) return;
  copy_steps_ = std::clamp<int64_t>(state_.step - saved_step_ + 1, 1, kCopyStepsMax);
  log_info("checkpoint copied step={} stall_s={:.4f}",
           saved_step_,
           trainer_->storing_s() - copying_begun_s_);
}

}  // namespace pelago::train
