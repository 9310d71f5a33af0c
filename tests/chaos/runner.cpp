#include "chaos/runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <memory>
#include <regex>

#include "base/error.h"
#include "chaos/run/whole_run.h"
#include "tests/wan/output_of.h"

namespace pelago::chaos {

namespace {

constexpr double kStartS = 120, kStopS = 60;
constexpr double kSigtermS = 25;  // R: whoever is told to leave has saved by then

LiveRunOptions live_options(Stage stage, const RunnerOptions& options) {
  LiveRunOptions live;
  live.num_sites = options.num_sites;
  live.slowdown = 400;
  live.rtt_ms = 60;
  live.rate_mbit_s = 100;
  live.checkpoint_every_steps = 40;
  if (stage == Stage::kSteady) {
    live.grace_s = 60;
    live.behind_s = 0;  // nobody leaves a step out
    live.num_sites = std::min(3, options.num_sites);
  }
  if (stage == Stage::kChanging) live.first_has_two = true;
  if (stage != Stage::kSteady) live.grace_s = 2;
  live.has_packets = stage == Stage::kPackets;
  return live;
}

/// Up to which step nobody had been left out of an exchange.
int64_t last_common_step(LiveRun& run) {
  int64_t last = std::numeric_limits<int64_t>::max();
  const int64_t interval = run.options().inner_steps / run.options().fragments;
  for (const nlohmann::json& event : run.records().events("site_left_out")) {
    last = std::min(last, (event.value("exchange", int64_t{0}) + 1) * interval);
  }
  return last;
}

/// As long as nobody is left out, nothing may have changed a bit.
void compare_curves(LiveRun& hurt, LiveRun& calm, Outcome& outcome) {
  calm.records().read_on();
  const int64_t last = last_common_step(hurt);
  size_t num_equal = 0, num_later = 0;
  for (const std::string& site : hurt.sites()) {
    const auto curve = calm.records().loss_curve(site);
    for (const auto& [step, loss] : hurt.records().loss_curve(site)) {
      const auto other = curve.find(step);
      if (other == curve.end()) continue;
      if (step > last) {
        ++num_later;
      } else if (other->second == loss) {
        ++num_equal;
      } else {
        outcome.wrong.push_back(
            fmt::format("{} has another loss than the calm run at step {}: {}, not {}",
                        site,
                        step,
                        loss,
                        other->second));
        break;
      }
    }
  }
  expect(outcome, num_equal > 0, fmt::format("{} steps with a calm run's very losses", num_equal));
  if (num_later > 0) see(outcome, fmt::format("{} after a site was left out", num_later));
}

Verdict judged(const std::string& id, const Outcome& outcome) {
  Verdict verdict{.id = id, .outcome = outcome, .is_good = false, .word = "FAILED"};
  if (outcome.proof.empty()) {
    verdict.word = "did not fire";
  } else if (outcome.wrong.empty()) {
    verdict.is_good = true;
    verdict.word = "held";
  }
  return verdict;
}

Verdict judge_all(LiveRun& run, LiveRun* calm, const RunnerOptions& options) {
  Outcome outcome;
  outcome.done = "SIGTERM to the coordinator at the end";
  const double took_s = run.stop(kStopS);
  outcome.proof = "all ended with exit code 0";
  expect(outcome, took_s <= kSigtermS, fmt::format("stopped within {:.1f} s", took_s));
  if (calm != nullptr) {
    compare_curves(run, *calm, outcome);
    calm->stop(kStopS);
  }
  const WholeRun whole = judge_whole_run(run, (options.programs / "pelago").string());
  see(outcome,
      fmt::format(
          "{} exchanges, each committed once; {} tokens spent once, {} given back; all hold "
          "one state at step {}",
          whole.num_exchanges,
          whole.spent_tokens,
          whole.returned_tokens,
          whole.last_step));
  for (const std::string& problem : whole.problems) outcome.wrong.push_back(problem);
  return judged("all", outcome);
}

}  // namespace

std::string obstacle_of(Stage stage) {
  if (stage != Stage::kPackets) return {};
  return wan::PacketLine::obstacle().value_or(Cut::obstacle().value_or(""));
}

std::vector<Verdict> run_stage(Stage stage,
                               const std::vector<Fault>& faults,
                               const RunnerOptions& options) {
  const std::string program = (options.programs / "pelago").string();
  const LiveRunOptions live = live_options(stage, options);
  std::unique_ptr<LiveRun> calm;
  if (stage == Stage::kSteady) {
    calm = std::make_unique<LiveRun>(options.scratch / "calm", options.data, program, live);
    calm->start(1, kStartS);
  }
  LiveRun run(options.scratch / "hurt", options.data, program, live);
  run.start(2 * live.inner_steps, kStartS);
  std::vector<Verdict> verdicts;
  for (const Fault& fault : faults) {
    Outcome outcome;
    try {
      outcome = fault.inject(run);
    } catch (const std::exception& error) {
      outcome.wrong.push_back(error.what());
    }
    verdicts.push_back(judged(fault.id, outcome));
    print(verdicts.back(), fault.what);
    if (!run.problem().empty()) break;
  }
  verdicts.push_back(judge_all(run, calm.get(), options));
  print(verdicts.back(), "the run as a whole");
  return verdicts;
}

Verdict run_test(const Fault& fault, const RunnerOptions& options) {
  const std::string words = fault.test;
  const size_t colon = words.find(": ");
  const std::string program = words.substr(0, colon), pattern = words.substr(colon + 2);
  Outcome outcome;
  outcome.done = fmt::format("{} -tc=\"{}\"", program, pattern);
  std::string said;
  try {
    said = wan::output_of(fmt::format("cd {} && {} -nc -tc='{}' 2>&1",
                                      options.scratch.string(),
                                      (options.programs / program).string(),
                                      pattern));
  } catch (const std::exception& error) {
    const std::string end = error.what();
    outcome.wrong.push_back(end.substr(end.size() > 300 ? end.size() - 300 : 0));
    said = end;
  }
  static const std::regex counted(R"(test cases:\s+(\d+) \|\s+(\d+) passed)");
  std::smatch found;
  if (std::regex_search(said, found, counted) && found[1] != "0") {
    outcome.proof = fmt::format("{} of {} cases passed", found[2].str(), found[1].str());
  }
  Verdict verdict = judged(fault.id, outcome);
  if (verdict.is_good) verdict.word = "passed";
  return verdict;
}

void print(const Verdict& verdict, const std::string& what) {
  std::printf("%-4s %-13s %s\n", verdict.id.c_str(), verdict.word.c_str(), what.c_str());
  const auto line = [](const char* head, const std::string& words) {
    if (!words.empty()) std::printf("       %-6s %s\n", head, words.c_str());
  };
  line("done", verdict.outcome.done);
  line("proof", verdict.outcome.proof);
  line("seen", verdict.outcome.seen);
  for (const std::string& words : verdict.outcome.wrong) line("WRONG", words);
  std::fflush(stdout);
}

}  // namespace pelago::chaos
