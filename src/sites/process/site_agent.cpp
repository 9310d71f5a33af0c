#include "sites/process/site_agent.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "base/error.h"
#include "base/log.h"
#include "base/text/json.h"
#include "plan/across/joint.h"
#include "sites/process/site_checkpoint.h"
#include "train/checkpoint.h"

namespace pelago::sites {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr double kPollS = 0.003;  // an exchange waits for at most two of these a hop
constexpr double kHangS = 60;     // a main thread that has not turned for so long is dead
constexpr double kTickS = 0.02;
constexpr double kLastCopyS = 600;  // 12 bytes a parameter, and more: 1 B over 200 Mbit/s

MergeRule merge_rule(const std::string& combine) {
  if (combine == "direction") return MergeRule::kDirection;
  if (combine == "trimmed") return MergeRule::kTrimmed;
  return combine == "median_of_means" ? MergeRule::kMedianOfMeans : MergeRule::kMean;
}

/// The site's newest checkpoint; null if there is none that can be read.
std::unique_ptr<const GlobalState> newest_checkpoint(const SiteAgentOptions& options,
                                                     const fs::path& site_dir,
                                                     const GlobalState& like) {
  if (options.hello.checkpoints.empty()) return nullptr;
  const fs::path checkpoint =
      train::checkpoint_path(site_dir / "checkpoints", options.hello.checkpoints.back().step);
  if (!fs::exists(checkpoint)) return nullptr;  // a copy in the store: the others are nearer
  auto older = std::make_unique<GlobalState>(like);
  try {
    read_site_checkpoint(checkpoint, *older);
  } catch (const Failure& failure) {
    log_warn("checkpoint left out reason=\"{}\"", failure.what());
    return nullptr;
  }
  return older;
}

MemberOptions member_options(const SiteAgentOptions& options,
                             const fs::path& site_dir,
                             const GlobalState& state) {
  const plan::SitePlan& site = options.plan.sites[static_cast<size_t>(options.site_idx)];
  const plan::SitesConfig& exchange = options.plan.exchange;
  MemberOptions member;
  member.site = site.name;
  member.schedule = schedule_of(options.plan);
  member.exchange = {.bits = exchange.delta_bits,
                     .member_idx = -1,
                     .tokens = {},
                     .rule = merge_rule(exchange.combine),
                     .error_decay = exchange.error_decay};
  member.outer = {.lr = exchange.outer_lr, .momentum = exchange.outer_momentum};
  member.lane = static_cast<size_t>(options.site_idx);
  member.shares = shares_of(options.plan);
  member.sequence_tokens = options.plan.sequence_length;
  member.heartbeat_s = exchange.heartbeat_s;
  member.coordinators = options.coordinators;
  member.hello = options.hello;
  member.recall = [options, site_dir, &state] {
    return newest_checkpoint(options, site_dir, state);
  };
  return member;
}

}  // namespace

std::vector<int64_t> shares_of(const plan::Plan& plan) {
  std::vector<int64_t> shares;
  for (const plan::SitePlan& site : plan.sites) shares.push_back(site.batch_sequences);
  return shares;
}

train::ExchangeSchedule schedule_of(const plan::Plan& plan) {
  if (plan::is_joint(plan)) return {.num_steps = plan.steps};
  const train::ExchangeSchedule schedule{.inner_steps = plan.exchange.inner_steps,
                                         .num_fragments = plan.exchange.fragments,
                                         .overlap_steps = plan.exchange.overlap_steps,
                                         .num_steps = plan.steps};
  const bool is_good = schedule.num_fragments > 0 && schedule.overlap_steps >= 0 &&
                       schedule.inner_steps % schedule.num_fragments == 0 &&
                       schedule.overlap_steps < schedule.interval();
  if (!is_good) {
    fail_usage(
        "sites: inner_steps = {}, fragments = {}, overlap_steps = {}: inner_steps must be a "
        "multiple of fragments, and overlap_steps below their quotient",
        schedule.inner_steps,
        schedule.num_fragments,
        schedule.overlap_steps);
  }
  return schedule;
}

