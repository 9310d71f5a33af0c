// The launcher's loop: the coordinator gets its turn, agents that ended are looked at, the stop
// flag is read. An agent that is killed or loses a worker is started again; one that ends before
// the run has begun would end the same way again, so its last words end the run.
#include "sites/launch.h"

#include <signal.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/clock.h"
#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "sites/coordinator.h"
#include "sites/grpc_transport.h"
#include "sites/journal.h"
#include "sites/process/line_emulation.h"
#include "sites/process/site_agent.h"
#include "sites/tls.h"
#include "train/process/child.h"

namespace pelago::sites {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int64_t kRestartsMax = 5;
constexpr double kPollS = 0.02;
constexpr double kLeaveS = 15;  // for agents to end once they are released

std::vector<std::string> names_of(const plan::Plan& plan) {
  std::vector<std::string> names;
  for (const plan::SitePlan& site : plan.sites) names.push_back(site.name);
  return names;
}

RoundOptions round_options(const plan::Plan& plan, bool resume) {
  return {.sites = names_of(plan),
          .schedule = schedule_of(plan),
          .grace_s = plan.exchange.grace_s,
          .heartbeat_s = plan.exchange.heartbeat_s,
          .exchange_s = exchange_limit_s(plan),
          .resume = resume};
}

GrpcTransportOptions line_options(const plan::Plan& plan,
                                  const fs::path& certs_dir,
                                  const std::string& listen) {
  GrpcTransportOptions line;
  line.name = kCoordinatorName;
  line.certs_dir = certs_dir;
  line.listen = listen;
  line.frame_bytes_max = 4 << 20;
  line.emulated_line = [&plan](const std::string& peer) {
    return emulated_line(plan, kCoordinatorName, peer);
  };
  return line;
}

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
  std::unique_ptr<train::ChildProcess> process;  // null: ended for good
  SiteSummary summary;
  SiteStatus before;  // totals of earlier starts
  SiteStatus now;     // totals of this start
  std::string last_words;
};

class Launch {
 public:
  Launch(const train::RunFolder& run_folder,
         const plan::Plan& plan,
         const ManySitesOptions& options,
         const ManySitesCallbacks& callbacks)
      : run_folder_(&run_folder),
        callbacks_(&callbacks),
        num_steps_(plan.steps),
        certs_dir_(made_certificates(run_folder, plan)),
        transport_(line_options(plan, certs_dir_, options.listen)),
        journal_(run_folder.path() / "journal.sqlite"),
        coordinator_(round_options(plan, options.resume),
                     transport_,
                     journal_,
                     clock_,
                     coordinator_callbacks()) {
    for (const plan::SitePlan& site : plan.sites) {
      Agent agent;
      agent.site = agent.summary.site = site.name;
      agent.log = run_folder.site_dir(site.name) / "agent.log";
      fs::create_directories(agent.log.parent_path());
      agents_.push_back(std::move(agent));
    }
  }

  ManySitesSummary run(const std::atomic<int>& stop_requests) {
    const double begin_s = clock_.now_s();
    log_info("coordinator listening address={}", transport_.address());
    for (Agent& agent : agents_) start(agent);
    bool was_stopped = false;
    while (!coordinator_.is_over()) {
      coordinator_.poll(kPollS);
      const int requests = stop_requests.load();
      if (requests > 1) {
        throw Failure("stopped at once: what came after the last checkpoint is lost",
                      kExitInterrupted);
      }
      if (requests == 1 && !was_stopped) {
        was_stopped = true;
        coordinator_.request_stop();
      }
      if (coordinator_.rounds().failure()) fail("{}", *coordinator_.rounds().failure());
      for (Agent& agent : agents_) look_after(agent);
      if (was_stopped && std::none_of(agents_.begin(), agents_.end(), is_here)) break;
    }
    see_off();
    return summary(clock_.now_s() - begin_s);
  }

 private:
  static bool is_here(const Agent& agent) { return agent.process != nullptr; }

  static fs::path made_certificates(const train::RunFolder& run_folder, const plan::Plan& plan) {
    fs::path dir = run_folder.path() / "certs";
    make_certificates(dir, names_of(plan));
    return dir;
  }

  Agent& agent_of(const std::string& site) {
    const auto agent = std::find_if(
        agents_.begin(), agents_.end(), [&](const Agent& known) { return known.site == site; });
    PELAGO_ASSERT(agent != agents_.end(), "only sites of the plan are heard");
    return *agent;
  }

  CoordinatorCallbacks coordinator_callbacks() {
    CoordinatorCallbacks calls;
    calls.on_step = [this](const train::StepReport& report) {
      run_folder_->record_step(report);
      SiteSummary& summary = agent_of(report.site).summary;
      summary.steps = report.step;
      summary.tokens += report.tokens;
      summary.train_s += report.step_s;
      summary.wait_line_s += report.wait_line_s;
      if (callbacks_->on_step) callbacks_->on_step(report);
    };
    calls.on_evaluation = [this](const train::EvaluationReport& report) {
      run_folder_->record_evaluation(report);
      if (callbacks_->on_evaluation) callbacks_->on_evaluation(report);
    };
    calls.on_event = [this](const std::string& name, const std::string& fields) {
      record(name, fields);
    };
    calls.on_status = [this](const std::string& site, const SiteStatus& status) {
      take_status(agent_of(site), status);
    };
    return calls;
  }

  void record(const std::string& name, const std::string& fields) {
    if (name == "site_failed" || name == "site_refused") {
      const json words = json::parse(fields);
      agent_of(words.at("site")).last_words =
          words.value("message", words.value("reason", std::string()));
    }
    run_folder_->record_event(name, fields);
    if (callbacks_->on_event) callbacks_->on_event(name, fields);
  }

