// The supervisor's side of a site. A worker that ends without having said "finished" is lost; its
// socket hangs up within milliseconds of its death. When one goes, the others soon complain that a
// peer is gone, so the report waits a moment and names the one that went first by itself.
#include "train/site_runner.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "train/checkpoint.h"
#include "train/process/child.h"
#include "train/process/packet_socket.h"
#include "train/process/shared_weights.h"
#include "train/rank/control.h"
#include "train/rank/rank_run.h"
#include "train/run_folder.h"

namespace pelago::train {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int kControlDescriptor = 3;
constexpr int kWeightsDescriptor = 4;
constexpr double kEndGraceS = 5;         // after which a worker that should end is killed
constexpr double kAftermathS = 0.3;      // time for other ranks to fail of the same cause
constexpr int64_t kStopMarginSteps = 2;  // a worker may be one step ahead of its reports

struct Worker {
  ChildProcess process;
  PacketSocket socket;
  fs::path log;
  bool is_ready = false;
  bool is_finished = false;
  bool is_lost = false;
  std::string last_words;
};

/// The last line of a worker's log: what a crash printed.
std::string last_line(const fs::path& log) {
  std::error_code ignored;
  if (!fs::is_regular_file(log, ignored)) return "";
  std::string text = read_text_file(log);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  const size_t begin = text.rfind('\n');
  return begin == std::string::npos ? text : text.substr(begin + 1);
}

}  // namespace

struct SiteRunner::Impl {
  SiteRunOptions options;
  SiteEvents* events;
  plan::JobConfig job;
  plan::Plan plan;
  ExchangeSchedule schedule;
  std::vector<Fragment> fragments;
  SharedWeights shared;
  std::vector<Worker> workers;
  fs::path rendezvous_dir;
  int64_t completed_steps = 0;
  bool told_ready = false;

  Impl(const SiteRunOptions& run_options, SiteEvents& site_events)
      : options(run_options),
        events(&site_events),
        job(read_run_job(options.run_dir)),
        plan(read_run_plan(options.run_dir)),
        schedule(schedule_of(plan)),
        shared(SharedWeights::create(plan.num_parameters)),
        completed_steps(options.start_step) {
    if (schedule.num_fragments > 0) {
      fragments = cut_fragments(job.model, schedule.num_fragments);
    }
    if (options.resume_from) {
      const fs::path state = *options.resume_from / "state.json";
      completed_steps = train_state_from_json(read_text_file(state), state.string()).step;
    }
  }

  const plan::SitePlan& site() const {
    return plan.sites.at(static_cast<size_t>(options.site_idx));
  }
  const std::string& device(size_t rank) const { return site().devices.at(rank).device; }
  fs::path checkpoints() const { return options.site_dir / "checkpoints"; }

  void make_folders();
  void start_worker(size_t rank);
  void receive(size_t rank);
  void handle(size_t rank, const json& message);
  void check_ready();
  [[noreturn]] void report_loss();
  std::string describe_loss(size_t rank);
  bool wait_readable(double timeout_s);
  bool is_finished() const {
    return std::all_of(
        workers.begin(), workers.end(), [](const Worker& worker) { return worker.is_finished; });
  }
  void end_workers();
  void tell_first(const json& message) {
    if (!workers.empty()) workers.front().socket.send(message.dump());
  }
};

void SiteRunner::Impl::make_folders() {
  std::error_code reason;
  fs::create_directories(checkpoints(), reason);
  fs::create_directories(options.site_dir / "logs", reason);
  // Addresses of an earlier start would lead ranks to processes that are gone.
  const fs::path rendezvous = options.site_dir / "rendezvous";
  fs::remove_all(rendezvous, reason);
  rendezvous_dir = rendezvous / fmt::format("{}-{:.0f}", ::getpid(), 1e6 * steady_now_s());
  fs::create_directories(rendezvous_dir, reason);
  if (reason) fail("{}: cannot make the folder: {}", rendezvous_dir.string(), reason.message());
}

