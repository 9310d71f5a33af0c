// The agent at work: Member joined to the site's workers, the transport and the clock. One thread
// does everything but heartbeats, which have a thread of their own so that a long save to a slow
// disk is not taken for death; it falls silent if the main thread has not turned for a minute.
#pragma once

#include <atomic>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "plan/job.h"
#include "plan/plan.h"
#include "sites/across/checkpoint_exchange.h"
#include "sites/across/relay.h"
#include "sites/copies/checkpoint_copier.h"
#include "sites/exchange/global_state.h"
#include "sites/protocol/member.h"
#include "sites/transport/transport.h"
#include "train/site_runner.h"

namespace pelago::sites {

struct SiteAgentOptions {
  std::filesystem::path run_dir;
  int site_idx = 0;
  plan::Plan plan;
  Hello hello;
  Relay* relay = nullptr;                 // of sites that train in step; outlives the agent
  int64_t keep_checkpoints = 3;           // newest that stay
  std::vector<std::string> coordinators;  // where one may be
  std::optional<CopierOptions> copies;    // where copies of checkpoints go, and come from
};

class SiteAgent final : public train::SiteEvents {
 public:
  /// transport, state and clock outlive the agent.
  SiteAgent(const SiteAgentOptions& options,
            std::unique_ptr<train::SiteRunner> runner,
            Transport& transport,
            GlobalState& state,
            const Clock& clock);
  ~SiteAgent() override;

  /// Works until the coordinator lets the site go. stop_requested: set by a signal. Returns how it
  /// ended; throws Failure if a worker is lost.
  /// look: called fifty times a second; what it throws ends the site.
  Leave run(const std::atomic<bool>& stop_requested, const std::function<void()>& look);

  void on_ready() override;
  void on_step(const train::StepReport& report) override;
  void on_evaluation(const train::EvaluationReport& report) override;
  void on_snapshot(int64_t exchange_idx, train::Fragment fragment) override;
  void on_checkpoint_begun(int64_t step) override;
  Status add_to_checkpoint(int64_t step, const std::filesystem::path& dir) override;
  void on_checkpoint_saved(int64_t step) override;
  void on_left_out(int64_t step) override;
  void on_warning(const std::string& message) override;
  void on_recovery(const std::string& event, const std::string& fields_json) override;

 private:
  void carry_out(MemberActions actions);
  void start_workers(const StartWorkers& start);
  void prepare_workers(const PrepareWorkers& start);
  void launch(const train::SiteStart& start, int64_t start_number);
  void give_merged(const GiveMerged& merged);
  void take_shares(const TakeShares& shares);
  void receive(double timeout_s);
  void watch_lines(double now_s);
  void report(const std::string& name, const std::string& json);
  void fetch_checkpoint(int64_t step);
  void report_copies();
  void finish_copies();
  void beat(const std::stop_token& stop);

  SiteAgentOptions options_;
  std::string site_;
  std::filesystem::path site_dir_;
  Transport* transport_;
  GlobalState* state_;
  const Clock* clock_;
  Member member_;
  std::mutex copies_mutex_;                                       // guards copies_
  std::map<int64_t, std::unique_ptr<const GlobalState>> copies_;  // by step, until they are saved
  std::optional<CheckpointExchange> checkpoints_;                 // of sites that train in step
  std::unique_ptr<train::SiteRunner> runner_;
  std::unique_ptr<CheckpointCopier> copier_;  // once the run has begun, if copies are wanted
  bool is_running_ = false;                   // the workers have not finished
  std::optional<Leave> leave_;
  std::atomic<double> turned_s_;             // when the main thread last turned
  std::atomic<int64_t> completed_steps_{0};  // for heartbeats
  std::jthread heart_;                       // last: it uses the members above
};

/// Sequences of a batch, by site.
std::vector<int64_t> shares_of(const plan::Plan& plan);

/// H, P and tau of the plan; of sites in step, none. Throws Failure (exit 2) if its sites would
/// never exchange.
train::ExchangeSchedule schedule_of(const plan::Plan& plan);

}  // namespace pelago::sites