SiteAgent::SiteAgent(const SiteAgentOptions& options,
                     std::unique_ptr<train::SiteRunner> runner,
                     Transport& transport,
                     GlobalState& state,
                     const Clock& clock)
    : options_(options),
      site_(options.plan.sites[static_cast<size_t>(options.site_idx)].name),
      site_dir_(options.run_dir / "sites" / site_),
      transport_(&transport),
      state_(&state),
      clock_(&clock),
      member_(member_options(options, site_dir_, state), state),
      runner_(std::move(runner)),
      turned_s_(clock.now_s()),
      heart_([this](const std::stop_token& stop) { beat(stop); }) {
  if (options_.relay == nullptr) return;
  checkpoints_.emplace(CheckpointExchange::Options{.site = site_,
                                                   .checkpoints_dir = site_dir_ / "checkpoints",
                                                   .keep = options_.keep_checkpoints},
                       transport);
}

SiteAgent::~SiteAgent() {
  if (options_.relay != nullptr) options_.relay->stop();
}

void SiteAgent::beat(const std::stop_token& stop) {
  std::mutex never_shared;
  std::condition_variable_any woken;
  std::unique_lock lock(never_shared);
  const std::chrono::duration<double> pause(options_.plan.exchange.heartbeat_s);
  while (!stop.stop_requested()) {
    if (clock_->now_s() - turned_s_ < kHangS) {
      transport_->send(kCoordinatorName,
                       encode(site_, Heartbeat{options_.hello.incarnation, completed_steps_}));
    }
    woken.wait_for(lock, stop, pause, [] { return false; });
  }
}

Leave SiteAgent::run(const std::atomic<bool>& stop_requested, const std::function<void()>& look) {
  double ticked_s = -1;
  while (!leave_) {
    const double now_s = clock_->now_s();
    turned_s_ = now_s;
    if (now_s - ticked_s >= kTickS) {
      ticked_s = now_s;
      look();
      int64_t sent_bytes = 0;
      for (const auto& [peer, traffic] : transport_->traffic()) {
        if (peer == kCoordinatorName) continue;
        sent_bytes += traffic.sent_bytes;
        if (traffic.rate_mbit_s > 0) member_.set_rate(peer, traffic.rate_mbit_s);
      }
      member_.set_sent_bytes(sent_bytes);
      if (stop_requested) carry_out(member_.ask_stop(now_s));
      carry_out(member_.on_tick(now_s));
      if (!leave_ && checkpoints_) watch_lines(now_s);
      report_copies();
    }
    receive(member_.has_work() ? 0 : kPollS);
    if (!leave_ && member_.has_work()) carry_out(member_.work(clock_->now_s()));
    if (is_running_ && !leave_ && !runner_->poll(member_.has_work() ? 0 : kPollS)) {
      is_running_ = false;
      carry_out(member_.on_finished(clock_->now_s()));
    }
  }
  finish_copies();
  return *leave_;
}

/// Of sites in step.
void SiteAgent::watch_lines(double now_s) {
  const std::string lost = options_.relay->failure();
  if (!lost.empty()) carry_out(member_.on_line_lost(lost, now_s));
  checkpoints_->tick(now_s);
  if (const auto ready = checkpoints_->take_ready(now_s)) {
    report(
        "checkpoint_fetched",
        json{{"step", ready->start.step}, {"bytes", ready->num_bytes}, {"seconds", ready->took_s}}
            .dump());
    start_workers(ready->start);
  }
}

