// What a run has done so far, gathered from its reports: behind the progress line, `status` and the
// final summary. The same reports stand in metrics.jsonl, so a finished run gives the same figures.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "plan/plan.h"
#include "train/messages.h"

namespace pelago::cli {

/// Sums over a site's steps.
struct SiteView {
  std::string name;
  int64_t step = 0;
  double loss = 0;  // moving mean, nats a token
  int64_t tokens = 0;
  double step_s = 0;       // sum
  double wait_line_s = 0;  // sum
  double reduce_s = 0;     // sum
  double recent_tokens_s = 0;
  std::vector<int64_t> rank_tokens;
  std::vector<double> rank_compute_s;
  std::vector<double> rank_late_s;
  std::optional<train::EvaluationReport> first_evaluation, last_evaluation;
  std::deque<train::StepReport> recent;  // the last few, for rates
};

/// What went over the lines, by the transport's own count.
struct LineView {
  double sent_bytes = 0;  // all sites together
  double bytes_per_parameter =
      0;  // sent by a site for one exchange of a fragment, by parameter of the fragment
  int64_t commits = 0;
  double mbit_s = 0;  // now, mean over sites
};

class RunView {
 public:
  explicit RunView(const plan::Plan& plan);
  void add(const train::StepReport& report);
  void add(const train::EvaluationReport& report);
  void set_line(const LineView& line) { line_ = line; }

  const plan::Plan& plan() const { return plan_; }
  const std::vector<SiteView>& sites() const { return sites_; }
  const LineView& line() const { return line_; }
  /// Tokens a second over the whole run, sites added up; and over the last steps.
  double tokens_s() const;
  double recent_tokens_s() const;
  /// What the devices would reach together if each trained alone at its share: the plan's measured
  /// profiles.
  double parts_tokens_s() const;
  double wait_line_ratio() const;
  double eta_s() const;
  std::string progress_line() const;

 private:
  SiteView* site(const std::string& name);
  std::string words_of(size_t site_idx) const;
  std::string words_of_all() const;
  plan::Plan plan_;
  std::vector<SiteView> sites_;
  LineView line_;
};

/// Reads plan.json, metrics.jsonl and events.jsonl of a run folder. Throws Failure if it is none.
RunView read_run(const std::filesystem::path& run_dir);

/// The table that ends a run, and the same as JSON.
std::string summary_table(const RunView& view, const std::filesystem::path& run_dir);
std::string summary_json(const RunView& view, const std::filesystem::path& run_dir);

}  // namespace pelago::cli
