#include "train/recovery/supervisor.h"

#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <system_error>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "base/text/json.h"
#include "plan/across/joint.h"
#include "train/checkpoint.h"
#include "train/rank/rank_run.h"
#include "train/run_folder.h"

namespace pelago::train {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr double kEndGraceS = 5;         // after which a worker that should end is killed
constexpr int64_t kStopMarginSteps = 2;  // a worker may be one step ahead of its reports

WorkerStart examination(const SitePlace& place) {
  WorkerSetup setup;
  setup.examine = true;
  return {.run_dir = place.run_dir,
          .site_dir = place.site_dir,
          .site_idx = place.site_idx,
          .setup = to_json(setup),
          .weights_descriptor = -1};
}

}  // namespace

Supervisor::Supervisor(const SitePlace& place)
    : place_(place),
      job_(read_run_job(place.run_dir)),
      own_plan_(read_run_plan(place.run_dir)),
      schedule_(schedule_of(own_plan_)),
      shared_(SharedWeights::create(own_plan_.num_parameters)),
      roster_(own_plan_, job_, static_cast<size_t>(place.site_idx)),
      return_watch_(examination(place)) {
  if (schedule_.num_fragments > 0) {
    fragments_ = cut_fragments(job_.model, schedule_.num_fragments);
  }
  if (roster_.site().devices.size() > SiteBoard::kRanksMax) {
    fail("site {} has {} devices, at most {} can work together: make it two sites",
         roster_.site().name,
         roster_.site().devices.size(),
         SiteBoard::kRanksMax);
  }
}

Supervisor::~Supervisor() {
  workers_.end(kEndGraceS);
  std::error_code ignored;
  fs::remove_all(place_.site_dir / "rendezvous", ignored);
}

WorkerStart Supervisor::worker_start() const {
  return {.run_dir = place_.run_dir,
          .site_dir = place_.site_dir,
          .site_idx = place_.site_idx,
          .setup = "",
          .weights_descriptor = shared_.descriptor()};
}

/// Workers of a joint plan are born with bridges to the other sites': for them there are none.
void Supervisor::keep_spares() {
  if (!job_.train.spare_workers || plan::is_joint(own_plan_)) return;
  std::error_code reason;
  fs::create_directories(place_.site_dir / "logs", reason);
  spares_.fill(worker_start(), roster_.site());
}

void Supervisor::prepare() {
  keep_spares();
  spares_.open_devices();
}

void Supervisor::start(const SiteStart& start, SiteEvents& events) {
  start_ = start;
  events_ = &events;
  completed_steps_ = start.start_step;
  if (start.resume_from) {
    const fs::path state = *start.resume_from / "state.json";
    completed_steps_ = train_state_from_json(read_text_file(state), state.string()).step;
  }
  std::error_code reason;
  fs::create_directories(checkpoints(), reason);
  fs::create_directories(place_.site_dir / "logs", reason);
  // Addresses of an earlier start would lead ranks to processes that are gone.
  fs::remove_all(place_.site_dir / "rendezvous", reason);
  WorkerSetup setup;
  setup.resume_from = start.resume_from ? start.resume_from->string() : "";
  setup.start_from_shared = start.start_from_shared;
  setup.start_step = start.start_step;
  settle_shares(completed_steps_);
  start_workers(setup);
  for (size_t i = num_shares_taken_; i < shares_.size(); ++i) announce(shares_[i]);
}

void Supervisor::start_workers(const WorkerSetup& setup) {
  rendezvous_dir_ =
      place_.site_dir / "rendezvous" / fmt::format("{}-{}", ::getpid(), ++num_starts_);
  std::error_code reason;
  fs::create_directories(rendezvous_dir_, reason);
  if (reason) fail("{}: cannot make the folder: {}", rendezvous_dir_.string(), reason.message());
  WorkerSetup full = setup;
  full.rendezvous_dir = rendezvous_dir_.string();
  full.plan_idx = plan_idx_;
  full.check_data = num_starts_ == 1;
  full.first_exchange = start_.first_exchange;
  full.told_step = completed_steps_;
  full.left_out = left_out_;
  full.data_shift = data_shift_at(setup.start_step);
  saving_.wait();  // a step that is repeated is not saved while it is still being saved
  take_saved();
  full.sent_exchange = exchanges_.sent;
  full.saved_step = saved_step_;
  full.evaluated_step = evaluated_step_;
  num_ranks_ = roster_.site().devices.size();
  hang_watch_.reset();
  pace_watch_.reset();
  std::vector<BridgeSocket> theirs;
  std::vector<int> bridge_descriptors;
  bridges_.clear();
  for (size_t rank = 0; plan::is_joint(own_plan_) && rank < num_ranks_; ++rank) {
    auto [ours, end] = BridgeSocket::make_pair();
    bridges_.push_back(std::move(ours));
    bridge_descriptors.push_back(end.descriptor());
    theirs.push_back(std::move(end));
  }
  WorkerStart start = worker_start();
  start.setup = to_json(full);
  start.bridge_descriptors = bridge_descriptors;
  workers_.start(start, roster_.site(), spares_);
  if (has_weights_) weights_are_here();
}