void SiteAgent::receive(double timeout_s) {
  while (const std::optional<Arrival> arrival = transport_->receive(timeout_s)) {
    timeout_s = 0;
    if (!arrival->frame) {
      carry_out(member_.on_lost(arrival->peer, clock_->now_s()));
      if (arrival->num_lost > 0) {
        const std::string lost = fmt::format(
            "the line to site {} was broken for too long, {} "
            "messages for its workers were given up",
            arrival->peer,
            arrival->num_lost);
        log_warn("{}", lost);
        carry_out(member_.on_line_lost(lost, clock_->now_s()));
      }
      continue;
    }
    const Result<Message> message = decode(*arrival->frame);
    if (message) {
      if (checkpoints_ && checkpoints_->take(arrival->peer, *message, clock_->now_s())) continue;
      carry_out(member_.on_message(arrival->peer, *message, clock_->now_s()));
    } else {
      log_warn("refused from={} reason=\"{}\"", arrival->peer, message.error().message);
    }
    if (leave_) return;
  }
}

void SiteAgent::carry_out(MemberActions actions) {
  for (MemberAction& action : actions) {
    if (auto* send = std::get_if<SendMessage>(&action)) {
      if (send->again && transport_->num_queued(send->to) > 0) continue;
      transport_->send(send->to, encode(site_, std::move(send->message)));
    } else if (const auto* known = std::get_if<KnowAddress>(&action)) {
      transport_->set_address(known->site, known->address);
    } else if (const auto* start = std::get_if<StartWorkers>(&action)) {
      if (!checkpoints_ || !checkpoints_->begin(*start, clock_->now_s())) start_workers(*start);
    } else if (const auto* begin = std::get_if<PrepareWorkers>(&action)) {
      prepare_workers(*begin);
    } else if (std::holds_alternative<LetTrain>(action)) {
      runner_->allow_training();
    } else if (const auto* others = std::get_if<CatchUp>(&action)) {
      runner_->others_at(others->step);
    } else if (const auto* shares = std::get_if<TakeShares>(&action)) {
      take_shares(*shares);
    } else if (const auto* merged = std::get_if<GiveMerged>(&action)) {
      give_merged(*merged);
    } else if (const auto* stop = std::get_if<StopTraining>(&action)) {
      log_info("stopping step={}", stop->step);
      runner_->stop_at(stop->step, /*with_checkpoint=*/true);
    } else if (const auto* leave = std::get_if<Leave>(&action)) {
      leave_ = *leave;
    }
  }
}

// The workers load their libraries and open their chips while the weights are fetched.
void SiteAgent::prepare_workers(const PrepareWorkers& start) {
  train::SiteStart site;
  site.data_shift = start.data_step - start.step;
  site.first_exchange = start.first_exchange;
  site.start_from_shared = true;
  site.start_step = start.step;
  launch(site, 0);
}

void SiteAgent::start_workers(const StartWorkers& start) {
  log_info("starting workers step={} joining={}", start.step, start.mode == StartMode::kJoin);
  if (options_.copies) {
    CopierOptions copies = *options_.copies;
    copies.start_step = start.step;
    copier_ = std::make_unique<CheckpointCopier>(std::move(copies));
  }
  completed_steps_ = start.step;
  if (start.mode == StartMode::kJoin) {
    std::copy(state_->global().begin(), state_->global().end(), runner_->local_weights().begin());
    runner_->weights_are_here();
    return;
  }
  train::SiteStart site;
  site.data_shift = start.data_step - start.step;
  site.first_exchange = start.first_exchange;
  if (start.mode == StartMode::kResume) {
    const fs::path checkpoint = train::checkpoint_path(site_dir_ / "checkpoints", start.step);
    if (!fs::exists(checkpoint)) fetch_checkpoint(start.step);
    if (options_.relay == nullptr) read_site_checkpoint(checkpoint, *state_);
    site.resume_from = checkpoint;
  }
  launch(site, start.start_number);
}

void SiteAgent::launch(const train::SiteStart& start, int64_t start_number) {
  runner_->start(start, *this);
  if (options_.relay != nullptr) {
    options_.relay->start(start_number, runner_->take_bridges(), *transport_);
  }
  is_running_ = true;
}

void SiteAgent::take_shares(const TakeShares& shares) {
  runner_->take_shares({.from_data_step = shares.data_step, .sequences = shares.sequences});
}

