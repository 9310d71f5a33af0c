// Faults of the lines: rules that drop packets and count them, and lines that become worse.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <regex>

#include "chaos/injections.h"
#include "tests/wan/output_of.h"

namespace pelago::chaos {

using nlohmann::json;

namespace {

constexpr double kGoOnS = 120;
constexpr double kHealS = 10;  // R18 of the goals: from the end of a partition to going on

void let_pass(LiveRun& run, double seconds) {
  run.wait_until([] { return false; }, seconds);
}

/// Cuts sites off for some seconds; the proof is the number of packets dropped.
void cut_for(LiveRun& run,
             const std::vector<std::string>& sites,
             const CutRules& rules,
             double seconds,
             Outcome& outcome) {
  std::vector<std::unique_ptr<Cut>> cuts;
  for (const std::string& site : sites) {
    cuts.push_back(std::make_unique<Cut>(run.space_of(site), rules));
  }
  let_pass(run, seconds);
  int64_t num_dropped = 0;
  for (const auto& cut : cuts) num_dropped += cut->num_dropped();
  if (num_dropped > 0) outcome.proof = fmt::format("{} packets dropped", num_dropped);
}

/// After a partition: all go on, and soon. Whom it has put behind may have had to start anew.
void expect_healed(LiveRun& run, const Mark& before, Outcome& outcome) {
  const Mark healed = mark(run);
  expect_going_on(run, healed, outcome, kGoOnS);
  expect(outcome, steady_s() - healed.at_s <= kHealS, fmt::format("within {:.0f} s", kHealS));
  for (const std::string& site : run.sites()) {
    const int more = run.num_restarts(site) - before.num_starts.at(site);
    if (more > 0) see(outcome, fmt::format("{} started anew {} time", site, more));
  }
}

void expect_no_commit_with(LiveRun& run, const std::string& site, size_t first, Outcome& outcome) {
  const int64_t num = run.records().num_commits_with(site, first);
  expect(outcome, num == 0, fmt::format("{} commits with {} while it was away", num, site));
}

std::string in_space(const LiveRun& run, const std::string& who, const std::string& command) {
  return wan::output_of(fmt::format("ip netns exec {} {} 2>&1", run.space_of(who), command));
}

int64_t num_resent(const LiveRun& run, const std::string& site) {
  const std::string text = in_space(run, site, "cat /proc/net/snmp");
  // Two lines of "Tcp:": names, then values. RetransSegs is the twelfth.
  static const std::regex line(R"(Tcp: (?:-?\d+ ){11}(\d+))");
  std::smatch found;
  return std::regex_search(text, found, line) ? std::stoll(found[1]) : -1;
}

/// The largest round trip that TCP has measured at a site, in ms.
double round_trip_ms(const LiveRun& run, const std::string& site) {
  const std::string text = in_space(run, site, "ss -tin");
  static const std::regex word(R"(\brtt:([0-9.]+)/)");
  double largest = 0;
  for (std::sregex_iterator hit(text.begin(), text.end(), word), end; hit != end; ++hit) {
    largest = std::max(largest, std::stod((*hit)[1]));
  }
  return largest;
}

}  // namespace

Outcome one_site_cut_off(LiveRun& run) {
  Outcome outcome;
  const std::string& site = run.sites().back();
  const double seconds = 10 * run.options().heartbeat_s;
  outcome.done = fmt::format("nothing to or from {} for {:.0f} s", site, seconds);
  const Mark before = mark(run);
  const CutRules all{.drop_from = {"any"}, .drop_to = {"any"}, .more = {}};
  size_t given_up_at = 0;
  {
    const Cut cut(run.space_of(site), all);
    run.wait_until(
        [&] { return !run.records().events("site_lost", before.num_events, site).empty(); },
        seconds);
    given_up_at = mark(run).num_events;
    let_pass(run, seconds - (steady_s() - before.at_s));
    if (cut.num_dropped() > 0) outcome.proof = fmt::format("{} packets dropped", cut.num_dropped());
    expect_no_commit_with(run, site, given_up_at, outcome);
    const int64_t others = mark(run).num_commits - before.num_commits;
    expect(outcome, others > 0, fmt::format("the others committed {} times", others));
  }
  expect_healed(run, before, outcome);
  return outcome;
}

Outcome two_halves(LiveRun& run) {
  Outcome outcome;
  const size_t half = run.sites().size() / 2;
  const std::vector<std::string> minority(run.sites().begin() + static_cast<std::ptrdiff_t>(half),
                                          run.sites().end());
  CutRules rules;
  for (size_t idx = 0; idx < half; ++idx)
    rules.drop_from.push_back(run.address_of(run.sites()[idx]));
  rules.drop_from.push_back(run.address_of(kCoordinator));
  rules.drop_to = rules.drop_from;
  const double seconds = 10 * run.options().heartbeat_s;
  outcome.done = fmt::format("{} sites and the coordinator on one side, {} on the other, {:.0f} s",
                             half,
                             minority.size(),
                             seconds);
  const Mark before = mark(run);
  cut_for(run, minority, rules, seconds, outcome);
  const auto commits = run.records().events("commit", before.num_events);
  const bool is_split = std::any_of(commits.begin(), commits.end(), [&](const json& commit) {
    const json& members = commit.at("members");
    return members.size() == minority.size() && members[0] == minority[0];
  });
  expect(outcome, !is_split, "the other side committed nothing");
  expect_healed(run, before, outcome);
  return outcome;
}

Outcome one_way(LiveRun& run) {
  Outcome outcome;
  const std::string& site = run.sites()[1];
  outcome.done = fmt::format("{} hears nobody for 4 s, then nobody hears it for 4 s", site);
  const Mark before = mark(run);
  cut_for(run, {site}, {.drop_from = {"any"}, .drop_to = {}, .more = {}}, 4, outcome);
  const std::string deaf = outcome.proof;
  outcome.proof.clear();
  cut_for(run, {site}, {.drop_from = {}, .drop_to = {"any"}, .more = {}}, 4, outcome);
  outcome.proof = deaf.empty() || outcome.proof.empty() ? "" : deaf + ", " + outcome.proof;
  expect_healed(run, before, outcome);
  return outcome;
}

Outcome flapping(LiveRun& run) {
  Outcome outcome;
  const std::string& site = run.sites().back();
  outcome.done = fmt::format("{} cut off every other half second, 10 times", site);
  const Mark before = mark(run);
  std::string proof;
  for (int turn = 0; turn < 10; ++turn) {
    outcome.proof.clear();
    cut_for(run, {site}, {.drop_from = {"any"}, .drop_to = {"any"}, .more = {}}, 0.5, outcome);
    if (outcome.proof.empty()) break;
    proof += (proof.empty() ? "" : ", ") + outcome.proof.substr(0, outcome.proof.find(' '));
    let_pass(run, 0.5);
  }
  if (!outcome.proof.empty()) outcome.proof = proof + " packets dropped";
  expect_healed(run, before, outcome);
  return outcome;
}

Outcome thin_line(LiveRun& run) {
  Outcome outcome;
  const double seconds = 8;
  outcome.done = fmt::format("the lines at 0.1 Mbit/s for {:.0f} s", seconds);
  const Mark before = mark(run);
  run.line().order("rate 0.1");
  const int64_t sent_before = run.line().sent_bytes(1);
  let_pass(run, seconds);
  const int64_t resent = num_resent(run, run.sites()[1]);
  const double arrived_mbit_s =
      8e-6 * static_cast<double>(run.line().sent_bytes(1) - sent_before) / seconds;
  outcome.proof = fmt::format(
      "{} sent {:.2f} Mbit/s into it, {} segments again", run.sites()[1], arrived_mbit_s, resent);
  run.line().order(fmt::format("rate {}", run.options().rate_mbit_s));
  expect_healed(run, before, outcome);
  return outcome;
}

Outcome long_line(LiveRun& run) {
  Outcome outcome;
  outcome.done = "round trips of 300 ms for 10 s";
  const Mark before = mark(run);
  run.line().order("rtt 300");
  let_pass(run, 10);
  const double measured_ms = round_trip_ms(run, run.sites()[1]);
  if (measured_ms > 200) outcome.proof = fmt::format("TCP measured {:.0f} ms", measured_ms);
  expect(outcome, mark(run).num_commits > before.num_commits, "exchanges went on over it");
  expect(
      outcome, run.records().events("site_lost", before.num_events).empty(), "nobody was given up");
  run.line().order(fmt::format("rtt {}", run.options().rtt_ms));
  expect_healed(run, before, outcome);
  return outcome;
}

Outcome lossy_line(LiveRun& run) {
  Outcome outcome;
  outcome.done = "a loss of 10 % for 10 s";
  const Mark before = mark(run);
  const int64_t resent_before = num_resent(run, run.sites()[1]);
  run.line().order("loss 10");
  let_pass(run, 10);
  const int64_t resent = num_resent(run, run.sites()[1]) - resent_before;
  if (resent > 0) outcome.proof = fmt::format("{} segments sent again", resent);
  expect(outcome, mark(run).num_commits > before.num_commits, "exchanges went on over it");
  run.line().order("loss 0");
  expect_healed(run, before, outcome);
  return outcome;
}

Outcome one_stream_frozen(LiveRun& run) {
  Outcome outcome;
  const std::string &here = run.sites()[1], &there = run.sites()[0];
  const std::string text =
      in_space(run, here, fmt::format("ss -tnH state established dst {}", run.address_of(there)));
  static const std::regex port(R"(10\.77\.0\.\d+\]?:(\d+)\s)");
  std::smatch found;
  if (!std::regex_search(text, found, port)) return outcome;
  outcome.done = fmt::format("one connection from {} to {} frozen for 6 s", here, there);
  const Mark before = mark(run);
  cut_for(
      run,
      {here},
      {.drop_from = {}, .drop_to = {run.address_of(there)}, .more = "tcp sport " + found[1].str()},
      6,
      outcome);
  expect(outcome, mark(run).num_commits > before.num_commits, "exchanges went on beside it");
  expect_healed(run, before, outcome);
  return outcome;
}

}  // namespace pelago::chaos