void SiteRunner::Impl::start_worker(size_t rank) {
  auto [ours, theirs] = PacketSocket::make_pair();
  const size_t num_threads = std::max<size_t>(1, site().devices.at(rank).cores.size());
  fs::path log = options.site_dir / "logs" / fmt::format("rank-{}.log", rank);
  ChildProcess process({.program = program_path(),
                        .arguments = {"worker",
                                      "--run-dir",
                                      options.run_dir.string(),
                                      "--site-dir",
                                      options.site_dir.string(),
                                      "--site-idx",
                                      std::to_string(options.site_idx),
                                      "--rank",
                                      std::to_string(rank)},
                        .environment = {fmt::format("OMP_NUM_THREADS={}", num_threads),
                                        fmt::format("OPENBLAS_NUM_THREADS={}", num_threads)},
                        .descriptors = {{theirs.descriptor(), kControlDescriptor},
                                        {shared.descriptor(), kWeightsDescriptor}},
                        .log = log});
  workers.push_back(
      {.process = std::move(process), .socket = std::move(ours), .log = log, .last_words = ""});
  const WorkerSetup setup{.rendezvous_dir = rendezvous_dir.string(),
                          .resume_from = options.resume_from ? options.resume_from->string() : "",
                          .start_from_shared = options.start_from_shared,
                          .start_step = options.start_step};
  workers.back().socket.send(to_json(setup));
}

bool SiteRunner::Impl::wait_readable(double timeout_s) {
  std::vector<pollfd> watched;
  for (const Worker& worker : workers) {
    // A descriptor of -1 is passed over: of a worker that has ended nothing more can come.
    const bool is_over = worker.is_lost || worker.is_finished;
    watched.push_back(
        {.fd = is_over ? -1 : worker.socket.descriptor(), .events = POLLIN, .revents = 0});
  }
  const int timeout_ms = static_cast<int>(1e3 * std::max(timeout_s, 0.0));
  if (::poll(watched.data(), watched.size(), timeout_ms) <= 0) return false;
  for (size_t rank = 0; rank < watched.size(); ++rank) {
    if (watched[rank].revents != 0) receive(rank);
  }
  return true;
}

void SiteRunner::Impl::receive(size_t rank) {
  const std::optional<std::string> packet = workers[rank].socket.receive();
  if (!packet) {
    workers[rank].is_lost = true;
    return;
  }
  const json message = json::parse(*packet, nullptr, /*allow_exceptions=*/false);
  if (message.is_discarded()) {
    fail("rank {} of site {} sent a message that is not JSON", rank, site().name);
  }
  handle(rank, message);
}

void SiteRunner::Impl::handle(size_t rank, const json& message) {
  const std::string type = message.value("type", "");
  if (type == "ready") {
    workers[rank].is_ready = true;
    check_ready();
  } else if (type == "step") {
    const StepReport report = step_report_from_json(message.dump());
    completed_steps = report.step;
    events->on_step(report);
  } else if (type == "evaluation") {
    events->on_evaluation(evaluation_report_from_json(message.dump()));
  } else if (type == "snapshot") {
    const auto exchange_idx = message.at("exchange").get<int64_t>();
    const int64_t num_regular = schedule.num_regular();
    const int64_t fragment_idx = exchange_idx < num_regular ? exchange_idx % schedule.num_fragments
                                                            : exchange_idx - num_regular;
    events->on_snapshot(exchange_idx, fragments.at(static_cast<size_t>(fragment_idx)));
  } else if (type == "checkpoint") {
    events->on_checkpoint(message.at("step").get<int64_t>(), message.at("dir").get<std::string>());
  } else if (type == "warning") {
    events->on_warning(message.at("message").get<std::string>());
  } else if (type == "failed") {
    workers[rank].last_words = message.at("message").get<std::string>();
  } else if (type == "finished") {
    workers[rank].is_finished = true;
  } else {
    fail("rank {} of site {} sent the unknown message \"{}\"", rank, site().name, type);
  }
}

void SiteRunner::Impl::check_ready() {
  const bool all_ready = std::all_of(
      workers.begin(), workers.end(), [](const Worker& worker) { return worker.is_ready; });
  if (!all_ready || told_ready) return;
  told_ready = true;
  events->on_ready();
}

