// runs/NAME: job.toml, fleet.toml, plan.json, events.jsonl, metrics.jsonl, sites/SITE/checkpoints/,
// model/. Everything a dashboard shows is in these files.
// Lines are appended with one write each, so several processes may record at once.
#pragma once

#include <filesystem>
#include <string>

#include "plan/fleet.h"
#include "plan/job.h"
#include "plan/plan.h"
#include "train/checkpoint.h"
#include "train/messages.h"

namespace pelago::train {

/// Sets the model's vocabulary and end-of-text token to those of the dataset, which alone knows
/// them. Throws Failure if there is no dataset in job.data.dir.
void take_vocabulary(plan::JobConfig& job);
/// run_dir/job.toml with the dataset's vocabulary.
plan::JobConfig read_run_job(const std::filesystem::path& run_dir);
/// run_dir/plan.json.
plan::Plan read_run_plan(const std::filesystem::path& run_dir);
/// What a checkpoint of this job must match: seed, and the hashes of model, dataset and tokenizer.
TrainState identity_of(const plan::JobConfig& job);

enum class RunStart { kNew, kResume, kFresh };

class RunFolder {
 public:
  /// kNew: throws Failure (exit 2) if the folder exists, asking for --resume or --fresh. kFresh:
  /// removes it first. kResume: throws Failure if it does not exist or was made for another job
  /// (model, data, fleet: names what differs).
  static RunFolder open(const plan::JobConfig& job, const plan::FleetConfig& fleet, RunStart start);
  /// A run folder that exists, for an agent that joins the run. Throws Failure if it does not.
  static RunFolder at(const std::filesystem::path& path);
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path site_dir(const std::string& site) const { return path_ / "sites" / site; }
  void write_plan(const plan::Plan& plan) const;
  /// One line of JSON with "time" (unix seconds) and "event", flushed at once. fields: a JSON
  /// object.
  void record_event(const std::string& event, const std::string& fields_json) const;
  void record_step(const StepReport& report) const;              // metrics.jsonl
  void record_evaluation(const EvaluationReport& report) const;  // metrics.jsonl
  /// metrics.jsonl: what a site has sent to other sites since it started.
  void record_line(const std::string& site, int64_t sent_bytes) const;

 private:
  explicit RunFolder(std::filesystem::path path) : path_(std::move(path)) {}
  std::filesystem::path path_;
};

}  // namespace pelago::train
