// What a supervisor does when a device is lost, slow, or back.
#include <algorithm>

#include "base/clock.h"
#include "base/files.h"
#include "base/text/json.h"
#include "plan/across/joint.h"
#include "train/checkpoint.h"
#include "train/recovery/plan_files.h"
#include "train/recovery/supervisor.h"

namespace pelago::train {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr double kAftermathS = 0.3;  // time for other ranks to fail of the same cause
constexpr double kLeaveGraceS = 1;   // workers that said they leave are about to end
constexpr int kVainStartsMax = 3;    // starts in a row without a new step: it is not the devices

/// Computing of a rank that is not the host's fault.
double own_compute_s(const RankReport& rank) { return rank.compute_s - rank.late_s; }

std::vector<ExpectedPace> expected_paces(const Roster& roster,
                                         const std::map<size_t, double>& usual_pace) {
  std::vector<ExpectedPace> paces;
  for (size_t rank = 0; rank < roster.site().devices.size(); ++rank) {
    const plan::DevicePlan& device = roster.site().devices[rank];
    paces.push_back({.step_s = device.predicted_step_s,
                     .measured = device.measured,
                     .factor = roster.pace(rank),
                     .usual = 0});
    const auto usual = usual_pace.find(roster.place_of(rank));
    if (usual != usual_pace.end()) paces.back().usual = usual->second;
  }
  return paces;
}

}  // namespace

std::string Supervisor::site_prefix() const { return "site " + roster_.site().name + ": "; }

void Supervisor::record(const std::string& event, const std::string& fields_json) {
  events_->on_recovery(event, fields_json);
}

/// When one goes, the others soon complain that a peer is gone: wait a moment for all of them and
/// name the one that went first by itself.
std::vector<size_t> Supervisor::culprits() {
  std::vector<size_t> lost;  // in the order of their ends
  const double deadline_s = steady_now_s() + kAftermathS;
  const auto is_any_left = [this] { return !workers_.all_are(&Worker::is_lost); };
  do {
    for (size_t rank = 0; rank < workers_.size(); ++rank) {
      const bool is_known = std::find(lost.begin(), lost.end(), rank) != lost.end();
      if (workers_[rank].is_lost && !is_known) lost.push_back(rank);
    }
    if (!is_any_left()) break;
    workers_.wait(deadline_s - steady_now_s(),
                  [this](size_t rank, const std::string& packet) { handle(rank, packet); });
  } while (steady_now_s() < deadline_s);
  for (const size_t rank : lost) workers_[rank].process.wait(1.0);
  const auto those = [&](const auto& is_one) {
    std::vector<size_t> found;
    std::copy_if(lost.begin(), lost.end(), std::back_inserter(found), is_one);
    return found;
  };
  std::vector<size_t> found = those([&](size_t rank) { return workers_[rank].cause == "health"; });
  if (found.empty()) {
    found = those([&](size_t rank) { return workers_[rank].process.was_killed(); });
  }
  if (found.empty()) {
    found = those([&](size_t rank) { return workers_[rank].cause == "device"; });
    if (found.size() > 1) found.resize(1);
  }
  return found.empty() ? std::vector{lost.front()} : found;
}

void Supervisor::deal_with_losses() {
  const bool is_one_lost =
      std::any_of(workers_.all().begin(), workers_.all().end(), [](const Worker& worker) {
        return worker.is_lost && !worker.is_finished && !worker.has_left;
      });
  if (!is_one_lost) return;
  const std::vector<size_t> lost = culprits();
  Worker& first = workers_[lost.front()];
  const std::string why = describe_end(first, lost.front());
  // A site that never trained is told why at once: most likely the job or the machine is at fault.
  const bool is_device = first.process.was_killed() || first.cause == "device";
  const bool can_recover =
      !plan::is_joint(own_plan_) && (first.cause == "health" || (is_device && was_ready_));
  if (!can_recover) throw Failure(site_prefix() + why);
  recover(lost, why, first.cause == "health");
}

void Supervisor::look_for_hang() {
  if (!hang_watch_ || !may_train_) return;
  std::vector<uint64_t> pulses;
  std::vector<int64_t> answers;
  for (size_t rank = 0; rank < workers_.size(); ++rank) {
    pulses.push_back(shared_.board().pulse(rank));
    answers.push_back(shared_.board().answer(rank));
  }
  const HangWatch::Look look = hang_watch_->look(pulses, answers, steady_now_s());
  if (look.asks) {
    workers_.tell_all(json({{"type", "question"}, {"question", hang_watch_->question()}}).dump());
  }
  if (!look.is_hung) return;
  const std::string why = look.silent.empty()
                              ? "nobody gets on, though every device answers"
                              : fmt::format("rank {} ({}) is stuck: its device answers no question",
                                            look.silent.front(),
                                            workers_[look.silent.front()].device);
  recover(look.silent, why, /*computes_wrong=*/false);
}