void Supervisor::tell_first(const std::string& type, const std::string& key, int64_t value) {
  workers_.tell_first(json({{"type", type}, {key, value}}).dump());
}

void Supervisor::allow_training() {
  may_train_ = true;
  workers_.tell_first(json({{"type", "go"}}).dump());
}

void Supervisor::weights_are_here() {
  has_weights_ = true;
  workers_.tell_first(json({{"type", "weights"}}).dump());
}

void Supervisor::merged(int64_t exchange_idx) {
  exchanges_.merged.insert(exchange_idx);
  tell_first("merged", "exchange", exchange_idx);
}

void Supervisor::take_shares(const BatchShares& shares) {
  shares_.push_back(shares);
  if (num_starts_ > 0) announce(shares);
}

void Supervisor::others_at(int64_t step) {
  others_step_ = std::max(others_step_, step);
  tell_first("others_at", "step", others_step_);
}

/// Data step less step, after so many completed steps.
int64_t Supervisor::data_shift_at(int64_t completed_steps) const {
  return start_.data_shift -
         std::distance(left_out_.begin(), left_out_.upper_bound(completed_steps));
}

void Supervisor::stop_at(int64_t completed_steps, bool with_checkpoint) {
  stop_request_ = StopRequest{.step = completed_steps, .with_checkpoint = with_checkpoint};
  workers_.tell_first(
      json({{"type", "stop_at"}, {"step", completed_steps}, {"with_checkpoint", with_checkpoint}})
          .dump());
}

int64_t Supervisor::next_quiet_step() const {
  int64_t step = std::min(completed_steps_ + kStopMarginSteps, own_plan_.steps);
  while (step < own_plan_.steps && !schedule_.is_quiet(step)) ++step;
  return step;
}

/// Hashing the files and forcing them to disk takes time in which the workers go on.
void Supervisor::begin_saving(int64_t step, const fs::path& dir) {
  saving_.wait();
  take_saved();
  saving_step_ = step;
  saving_.start([this, step, dir]() -> Status {
    BackgroundTask::give_way_to_others();
    const Status added = events_->add_to_checkpoint(step, dir);
    if (added) return finish_checkpoint(checkpoints(), step, job_.train.keep_checkpoints);
    std::error_code ignored;
    fs::remove_all(dir, ignored);
    return added;
  });
}

void Supervisor::take_saved() {
  const std::optional<Status> saved = saving_.take_result();
  if (!saved) return;
  if (*saved) {
    saved_step_ = std::max(saved_step_, saving_step_);
    events_->on_checkpoint_saved(saving_step_);
  } else {
    events_->on_warning(fmt::format("checkpoint of step {} not saved, training goes on: {}",
                                    saving_step_,
                                    saved->error().message));
  }
}

bool Supervisor::poll(double timeout_s) {
  workers_.wait(timeout_s,
                [this](size_t rank, const std::string& packet) { handle(rank, packet); });
  take_saved();
  deal_with_losses();
  if (workers_.any_is(&Worker::has_left) && workers_.all_are(&Worker::has_left)) end_pause();
  if (workers_.all_are(&Worker::is_finished)) {
    saving_.wait();
    take_saved();
    workers_.end(kEndGraceS);
    return false;
  }
  if (!workers_.any_is(&Worker::is_finished)) {
    look_for_hang();
    look_for_returns();
  }
  return true;
}

