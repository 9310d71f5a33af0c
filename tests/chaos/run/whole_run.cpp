#include "chaos/run/whole_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>

#include "base/error.h"
#include "tests/wan/output_of.h"

namespace pelago::chaos {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

/// The bytes of one tensor of a safetensors file; empty: it is not there.
std::string tensor_bytes(const fs::path& path, const std::string& name) {
  const std::string file = read_file(path);
  uint64_t head_bytes = 0;
  if (file.size() < sizeof head_bytes) return {};
  std::memcpy(&head_bytes, file.data(), sizeof head_bytes);
  if (head_bytes > file.size() - sizeof head_bytes) return {};
  const json head = try_parse_json(file.substr(sizeof head_bytes, head_bytes));
  if (head.is_discarded() || !head.contains(name)) return {};
  const auto offsets = head[name]["data_offsets"].get<std::vector<size_t>>();
  return file.substr(sizeof head_bytes + head_bytes + offsets.at(0), offsets.at(1) - offsets.at(0));
}

/// step -> folder of a site's checkpoints.
std::map<int64_t, fs::path> checkpoints_of(const LiveRun& run, const std::string& site) {
  std::map<int64_t, fs::path> found;
  const fs::path folder = run.site_run_dir(site) / "sites" / site / "checkpoints";
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename();
    if (name.starts_with("step-")) found[std::stoll(name.substr(5))] = entry.path();
  }
  return found;
}

void judge_commits(const LiveRun& run, const RunRecords& records, WholeRun& whole) {
  std::map<int64_t, int> standing;
  const int64_t interval = run.options().inner_steps / run.options().fragments;
  for (const json& event : records.events()) {
    const std::string name = event.value("event", "");
    // A run that goes back to a checkpoint gives up what was committed after it.
    if (name == "run_starting") {
      standing.erase(standing.lower_bound(event.value("step", int64_t{0}) / interval),
                     standing.end());
    }
    if (name == "commit") ++standing[event.at("exchange").get<int64_t>()];
    if (name == "commit_lost") --standing[event.at("exchange").get<int64_t>()];
  }
  for (const auto& [exchange, times] : standing) {
    if (times > 1) {
      whole.problems.push_back(fmt::format("exchange {} was committed {} times", exchange, times));
    }
    if (times == 1) ++whole.num_exchanges;
  }
  const size_t num_differing = records.events("hash_differs").size();
  if (num_differing > 0) {
    whole.problems.push_back(fmt::format("{} results differed", num_differing));
  }
}

void judge_ledger(LiveRun& run, const std::string& program, WholeRun& whole) {
  const std::string said = wan::output_of(
      fmt::format("{} status {} --json 2>/dev/null", program, run.run_dir().string()));
  const json status = try_parse_json(said);
  if (status.is_discarded() || !status.contains("ledger") || status["ledger"].empty()) {
    whole.problems.push_back("status tells no ledger");
    return;
  }
  for (const json& site : status["ledger"]) {
    const auto tokens = [&](const char* key) { return site.value(key, int64_t{0}); };
    whole.spent_tokens += tokens("spent");
    whole.returned_tokens += tokens("returned");
    // What a site that did not come back had in hand is listed as lost until it does.
    const std::string name = site.value("site", "");
    const bool is_away = !checkpoints_of(run, name).contains(whole.last_step);
    for (const char* key : {"repeated", "lost"}) {
      if (tokens(key) == 0 || (is_away && key == std::string("lost"))) continue;
      whole.problems.push_back(
          fmt::format("{} tokens of {} are {}", tokens(key), site.value("site", ""), key));
    }
  }
}

void judge_weights(const LiveRun& run, WholeRun& whole) {
  std::optional<std::string> first;
  std::string of;
  for (const std::string& site : run.sites()) {
    const std::map<int64_t, fs::path> checkpoints = checkpoints_of(run, site);
    if (checkpoints.empty()) continue;
    whole.last_step = std::max(whole.last_step, checkpoints.rbegin()->first);
  }
  for (const std::string& site : run.sites()) {
    const std::map<int64_t, fs::path> checkpoints = checkpoints_of(run, site);
    if (!checkpoints.contains(whole.last_step)) continue;  // it was away at the end
    const std::string weights =
        tensor_bytes(checkpoints.at(whole.last_step) / "sites.safetensors", "global");
    if (weights.empty()) whole.problems.push_back(site + " left no global weights");
    if (first && weights != *first) {
      whole.problems.push_back(fmt::format("{} and {} hold other global weights", of, site));
    }
    if (!first) {
      first = weights;
      of = site;
    }
  }
  if (!first) whole.problems.push_back("no site left a checkpoint");
}

void judge_remains(const LiveRun& run, WholeRun& whole) {
  const fs::path folder = run.run_dir().parent_path().parent_path();
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.path().extension() == ".tmp") {
      whole.problems.push_back("half made: " + entry.path().string());
    }
  }
  if (!run.problem().empty()) whole.problems.push_back(run.problem());
}

}  // namespace

WholeRun judge_whole_run(LiveRun& run, const std::string& program) {
  WholeRun whole;
  run.records().read_on();
  judge_commits(run, run.records(), whole);
  judge_weights(run, whole);
  judge_ledger(run, program, whole);
  judge_remains(run, whole);
  return whole;
}

int64_t tokens_between(const RunRecords& records, double begin_s, double end_s) {
  struct Site {
    std::set<int64_t> steps;
    int64_t last = -1, left_out = 0;
  };
  // A start of a site counts on from its own first step: what it skipped was not trained.
  std::map<std::string, std::vector<double>> joined_s;
  for (const json& event : records.events("site_joined")) {
    joined_s[event.value("site", "")].push_back(event.value("time", 0.0));
  }
  std::map<std::string, Site> sites;
  std::map<std::string, double> before_s;
  int64_t tokens = 0;
  for (const StepLine& step : records.steps()) {
    Site& site = sites[step.site];
    const double last_s = std::exchange(before_s[step.site], step.time_s);
    const std::vector<double>& joins = joined_s[step.site];
    const bool is_new_start = std::any_of(joins.begin(), joins.end(), [&](double joined) {
      return joined > last_s && joined <= step.time_s;
    });
    const bool is_first = is_new_start || site.last < 0;
    // Of the steps since the last line, those that were left out come first: trained ones have
    // lines of their own, but for the few that a lost line hides.
    const int64_t left_out = step.left_out - (is_first ? step.left_out : site.left_out);
    const int64_t first = is_first ? step.step : site.last + 1 + left_out;
    site.last = step.step;
    site.left_out = step.left_out;
    const bool is_inside = step.time_s > begin_s && step.time_s <= end_s;
    for (int64_t done = std::min(first, step.step); done <= step.step; ++done) {
      if (site.steps.insert(done).second && is_inside) tokens += step.tokens;
    }
  }
  return tokens;
}

double mean_loss(const RunRecords& records,
                 const std::vector<std::string>& sites,
                 int64_t first,
                 int64_t last) {
  double sum = 0;
  int64_t num = 0;
  for (const std::string& site : sites) {
    const std::map<int64_t, std::string> curve = records.loss_curve(site);
    for (auto step = curve.upper_bound(first); step != curve.end() && step->first <= last; ++step) {
      if (step->second == "null") continue;
      sum += std::stod(step->second);
      ++num;
    }
  }
  if (num == 0) fail("no losses between steps {} and {}", first, last);
  return sum / static_cast<double>(num);
}

}  // namespace pelago::chaos