std::string SiteRunner::Impl::describe_loss(size_t rank) {
  Worker& worker = workers[rank];
  worker.process.wait(1.0);
  const std::string words = worker.last_words.empty() ? last_line(worker.log) : worker.last_words;
  return fmt::format("site {}: rank {} ({}) {}{}{}",
                     site().name,
                     rank,
                     device(rank),
                     worker.process.how_it_ended(),
                     words.empty() ? "" : ": ",
                     words);
}

void SiteRunner::Impl::report_loss() {
  std::vector<size_t> lost;  // in the order of their ends
  const double deadline_s = steady_now_s() + kAftermathS;
  do {
    for (size_t rank = 0; rank < workers.size(); ++rank) {
      const bool is_known = std::find(lost.begin(), lost.end(), rank) != lost.end();
      if (workers[rank].is_lost && !is_known) lost.push_back(rank);
    }
    wait_readable(deadline_s - steady_now_s());
  } while (steady_now_s() < deadline_s);
  for (const size_t rank : lost) workers[rank].process.wait(1.0);
  const auto killed = std::find_if(
      lost.begin(), lost.end(), [&](size_t rank) { return workers[rank].process.was_killed(); });
  throw Failure(describe_loss(killed == lost.end() ? lost.front() : *killed));
}

/// Closing its socket ends a worker at once; one that is stopped or stuck in a driver is killed.
void SiteRunner::Impl::end_workers() {
  for (Worker& worker : workers) worker.socket.close();
  const double deadline_s = steady_now_s() + kEndGraceS;
  for (Worker& worker : workers) {
    if (!worker.process.wait(std::max(0.0, deadline_s - steady_now_s()))) worker.process.kill();
  }
  workers.clear();
}

SiteRunner::SiteRunner(const SiteRunOptions& options, SiteEvents& events)
    : impl_(std::make_unique<Impl>(options, events)) {}

SiteRunner::~SiteRunner() {
  impl_->end_workers();
  std::error_code ignored;
  fs::remove_all(impl_->rendezvous_dir, ignored);
}

void SiteRunner::start() {
  impl_->make_folders();
  const size_t num_ranks = impl_->site().devices.size();
  impl_->workers.reserve(num_ranks);
  for (size_t rank = 0; rank < num_ranks; ++rank) impl_->start_worker(rank);
}

void SiteRunner::allow_training() { impl_->tell_first({{"type", "go"}}); }

bool SiteRunner::poll(double timeout_s) {
  impl_->wait_readable(timeout_s);
  for (const Worker& worker : impl_->workers) {
    if (worker.is_lost && !worker.is_finished) impl_->report_loss();
  }
  if (!impl_->is_finished()) return true;
  impl_->end_workers();
  return false;
}

std::span<float> SiteRunner::local_weights() { return impl_->shared.local(); }
std::span<float> SiteRunner::merged_weights() { return impl_->shared.merged(); }

void SiteRunner::merged(int64_t exchange_idx) {
  impl_->tell_first({{"type", "merged"}, {"exchange", exchange_idx}});
}

void SiteRunner::stop_at(int64_t completed_steps, bool with_checkpoint) {
  impl_->tell_first(
      {{"type", "stop_at"}, {"step", completed_steps}, {"with_checkpoint", with_checkpoint}});
}

int64_t SiteRunner::next_quiet_step() const {
  const int64_t num_steps = impl_->plan.steps;
  int64_t step = std::min(impl_->completed_steps + kStopMarginSteps, num_steps);
  while (step < num_steps && !impl_->schedule.is_quiet(step)) ++step;
  return step;
}

int64_t SiteRunner::completed_steps() const { return impl_->completed_steps; }

void SiteRunner::finish_checkpoint(int64_t step) {
  const Status status =
      train::finish_checkpoint(impl_->checkpoints(), step, impl_->job.train.keep_checkpoints);
  if (status) {
    impl_->events->on_checkpoint_saved(step);
  } else {
    impl_->events->on_warning(fmt::format(
        "checkpoint of step {} not saved, training goes on: {}", step, status.error().message));
  }
}

const plan::Plan& SiteRunner::plan() const { return impl_->plan; }
const plan::JobConfig& SiteRunner::job() const { return impl_->job; }
const std::vector<Fragment>& SiteRunner::fragments() const { return impl_->fragments; }

}  // namespace pelago::train
