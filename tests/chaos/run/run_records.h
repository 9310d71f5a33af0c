// What a run has said of itself so far: events.jsonl and metrics.jsonl, read on as they grow. Only
// whole lines count.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/text/json.h"

namespace pelago::chaos {

struct StepLine {
  double time_s = 0;  // unix, when the coordinator had it
  std::string site;
  int64_t step = 0;
  int64_t tokens = 0;
  double step_s = 0;
  int64_t left_out = 0;  // steps of this start so far that were not trained
  std::string loss;      // exactly as written
};

struct EvaluationLine {
  std::string site;
  int64_t step = 0;
  double loss = 0;
};

/// A growing file, line by line.
class LineFile {
 public:
  explicit LineFile(std::filesystem::path path) : path_(std::move(path)) {}
  /// The whole lines that have come since the last call and are JSON.
  std::vector<nlohmann::json> read_on();

 private:
  std::filesystem::path path_;
  int64_t read_bytes_ = 0;
};

class RunRecords {
 public:
  explicit RunRecords(const std::filesystem::path& run_dir);
  void read_on();

  const std::vector<StepLine>& steps() const { return steps_; }
  const std::vector<EvaluationLine>& evaluations() const { return evaluations_; }
  const std::vector<nlohmann::json>& events() const { return events_; }
  /// The newest step that a site has reported; 0: none.
  int64_t last_step(const std::string& site) const;
  double last_step_time_s(const std::string& site) const;
  /// The middle of a site's last nine steps.
  double usual_step_s(const std::string& site) const;
  /// The events of one name from the first-th event on; with a site: only its own.
  std::vector<nlohmann::json> events(const std::string& name,
                                     size_t first = 0,
                                     const std::string& site = {}) const;
  bool is_committed(int64_t exchange) const { return commits_.contains(exchange); }
  int64_t num_commits() const { return num_commits_; }
  /// Commits of which the site was a member, from the first-th event on.
  int64_t num_commits_with(const std::string& site, size_t first) const;
  /// The loss of each step of a site as it was written last, by step.
  std::map<int64_t, std::string> loss_curve(const std::string& site) const;

 private:
  LineFile metrics_, event_lines_;
  std::vector<StepLine> steps_;
  std::vector<EvaluationLine> evaluations_;
  std::vector<nlohmann::json> events_;
  std::map<std::string, StepLine> newest_;  // by site
  std::map<int64_t, int> commits_;          // by exchange: how often
  int64_t num_commits_ = 0;
};

}  // namespace pelago::chaos