/// lost: ranks; none: nobody in particular. computes_wrong: what they say cannot be trusted.
void Supervisor::recover(const std::vector<size_t>& lost,
                         const std::string& why,
                         bool computes_wrong) {
  // Sites in step start again together, from a checkpoint: whoever stands above sees to that.
  if (plan::is_joint(own_plan_)) throw Failure(site_prefix() + why);
  const Loss loss{
      .event = "recovered", .begin_s = steady_now_s(), .from_step = 0, .at_step = completed_steps_};
  // Where all are gone there is nobody to do without them. Most often a process died, not a device:
  // they are started again, as long as that leads anywhere.
  const bool keeps_all = lost.empty() || (lost.size() == workers_.size() && !computes_wrong);
  workers_.end(/*grace_s=*/0);
  next_roster_.reset();
  if (++num_vain_starts_ > kVainStartsMax) {
    fail("{}{}; {} starts in a row came to no new step", site_prefix(), why, kVainStartsMax);
  }
  Roster next = roster_;
  try {
    if (!keeps_all) next.lose(lost);
  } catch (const Failure& failure) {
    throw Failure(fmt::format("{}{}; {}", site_prefix(), why, failure.what()));
  }
  for (const size_t rank : lost) {
    const size_t place = roster_.place_of(rank);
    record("device_lost",
           json({{"rank", place},
                 {"device", roster_.site().devices[rank].device},
                 {"step", completed_steps_},
                 {"why", why}})
               .dump());
    if (!keeps_all) return_watch_.on_lost(place, steady_now_s());
  }
  if (!keeps_all) adopt(std::move(next));
  restart(loss);
}

/// Makes it the roster in use, its plan on file for the workers.
void Supervisor::adopt(Roster next) {
  roster_ = std::move(next);
  if (roster_.lost().empty() && plan::to_json(roster_.plan()) == plan::to_json(own_plan_)) {
    plan_idx_ = 0;
    return;
  }
  plan_idx_ = ++num_plans_;
  write_file(plan_path(place_.run_dir, own_plan_, place_.site_idx, plan_idx_),
             plan::to_json(roster_.plan()));
}

/// The workers take these shares when they come to their step.
void Supervisor::announce(const BatchShares& shares) {
  Roster next = roster_;
  next.set_shares(shares.sequences);
  ++num_plans_;
  write_file(plan_path(place_.run_dir, own_plan_, place_.site_idx, num_plans_),
             plan::to_json(next.plan()));
  workers_.tell_first(json({{"type", "new_shares"},
                            {"plan_idx", num_plans_},
                            {"from_data_step", shares.from_data_step}})
                          .dump());
}

bool Supervisor::are_shares_due() const {
  return num_shares_taken_ < shares_.size() &&
         shares_[num_shares_taken_].from_data_step <=
             completed_steps_ + data_shift_at(completed_steps_);
}

/// The roster of those who go on after so many steps: with the shares that hold in the next one.
void Supervisor::settle_shares(int64_t completed_steps) {
  const int64_t data_step = completed_steps + data_shift_at(completed_steps);
  size_t num_taken = 0;
  while (num_taken < shares_.size() && shares_[num_taken].from_data_step <= data_step) ++num_taken;
  if (num_taken == num_shares_taken_) return;
  num_shares_taken_ = num_taken;
  std::vector<int64_t> sequences;
  for (const plan::SitePlan& site : own_plan_.sites) sequences.push_back(site.batch_sequences);
  if (num_taken > 0) sequences = shares_[num_taken - 1].sequences;
  Roster next = roster_;
  next.set_shares(sequences);
  adopt(std::move(next));
}

void Supervisor::restart(Loss loss) {
  const WorkerSetup setup = restart_setup(loss.from_step);
  settle_shares(loss.from_step);
  // Losses that follow each other before a new step are one.
  if (loss_) {
    loss_->from_step = loss.from_step;
  } else {
    loss_ = loss;
  }
  start_workers(setup);
  for (size_t i = num_shares_taken_; i < shares_.size(); ++i) announce(shares_[i]);
  for (const int64_t exchange_idx : merges_after(schedule_, exchanges_, loss.from_step)) {
    tell_first("merged", "exchange", exchange_idx);
  }
  others_at(others_step_);
  if (stop_request_) stop_at(stop_request_->step, stop_request_->with_checkpoint);
}

