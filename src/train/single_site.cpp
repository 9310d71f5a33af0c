#include "train/single_site.h"

#include <memory>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "base/text/json.h"
#include "chips/torch.h"
#include "model/transformer.h"
#include "train/site_runner.h"

namespace pelago::train {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr double kPollS = 0.2;  // how soon a request to stop is seen

/// Writes down what the site reports and passes it on.
class Recorder final : public SiteEvents {
 public:
  Recorder(const RunFolder& run_folder,
           const std::string& site,
           const SingleSiteCallbacks& callbacks)
      : run_folder_(&run_folder), site_(site), callbacks_(&callbacks) {}
  void record(const std::string& event, json fields) {
    fields["site"] = site_;
    run_folder_->record_event(event, fields.dump());
    if (callbacks_->on_event) callbacks_->on_event(event, fields.dump());
  }
  void on_ready() override { record("ready", json::object()); }
  void on_step(const StepReport& report) override {
    run_folder_->record_step(report);
    if (report.skipped) record("step_skipped", {{"step", report.step}});
    if (callbacks_->on_step) callbacks_->on_step(report);
  }
  void on_evaluation(const EvaluationReport& report) override {
    run_folder_->record_evaluation(report);
    if (callbacks_->on_evaluation) callbacks_->on_evaluation(report);
  }
  void on_checkpoint_saved(int64_t step) override { record("checkpoint_saved", {{"step", step}}); }
  void on_recovery(const std::string& event, const std::string& fields_json) override {
    record(event, parse_json(fields_json));
  }
  void on_warning(const std::string& message) override {
    log_warn("{}", message);
    record("warning", {{"message", message}});
  }

 private:
  const RunFolder* run_folder_;  // outlives this, as does the last
  std::string site_;
  const SingleSiteCallbacks* callbacks_;
};

/// Polls to the end. Returns whether the site was asked to stop and did so before its last step.
bool train_to_end(SiteRunner& runner, Recorder& recorder, const std::atomic<int>& stop_requests) {
  bool was_asked = false;
  while (runner.poll(kPollS)) {
    const int requests = stop_requests.load();
    if (requests > 1) {
      throw Failure("stopped at once: what came after the last checkpoint is lost",
                    kExitInterrupted);
    }
    if (requests == 1 && !was_asked) {
      was_asked = true;
      const int64_t step = runner.next_quiet_step();
      runner.stop_at(step, /*with_checkpoint=*/true);
      recorder.record("stopping", {{"at_step", step}});
    }
  }
  return runner.completed_steps() < runner.plan().steps;
}

}  // namespace

fs::path newest_checkpoint(const fs::path& site_dir, const TrainState& expected) {
  const fs::path checkpoints = site_dir / "checkpoints";
  const std::vector<int64_t> good = good_checkpoints(checkpoints);
  if (good.empty()) {
    fail("{}: no good checkpoint to resume from: start anew with --fresh", checkpoints.string());
  }
  const fs::path newest = checkpoint_path(checkpoints, good.back());
  const fs::path state = newest / "state.json";
  refuse_other_run(
      train_state_from_json(read_text_file(state), state.string()), expected, newest.string());
  return newest;
}

fs::path export_model(const fs::path& run_dir,
                      const plan::JobConfig& job,
                      std::span<const float> flat) {
  const fs::path folder = run_dir / "model";
  const Tensor weights = torch::from_blob(
      const_cast<float*>(flat.data()), {static_cast<int64_t>(flat.size())}, torch::kFloat32);
  PendingFolder pending(folder);
  model::save_model_folder(pending.path(), job.model, weights, torch::kBFloat16, job.data.dir);
  pending.commit();
  return folder;
}

SingleSiteSummary run_single_site(const RunFolder& run_folder,
                                  const plan::Plan& plan,
                                  const plan::JobConfig& job,
                                  const std::atomic<int>& stop_requests,
                                  bool resume,
                                  const SingleSiteCallbacks& callbacks) {
  const double begin_s = steady_now_s();
  run_folder.write_plan(plan);
  const std::string& site = plan.sites.at(0).name;
  Recorder recorder(run_folder, site, callbacks);
  const SitePlace place{.run_dir = run_folder.path(), .site_dir = run_folder.site_dir(site)};
  SiteStart start;
  plan::JobConfig full_job = job;
  take_vocabulary(full_job);
  if (resume) start.resume_from = newest_checkpoint(place.site_dir, identity_of(full_job));
  recorder.record(resume ? "resumed" : "started",
                  {{"from", resume ? start.resume_from->filename().string() : ""}});
  SingleSiteSummary summary;
  try {
    SiteRunner runner(place);
    runner.start(start, recorder);
    runner.allow_training();
    summary.stopped = train_to_end(runner, recorder, stop_requests);
    summary.completed_steps = runner.completed_steps();
    if (!summary.stopped) {
      summary.model_dir = export_model(run_folder.path(), full_job, runner.local_weights());
    }
  } catch (const Failure& failure) {
    recorder.record("failed", {{"message", failure.what()}});
    throw;
  }
  summary.wall_s = steady_now_s() - begin_s;
  recorder.record(summary.stopped ? "stopped" : "finished",
                  {{"step", summary.completed_steps}, {"wall_s", summary.wall_s}});
  return summary;
}

}  // namespace pelago::train