  void take_status(Agent& agent, const SiteStatus& status) {
    if (status.incarnation != agent.now.incarnation) {  // a new start counts from zero
      agent.before = total(agent);
      agent.now = {};
    }
    agent.now = status;
    const SiteStatus sum = total(agent);
    if (callbacks_->on_line) {
      callbacks_->on_line({.site = agent.site,
                           .completed_steps = status.completed_steps,
                           .sent_bytes = sum.sent_bytes,
                           .exchange_payload_bytes = sum.exchange_payload_bytes,
                           .exchanged_values = sum.exchanged_values});
    }
  }

  static SiteStatus total(const Agent& agent) {
    SiteStatus sum = agent.before;
    sum.num_commits += agent.now.num_commits;
    sum.num_missed += agent.now.num_missed;
    sum.sent_bytes += agent.now.sent_bytes;
    sum.exchange_payload_bytes += agent.now.exchange_payload_bytes;
    sum.exchanged_values += agent.now.exchanged_values;
    return sum;
  }

  void start(Agent& agent) {
    train::ChildOptions child;
    child.program = program_path();
    child.arguments = {"agent",
                       "--run-dir",
                       run_folder_->path().string(),
                       "--site",
                       agent.site,
                       "--coordinator",
                       transport_.address(),
                       "--certs",
                       certs_dir_.string()};
    child.log = agent.log;
    agent.last_words.clear();
    agent.process = std::make_unique<train::ChildProcess>(child);
  }

  void look_after(Agent& agent) {
    if (!agent.process || !agent.process->wait(0)) return;
    const train::ChildProcess ended = std::move(*agent.process);
    agent.process.reset();
    if (ended.exit_code() == kExitDone || coordinator_.is_over()) return;
    for (int i = 0; i < 5; ++i) coordinator_.poll(0.01);  // its last words may be on their way
    const std::string words = agent.last_words.empty() ? last_line(agent.log) : agent.last_words;
    const bool has_begun = coordinator_.rounds().phase() == RoundMachine::RunPhase::kTraining;
    if (ended.exit_code() == kExitUsage || (!has_begun && !ended.was_killed())) {
      throw Failure(fmt::format("site {} cannot start: {}", agent.site, words),
                    ended.exit_code() == kExitUsage ? kExitUsage : kExitFailed);
    }
    if (coordinator_.rounds().was_stopped()) return;
    if (agent.summary.restarts == kRestartsMax) {
      fail("site {} {} after {} restarts: {}; see {}",
           agent.site,
           ended.how_it_ended(),
           kRestartsMax,
           words,
           agent.log.string());
    }
    ++agent.summary.restarts;
    record("site_restarted",
           json{{"site", agent.site},
                {"restarts", agent.summary.restarts},
                {"ended", ended.how_it_ended()},
                {"words", words}}
               .dump());
    start(agent);
  }

  // Released agents end by themselves; one that does not is killed with its owner.
  void see_off() {
    const double deadline_s = clock_.now_s() + kLeaveS;
    while (clock_.now_s() < deadline_s && std::any_of(agents_.begin(), agents_.end(), is_here)) {
      coordinator_.poll(kPollS);
      for (Agent& agent : agents_) look_after(agent);
    }
  }

  ManySitesSummary summary(double wall_s) const {
    ManySitesSummary result;
    for (const Agent& agent : agents_) {
      SiteSummary site = agent.summary;
      const SiteStatus sum = total(agent);
      site.commits = sum.num_commits;
      site.missing_commits = sum.num_missed;
      site.sent_bytes = sum.sent_bytes;
      if (sum.exchanged_values > 0) {
        site.sent_bytes_per_parameter = static_cast<double>(sum.exchange_payload_bytes) /
                                        static_cast<double>(sum.exchanged_values);
      }
      if (agent.now.phase == SitePhase::kFinished) {
        result.last_step = std::max(result.last_step, agent.now.completed_steps);
      }
      result.sites.push_back(site);
    }
    result.commits = coordinator_.rounds().num_commits();
    result.differing_hashes = coordinator_.rounds().num_differing();
    result.stopped = coordinator_.rounds().was_stopped() && result.last_step < num_steps_;
    result.wall_s = wall_s;
    return result;
  }

  const train::RunFolder* run_folder_;   // outlives this
  const ManySitesCallbacks* callbacks_;  // outlives this
  int64_t num_steps_;
  SystemClock clock_;
  fs::path certs_dir_;
  GrpcTransport transport_;
  Journal journal_;
  Coordinator coordinator_;
  std::vector<Agent> agents_;
};

}  // namespace

ManySitesSummary run_many_sites(const train::RunFolder& run_folder,
                                const plan::JobConfig& job,
                                const plan::FleetConfig& fleet,
                                const plan::Plan& plan,
                                const std::atomic<int>& stop_requests,
                                const ManySitesOptions& options,
                                const ManySitesCallbacks& callbacks) {
  PELAGO_ASSERT(plan.job_name == job.name && plan.sites.size() == fleet.sites.size(),
                "the plan was made for this job and fleet");
  if (plan.sites.size() < 2) fail_usage("{}: one site needs no others", plan.sites.front().name);
  run_folder.write_plan(plan);
  try {
    Launch launch(run_folder, plan, options, callbacks);
    return launch.run(stop_requests);
  } catch (const Failure& failure) {
    run_folder.record_event("failed", json{{"message", failure.what()}}.dump());
    throw;
  }
}

}  // namespace pelago::sites