// The machine has none of the run's checkpoints, and offered what the store has.
void SiteAgent::fetch_checkpoint(int64_t step) {
  if (!options_.copies) return;
  const Status fetched =
      fetch_copy(*options_.copies, step, [this] { turned_s_ = clock_->now_s(); });
  if (!fetched)
    fail("{}; start the site again, or begin anew with --fresh", fetched.error().message);
  report("checkpoint_fetched", json{{"step", step}}.dump());
}

void SiteAgent::report_copies() {
  if (!copier_) return;
  for (const auto& [name, fields] : copier_->take_events()) report(name, fields);
}

// The last one is the model: it is waited for, but not for ever.
void SiteAgent::finish_copies() {
  if (!copier_ || leave_->is_to_return) return;  // the others wait for this site's next start
  const double end_s = clock_->now_s() + kLastCopyS;
  while (!copier_->finish(kTickS) && clock_->now_s() < end_s) turned_s_ = clock_->now_s();
  report_copies();
}

void SiteAgent::give_merged(const GiveMerged& merged) {
  const train::Fragment& range = state_->fragments()[static_cast<size_t>(merged.fragment)];
  std::copy(
      merged.given.begin(), merged.given.end(), runner_->merged_weights().begin() + range.begin);
  runner_->merged(merged.exchange);
}

void SiteAgent::report(const std::string& name, const std::string& fields) {
  transport_->send(kCoordinatorName, encode(site_, Report{.name = name, .json = fields}));
}

void SiteAgent::on_ready() { carry_out(member_.on_workers_ready(clock_->now_s())); }

void SiteAgent::on_step(const train::StepReport& step) {
  completed_steps_ = step.step;
  member_.on_step(step.step, step.step_s - step.wait_line_s);
  report("step", train::to_json(step));
}

void SiteAgent::on_left_out(int64_t step) {
  completed_steps_ = step;
  member_.on_left_out(step);
}

void SiteAgent::on_evaluation(const train::EvaluationReport& evaluation) {
  report("evaluation", train::to_json(evaluation));
}

void SiteAgent::on_snapshot(int64_t exchange_idx, train::Fragment fragment) {
  const std::span<const float> local = runner_->local_weights().subspan(
      static_cast<size_t>(fragment.begin), static_cast<size_t>(fragment.end - fragment.begin));
  carry_out(member_.on_snapshot(exchange_idx, local, clock_->now_s()));
}

// No exchange is in flight at that step, and none is settled before this site's next snapshot,
// which is told after this.
void SiteAgent::on_checkpoint_begun(int64_t step) {
  const std::lock_guard lock(copies_mutex_);
  // A step that is repeated after a loss: by now there may be newer commits in the state.
  if (copies_.contains(step)) return;
  copies_[step] = std::make_unique<const GlobalState>(*state_);
}

Status SiteAgent::add_to_checkpoint(int64_t step, const fs::path& dir) {
  std::unique_ptr<const GlobalState> copy;
  {
    const std::lock_guard lock(copies_mutex_);
    copy = std::move(copies_[step]);
    copies_.erase(copies_.begin(), copies_.upper_bound(step));  // older ones were given up
  }
  PELAGO_ASSERT(copy != nullptr, "a checkpoint begins before its files are there");
  if (options_.relay != nullptr) return ok();  // the workers' files are all there is
  return try_write_site_checkpoint(dir, *copy);
}

void SiteAgent::on_checkpoint_saved(int64_t step) {
  member_.on_saved(step);
  if (copier_) copier_->offer(step);
  report("checkpoint", json{{"step", step}}.dump());
}

void SiteAgent::on_recovery(const std::string& event, const std::string& fields_json) {
  log_info("{} {}", event, fields_json);
  report(event, fields_json);
}

void SiteAgent::on_warning(const std::string& message) {
  log_warn("{}", message);
  report("warning", json{{"message", message}}.dump());
}

}  // namespace pelago::sites