void Supervisor::handle(size_t rank, const std::string& packet) {
  const json message = try_parse_json(packet);
  if (message.is_discarded()) {
    fail("rank {} of site {} sent a message that is not JSON", rank, roster_.site().name);
  }
  const std::string type = message.value("type", "");
  if (type == "ready") {
    workers_[rank].is_ready = true;
    check_ready();
  } else if (type == "step") {
    take_step(step_report_from_json(packet));
  } else if (type == "left_out") {
    leave_out(message.at("step").get<int64_t>());
  } else if (type == "evaluation") {
    const EvaluationReport report = evaluation_report_from_json(packet);
    // The final evaluation may be of a step that was evaluated before the last merges.
    if (report.step < own_plan_.steps && report.step <= evaluated_step_) return;
    evaluated_step_ = report.step;
    events_->on_evaluation(report);
  } else if (type == "snapshot") {
    take_snapshot(message.at("exchange").get<int64_t>());
  } else if (type == "checkpoint_begun") {
    events_->on_checkpoint_begun(message.at("step").get<int64_t>());
  } else if (type == "checkpoint") {
    begin_saving(message.at("step").get<int64_t>(), message.at("dir").get<std::string>());
  } else if (type == "warning") {
    events_->on_warning(message.at("message").get<std::string>());
  } else if (type == "failed") {
    workers_[rank].last_words = message.at("message").get<std::string>();
    workers_[rank].cause = message.at("cause").get<std::string>();
  } else if (type == "finished") {
    workers_[rank].is_finished = true;
  } else if (type == "left") {
    workers_[rank].has_left = true;
  } else {
    fail("rank {} of site {} sent the unknown message \"{}\"", rank, roster_.site().name, type);
  }
}

/// The run's files and the other sites see each step once. Ranks are told by their place in the
/// run's own plan, whoever takes part.
void Supervisor::take_step(StepReport report) {
  if (hang_watch_) hang_watch_->on_step(report.step_s);
  watch_pace(report);
  if (report.step <= completed_steps_) return;
  std::vector<RankReport> ranks;
  for (const plan::DevicePlan& device : roster_.own_site().devices) {
    ranks.emplace_back().device = device.device;
  }
  for (size_t rank = 0; rank < report.ranks.size(); ++rank) {
    ranks[roster_.place_of(rank)] = std::move(report.ranks[rank]);
  }
  report.ranks = std::move(ranks);
  completed_steps_ = report.step;
  report.left_out = static_cast<int64_t>(left_out_.size());
  num_vain_starts_ = 0;
  // Once a start, and not while it loads itself: a spare that dies is not worth another.
  if (std::exchange(spares_start_, num_starts_) != num_starts_) keep_spares();
  if (are_shares_due()) {
    settle_shares(completed_steps_);
    pace_watch_.reset();
  }
  if (loss_) {
    record(loss_->event,
           json({{"step", report.step},
                 {"from_step", loss_->from_step},
                 {"steps_repeated", loss_->at_step - loss_->from_step},
                 {"seconds_lost", steady_now_s() - loss_->begin_s - report.step_s}})
               .dump());
    loss_.reset();
  }
  if (left_out_.size() > num_left_out_told_) {
    record("steps_left_out",
           json({{"step", report.step}, {"steps", left_out_.size() - num_left_out_told_}}).dump());
    num_left_out_told_ = left_out_.size();
  }
  events_->on_step(report);
}

void Supervisor::leave_out(int64_t step) {
  if (step <= completed_steps_) return;
  completed_steps_ = step;
  left_out_.insert(step);
  if (are_shares_due()) {
    settle_shares(completed_steps_);
    pace_watch_.reset();
  }
  events_->on_left_out(step);
}

void Supervisor::take_snapshot(int64_t exchange_idx) {
  exchanges_.sent = std::max(exchanges_.sent, exchange_idx);
  const auto fragment_idx = static_cast<size_t>(fragment_of(schedule_, exchange_idx));
  events_->on_snapshot(exchange_idx, fragments_.at(fragment_idx));
}

void Supervisor::check_ready() {
  if (!workers_.all_are(&Worker::is_ready)) return;
  hang_watch_.emplace(workers_.size(), roster_.site().predicted_step_s, steady_now_s());
  if (may_train_) workers_.tell_first(json({{"type", "go"}}).dump());
  if (std::exchange(was_ready_, true)) return;
  events_->on_ready();
}

}  // namespace pelago::train
