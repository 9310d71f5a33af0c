// runs/NAME: job.toml, fleet.toml, plan.json, events.jsonl, metrics.jsonl, sites/SITE/checkpoints/,
// model/. Everything a dashboard shows is in these files.
#pragma once

#include <filesystem>
#include <string>

#include "plan/fleet.h"
#include "plan/job.h"
#include "plan/plan.h"
#include "train/messages.h"

namespace pelago::train {

enum class RunStart { kNew, kResume, kFresh };

class RunFolder {
 public:
  /// kNew: throws Failure (exit 2) if the folder exists, asking for --resume or --fresh. kFresh:
  /// removes it first. kResume: throws Failure if it does not exist or was made for another job
  /// (model, data, fleet: names what differs).
  static RunFolder open(const plan::JobConfig& job, const plan::FleetConfig& fleet, RunStart start);
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path site_dir(const std::string& site) const { return path_ / "sites" / site; }
  void write_plan(const plan::Plan& plan) const;
  /// One line of JSON with "time" (unix seconds) and "event", flushed at once. fields: a JSON
  /// object.
  void record_event(const std::string& event, const std::string& fields_json) const;
  void record_step(const StepReport& report) const;              // metrics.jsonl
  void record_evaluation(const EvaluationReport& report) const;  // metrics.jsonl

 private:
  explicit RunFolder(std::filesystem::path path) : path_(std::move(path)) {}
  std::filesystem::path path_;
};

}  // namespace pelago::train
