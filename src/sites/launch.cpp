// The launcher's loop: the coordinator gets its turn, agents that ended are looked at, the stop
// flag is read. An agent that is killed or loses a worker is started again; one that ends before
// the run has begun would end the same way again, so its last words end the run.
#include "sites/launch.h"

#include <signal.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/files.h"
#include "base/process/child.h"
#include "base/text/json.h"
#include "sites/process/run_host.h"

namespace pelago::sites {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int64_t kRestartsMax = 5;
constexpr double kPollS = 0.02;
constexpr double kLeaveS = 15;    // for agents to end once they are released
constexpr double kLastWordS = 1;  // for sites to hear why the run has failed
constexpr double kFarewellS = 3;  // in which a site that others started is still answered

/// What the person at the terminal asks for.
class StopRequests {
 public:
  explicit StopRequests(const std::atomic<int>& requests) : requests_(&requests) {}

  /// Throws Failure at the second request.
  void look(RunHost& host) {
    const int requests = requests_->load();
    if (requests > 1) {
      throw Failure("stopped at once: what came after the last checkpoint is lost",
                    kExitInterrupted);
    }
    if (requests == 1 && !std::exchange(was_seen_, true)) host.request_stop();
  }
  bool was_seen() const { return was_seen_; }

 private:
  const std::atomic<int>* requests_;
  bool was_seen_ = false;
};

std::string last_line(const fs::path& log) {
  std::ifstream in(log);
  std::string line, last;
  while (std::getline(in, line)) {
    if (!line.empty()) last = line;
  }
  return last;
}

/// One site's agent, over all its starts.
struct Agent {
  std::string site;
  fs::path log;
  std::unique_ptr<ChildProcess> process;  // null: ended for good
};

void end_if_failed(RunHost& host) {
  if (!host.rounds().failure()) return;
  const double deadline_s = steady_now_s() + kLastWordS;
  while (steady_now_s() < deadline_s) host.poll(kPollS);
  fail("{}", *host.rounds().failure());
}

class Launch {
 public:
  /// host outlives this.
  Launch(const train::RunFolder& run_folder, RunHost& host)
      : run_folder_(&run_folder), host_(&host) {
    for (const std::string& site : host.sites()) {
      Agent agent;
      agent.site = site;
      agent.log = run_folder.site_dir(site) / "agent.log";
      fs::create_directories(agent.log.parent_path());
      agents_.push_back(std::move(agent));
    }
  }

  void run(StopRequests& stop) {
    for (Agent& agent : agents_) start(agent);
    while (!host_->is_over()) {
      host_->poll(kPollS);
      stop.look(*host_);
      end_if_failed(*host_);
      for (Agent& agent : agents_) look_after(agent);
      if (stop.was_seen() && std::none_of(agents_.begin(), agents_.end(), is_here)) break;
    }
    see_off();
  }

 private:
  static bool is_here(const Agent& agent) { return agent.process != nullptr; }

  // As a person would: with the site's token, at the coordinator's door.
  void start(Agent& agent) {
    ChildOptions child;
    child.program = program_path();
    child.arguments = {"agent",
                       "--run-dir",
                       run_folder_->path().string(),
                       "--join",
                       host_->address(),
                       "--token",
                       host_->token_file(agent.site).string()};
    child.log = agent.log;
    host_->take_last_words(agent.site);
    agent.process = std::make_unique<ChildProcess>(child);
  }

  void look_after(Agent& agent) {
    if (!agent.process || !agent.process->wait(0)) return;
    const ChildProcess ended = std::move(*agent.process);
    agent.process.reset();
    if (ended.exit_code() == kExitDone || host_->is_over()) return;
    for (int i = 0; i < 5; ++i) host_->poll(0.01);  // its last words may be on their way
    std::string words = host_->take_last_words(agent.site);
    if (words.empty()) words = last_line(agent.log);
    const bool has_begun = host_->rounds().phase() == RoundMachine::RunPhase::kTraining ||
                           host_->rounds().is_restarting();
    if (ended.exit_code() == kExitUsage || (!has_begun && !ended.was_killed())) {
      throw Failure(fmt::format("site {} cannot start: {}", agent.site, words),
                    ended.exit_code() == kExitUsage ? kExitUsage : kExitFailed);
    }
    if (host_->rounds().was_stopped()) return;
    const int64_t num_restarts = host_->num_restarts(agent.site);
    if (num_restarts == kRestartsMax) {
      fail("site {} {} after {} restarts: {}; see {}",
           agent.site,
           ended.how_it_ended(),
           kRestartsMax,
           words,
           agent.log.string());
    }
    // One that was told to start anew has not failed.
    if (ended.exit_code() != kExitTryAgain) host_->count_restart(agent.site);
    host_->record("site_restarted",
                  json{{"site", agent.site},
                       {"restarts", num_restarts + 1},
                       {"ended", ended.how_it_ended()},
                       {"words", words}}
                      .dump());
    start(agent);
  }

  // Released agents end by themselves; one that does not is killed with its owner.
  void see_off() {
    const double deadline_s = steady_now_s() + kLeaveS;
    while (steady_now_s() < deadline_s && std::any_of(agents_.begin(), agents_.end(), is_here)) {
      host_->poll(kPollS);
      for (Agent& agent : agents_) look_after(agent);
    }
  }

  const train::RunFolder* run_folder_;  // outlives this
  RunHost* host_;
  std::vector<Agent> agents_;
};

/// Sites that others started: they come and go as they like.
void wait_for_sites(RunHost& host, StopRequests& stop) {
  while (!host.is_over()) {
    host.poll(kPollS);
    if (host.is_deposed()) return;
    stop.look(host);
    end_if_failed(host);
  }
  // Whoever has not heard yet that the run is over asks again within a heartbeat.
  const double deadline_s = steady_now_s() + kFarewellS;
  while (steady_now_s() < deadline_s) host.poll(kPollS);
}

}  // namespace

ManySitesSummary run_many_sites(const train::RunFolder& run_folder,
                                const plan::JobConfig& job,
                                const plan::FleetConfig& fleet,
                                const plan::Plan& plan,
                                const std::atomic<int>& stop_requests,
                                const ManySitesOptions& options,
                                const ManySitesCallbacks& callbacks) {
  PELAGO_ASSERT(plan.job_name == job.name && plan.sites.size() <= fleet.sites.size(),
                "the plan was made for this job and fleet");
  PELAGO_ASSERT(options.store == nullptr || !options.starts_agents,
                "agents of this process end with it: no other coordinator can go on with them");
  if (plan.sites.size() < 2) fail_usage("{}: one site needs no others", plan.sites.front().name);
  run_folder.write_plan(plan);
  try {
    RunHost host(run_folder, plan, options, callbacks);
    StopRequests stop(stop_requests);
    if (options.starts_agents) {
      Launch(run_folder, host).run(stop);
    } else {
      if (callbacks.on_listening) callbacks.on_listening(host.address());
      wait_for_sites(host, stop);
    }
    return host.summary();
  } catch (const Failure& failure) {
    run_folder.record_event("failed", json{{"message", failure.what()}}.dump());
    throw;
  }
}

}  // namespace pelago::sites