/// Where to go on: the newest snapshot from which all can be repeated, else the newest checkpoint
/// of a site alone, else where the run began.
WorkerSetup Supervisor::restart_setup(int64_t& from_step) {
  WorkerSetup setup;
  SiteBoard& board = shared_.board();
  from_step = -1;
  for (size_t slot_idx = 0; slot_idx < SiteBoard::kSlots; ++slot_idx) {
    const auto step = num_ranks_ == 0 ? std::nullopt : board.whole_slot(slot_idx, num_ranks_);
    if (!step || *step <= from_step || !can_repeat_from(schedule_, exchanges_, *step)) continue;
    from_step = *step;
    setup.slot_idx = static_cast<int>(slot_idx);
  }
  for (size_t slot_idx = 0; slot_idx < SiteBoard::kSlots; ++slot_idx) {
    const bool is_it = static_cast<int>(slot_idx) == setup.slot_idx;
    board.reset_slot(slot_idx, is_it ? std::optional(from_step) : std::nullopt);
  }
  setup.start_step = from_step;
  if (setup.slot_idx >= 0) return setup;
  const bool is_alone = schedule_.num_fragments == 0;
  if (const auto good = is_alone ? good_checkpoints(checkpoints()) : std::vector<int64_t>{};
      !good.empty()) {
    from_step = good.back();
    setup.resume_from = checkpoint_path(checkpoints(), from_step).string();
    return setup;
  }
  if (!is_alone && exchanges_.sent >= 0) {
    fail("{}a device was lost and no snapshot of the site is whole: resume the run", site_prefix());
  }
  setup.resume_from = start_.resume_from ? start_.resume_from->string() : "";
  setup.start_from_shared = start_.start_from_shared;
  setup.start_step = start_.start_step;
  from_step = start_.start_step;
  return setup;
}

void Supervisor::look_for_returns() {
  if (next_roster_ || loss_ || !hang_watch_ || roster_.lost().empty()) return;
  constexpr int64_t kLastSteps = 2;  // not worth a restart
  if (completed_steps_ + kLastSteps >= own_plan_.steps || stop_request_) return;
  const double now_s = steady_now_s();
  const std::optional<size_t> place = return_watch_.look(roster_.own_site(), now_s);
  if (!place) return;
  Roster next = roster_;
  try {
    next.take_back(*place);
  } catch (const Failure& failure) {
    events_->on_warning(failure.what());
    return_watch_.on_lost(*place, now_s);
    return;
  }
  return_watch_.on_taken_back(*place);
  pause_for(std::move(next), "device_returned", *place);
}

/// event: what is told once the site goes on with it.
void Supervisor::pause_for(Roster next, const std::string& event, std::optional<size_t> place) {
  json fields{{"step", completed_steps_}};
  if (place) {
    fields["rank"] = *place;
    fields["device"] = roster_.own_site().devices[*place].device;
  }
  record(event, fields.dump());
  next_roster_ = std::move(next);
  pause_begin_s_ = steady_now_s();
  workers_.tell_first(json({{"type", "pause"}}).dump());
}

void Supervisor::end_pause() {
  workers_.end(kLeaveGraceS);
  adopt(std::move(*next_roster_));
  next_roster_.reset();
  restart({.event = "rejoined",
           .begin_s = pause_begin_s_,
           .from_step = 0,
           .at_step = completed_steps_});
}

void Supervisor::watch_pace(const StepReport& report) {
  if (plan::is_joint(own_plan_)) return;  // no site cuts the stages of all anew
  // Shares on order were made for the pace that the roster knows.
  const bool waits = num_shares_taken_ < shares_.size();
  if (waits || next_roster_ || stop_request_ || report.ranks.size() != workers_.size()) return;
  if (!pace_watch_) {
    pace_watch_.emplace(expected_paces(roster_, usual_pace_));
    return;  // the first step of a start takes longer
  }
  std::vector<double> compute_s;
  for (const RankReport& rank : report.ranks) compute_s.push_back(own_compute_s(rank));
  const auto factors = pace_watch_->on_step(compute_s);
  for (size_t rank = 0; rank < workers_.size(); ++rank) {
    const double usual = pace_watch_->usual(rank);
    if (usual > 0) usual_pace_.try_emplace(roster_.place_of(rank), usual);
  }
  if (!factors) return;
  Roster next = roster_;
  try {
    next.set_pace(*factors);
  } catch (const Failure& failure) {
    events_->on_warning(failure.what());
    return;
  }
  const bool keeps_stages = plan::has_same_stages(roster_.site(), next.site());
  if (!keeps_stages) return pause_for(std::move(next), "new_stages", std::nullopt);
  adopt(std::move(next));
  pace_watch_->expect(expected_paces(roster_, usual_pace_));
  record("new_shares", json({{"step", report.step}, {"pace_factors", *factors}}).dump());
  tell_first("new_shares", "plan_idx", plan_idx_);
}

}  // namespace pelago::train
