#include "chaos/run/run_records.h"

#include <algorithm>
#include <fstream>

namespace pelago::chaos {

using nlohmann::json;

std::vector<json> LineFile::read_on() {
  std::vector<json> lines;
  std::ifstream in(path_, std::ios::binary);
  if (!in) return lines;
  in.seekg(read_bytes_);
  for (std::string line; std::getline(in, line) && !in.eof();) {
    read_bytes_ += static_cast<int64_t>(line.size()) + 1;
    json parsed = try_parse_json(line);
    if (!parsed.is_discarded()) lines.push_back(std::move(parsed));
  }
  return lines;
}

RunRecords::RunRecords(const std::filesystem::path& run_dir)
    : metrics_(run_dir / "metrics.jsonl"), event_lines_(run_dir / "events.jsonl") {}

void RunRecords::read_on() {
  for (const json& line : metrics_.read_on()) {
    const std::string kind = line.value("kind", "");
    if (kind == "evaluation") {
      evaluations_.push_back({.site = line.value("site", ""),
                              .step = line.value("step", int64_t{0}),
                              .loss = line.value("loss", 0.0)});
    } else if (kind == "step") {
      StepLine step{.time_s = line.value("time", 0.0),
                    .site = line.value("site", ""),
                    .step = line.value("step", int64_t{0}),
                    .tokens = line.value("tokens", int64_t{0}),
                    .step_s = line.value("step_s", 0.0),
                    .left_out = line.value("left_out", int64_t{0}),
                    .loss = line.contains("loss") ? line["loss"].dump() : ""};
      newest_[step.site] = step;
      steps_.push_back(std::move(step));
    }
  }
  for (json& line : event_lines_.read_on()) {
    if (line.value("event", "") == "commit") {
      ++commits_[line.value("exchange", int64_t{-1})];
      ++num_commits_;
    }
    events_.push_back(std::move(line));
  }
}

int64_t RunRecords::last_step(const std::string& site) const {
  const auto found = newest_.find(site);
  return found == newest_.end() ? 0 : found->second.step;
}

double RunRecords::last_step_time_s(const std::string& site) const {
  const auto found = newest_.find(site);
  return found == newest_.end() ? 0 : found->second.time_s;
}

double RunRecords::usual_step_s(const std::string& site) const {
  std::vector<double> last;
  for (auto step = steps_.rbegin(); step != steps_.rend() && last.size() < 9; ++step) {
    if (step->site == site) last.push_back(step->step_s);
  }
  if (last.empty()) return 0;
  std::sort(last.begin(), last.end());
  return last[last.size() / 2];
}

std::vector<json> RunRecords::events(const std::string& name,
                                     size_t first,
                                     const std::string& site) const {
  std::vector<json> found;
  for (size_t idx = first; idx < events_.size(); ++idx) {
    const json& event = events_[idx];
    const bool is_it = event.value("event", "") == name &&
                       (site.empty() || event.value("site", std::string()) == site);
    if (is_it) found.push_back(event);
  }
  return found;
}

int64_t RunRecords::num_commits_with(const std::string& site, size_t first) const {
  const std::vector<json> commits = events("commit", first);
  return std::count_if(commits.begin(), commits.end(), [&](const json& commit) {
    const json& members = commit.at("members");
    return std::find(members.begin(), members.end(), site) != members.end();
  });
}

std::map<int64_t, std::string> RunRecords::loss_curve(const std::string& site) const {
  std::map<int64_t, std::string> curve;
  for (const StepLine& step : steps_) {
    if (step.site == site) curve[step.step] = step.loss;
  }
  return curve;
}

}  // namespace pelago::chaos
