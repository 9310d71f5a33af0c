#include "plan/simulation/output/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>

namespace pelago::plan {

namespace {

using OrderedJson = nlohmann::ordered_json;

/// The value below which this share of them lies.
double quantile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  return values[static_cast<size_t>(at + 0.5)];
}

std::string number_text(double value) {
  if (value >= 1e15) return fmt::format("{:.3g}", value);
  if (value >= 1e12) return fmt::format("{:.2f} T", value / 1e12);
  if (value >= 1e9) return fmt::format("{:.2f} G", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.2f} M", value / 1e6);
  if (value >= 1e4) return fmt::format("{:.1f} k", value / 1e3);
  return fmt::format("{:.4g}", value);
}

std::string time_text(double seconds) {
  if (seconds >= 2 * 86400) return fmt::format("{:.1f} days", seconds / 86400);
  if (seconds >= 2 * 3600) return fmt::format("{:.1f} h", seconds / 3600);
  if (seconds >= 120) return fmt::format("{:.1f} min", seconds / 60);
  return fmt::format("{:.3g} s", seconds);
}

struct Shares {
  double computing = 0, line = 0, behind = 0, snapshot = 0, lost = 0, down = 0;
};

Shares shares_of(const std::vector<SiteOutcome>& sites) {
  Shares shares;
  double all_s = 0;
  for (const SiteOutcome& site : sites) {
    shares.computing += site.computing_s;
    shares.line += site.waiting_s - site.behind_s;
    shares.behind += site.behind_s;
    shares.snapshot += site.snapshot_s;
    shares.lost += site.lost_s;
    shares.down += site.down_s;
  }
  all_s =
      shares.computing + shares.line + shares.behind + shares.snapshot + shares.lost + shares.down;
  if (all_s <= 0) return {};
  for (double* share : {&shares.computing,
                        &shares.line,
                        &shares.behind,
                        &shares.snapshot,
                        &shares.lost,
                        &shares.down}) {
    *share /= all_s;
  }
  return shares;
}

void print_time(const SimulationReport& report, std::string& out) {
  const Shares shares = shares_of(report.outcome.sites);
  auto end = std::back_inserter(out);
  fmt::format_to(end, "\nwhere the sites' time goes\n");
  const auto row = [&](const char* what, double share, const char* why) {
    if (share >= 5e-5) fmt::format_to(end, "  {:<22}{:>7.2f} %  {}\n", what, 100 * share, why);
  };
  row("training", shares.computing, "steps whose work was kept");
  row("waiting for a site", shares.behind, "that is slower, or was missed");
  row("waiting for the line", shares.line, "");
  row("snapshots", shares.snapshot, "");
  row("lost again", shares.lost, "computed since the last snapshot before a fault");
  row("down", shares.down, "from a fault until the site trains again");
  for (const StepParts& step : report.steps) {
    fmt::format_to(end,
                   "  a step of {:<12}{:>7.3g} s  compute {:.1f} %, bubble {:.1f} %, reduction "
                   "{:.1f} %, optimizer {:.1f} %\n",
                   step.site,
                   step.step_s,
                   100 * step.compute,
                   100 * step.bubble,
                   100 * step.reduce,
                   100 * step.update);
  }
}

void print_lines(const SimulationReport& report, std::string& out) {
  const RunOutcome& outcome = report.outcome;
  constexpr size_t kRows = 12;
  auto end = std::back_inserter(out);
  double sum = 0;
  for (const LineOutcome& line : outcome.lines) sum += line.bytes;
  if (sum == 0) return;
  fmt::format_to(end, "\nlines {:<33}{:>12}{:>14}{:>10}\n", "", "bytes", "average", "busy");
  size_t num_shown = 0, num_used = 0;
  for (const LineOutcome& line : outcome.lines) {
    if (line.bytes == 0 || ++num_used > kRows) continue;
    num_shown += 1;
    const std::string ends = fmt::format(
        "{} -> {}", report.model->sites[line.from].name, report.model->sites[line.to].name);
    fmt::format_to(end,
                   "  {:<36}{:>11}B{:>8.4g} Mbit/s{:>7.1f} %{}\n",
                   ends,
                   number_text(line.bytes),
                   line.bytes * 8 / outcome.played_s / 1e6,
                   100 * line.busy_s / outcome.played_s,
                   line.num_faults > 0 ? fmt::format("  failed {} times", line.num_faults) : "");
  }
  if (num_used > num_shown) {
    fmt::format_to(end, "  and {} more; --json has them all\n", num_used - num_shown);
  }
  if (!outcome.exchange_s.empty()) {
    fmt::format_to(end,
                   "  {} exchanges: median {}, 95 % within {}, longest {}{}\n",
                   outcome.exchange_s.size(),
                   time_text(quantile(outcome.exchange_s, 0.5)),
                   time_text(quantile(outcome.exchange_s, 0.95)),
                   time_text(quantile(outcome.exchange_s, 1)),
                   outcome.num_left_out > 0
                       ? fmt::format("; {} times one went on without a site", outcome.num_left_out)
                       : "");
  }
}

void print_faults(const SimulationReport& report, std::string& out) {
  int64_t count = 0;
  for (const FaultOutcome& fault : report.outcome.faults) count += fault.count;
  if (count == 0) return;
  double lost_s = 0, down_s = 0, all_s = 0;
  for (const SiteOutcome& site : report.outcome.sites) {
    lost_s += site.lost_s;
    down_s += site.down_s;
    all_s += report.outcome.played_s - site.away_s;
  }
  auto end = std::back_inserter(out);
  fmt::format_to(end, "\nfaults\n");
  for (const FaultOutcome& fault : report.outcome.faults) {
    if (fault.count == 0) continue;
    fmt::format_to(end,
                   "  {:<10}{:>9}   one every {}\n",
                   fault.name,
                   fault.count,
                   time_text(report.outcome.played_s / static_cast<double>(fault.count)));
  }
  fmt::format_to(end,
                 "  they cost {:.2f} % of the sites' time: {} down and {} of work lost\n",
                 100 * (lost_s + down_s) / all_s,
                 time_text(down_s),
                 time_text(lost_s));
}

OrderedJson sites_json(const RunOutcome& outcome) {
  OrderedJson sites = OrderedJson::array();
  for (const SiteOutcome& site : outcome.sites) {
    sites.push_back({{"name", site.name},
                     {"steps", site.steps},
                     {"tokens", site.tokens},
                     {"computing_s", site.computing_s},
                     {"waiting_s", site.waiting_s},
                     {"waiting_for_sites_s", site.behind_s},
                     {"snapshot_s", site.snapshot_s},
                     {"lost_s", site.lost_s},
                     {"down_s", site.down_s},
                     {"away_s", site.away_s},
                     {"faults", site.num_faults}});
  }
  return sites;
}

}  // namespace

std::string to_table(const SimulationReport& report) {
  const RunOutcome& outcome = report.outcome;
  std::string out;
  auto end = std::back_inserter(out);
  double steps = 0;
  for (const SiteOutcome& site : outcome.sites) steps = std::max(steps, site.steps);
  fmt::format_to(end,
                 "{}: {} of virtual time, {:.0f} steps, {} site{}\n",
                 report.model->name,
                 time_text(outcome.played_s),
                 steps,
                 outcome.sites.size(),
                 outcome.sites.size() == 1 ? "" : "s");
  const auto foretold = [](double value, double simulated) {
    return value > 0
               ? fmt::format(
                     "   the plan says {:.4g} ({:+.1f} %)", value, 100 * (simulated / value - 1))
               : std::string();
  };
  fmt::format_to(end,
                 "  tokens/s            {:>12.4g}{}\n",
                 outcome.tokens_s(),
                 foretold(report.foretold.tokens_s, outcome.tokens_s()));
  if (steps > 0) {
    const double step_s = outcome.played_s / steps;
    fmt::format_to(end,
                   "  seconds a step      {:>12.4g}{}\n",
                   step_s,
                   foretold(report.foretold.step_s, step_s));
  }
  fmt::format_to(
      end,
      "  compute utilisation {:>10.2f} %   of the time without faults\n"
      "  goodput             {:>10.2f} %   of what the sites would train alone, unbroken\n",
      100 * outcome.compute_utilisation(),
      100 * outcome.goodput());
  print_time(report, out);
  print_lines(report, out);
  print_faults(report, out);
  for (const std::string& note : report.notes) fmt::format_to(end, "\nnote: {}", note);
  if (!report.notes.empty()) out += '\n';
  return out;
}

std::string to_json(const SimulationReport& report) {
  const RunOutcome& outcome = report.outcome;
  OrderedJson json;
  json["name"] = report.model->name;
  json["seed"] = report.seed;
  json["simulated_s"] = outcome.played_s;
  json["tokens"] = outcome.tokens;
  json["tokens_s"] = outcome.tokens_s();
  json["compute_utilisation"] = outcome.compute_utilisation();
  json["goodput"] = outcome.goodput();
  json["predicted"] = {{"tokens_s", report.foretold.tokens_s},
                       {"step_s", report.foretold.step_s},
                       {"line_mbit_s", report.foretold.line_mbit_s}};
  json["exchanges"] = {{"count", outcome.exchange_s.size()},
                       {"median_s", quantile(outcome.exchange_s, 0.5)},
                       {"p95_s", quantile(outcome.exchange_s, 0.95)},
                       {"max_s", quantile(outcome.exchange_s, 1)},
                       {"left_out", outcome.num_left_out}};
  json["sites"] = sites_json(outcome);
  json["steps"] = OrderedJson::array();
  for (const StepParts& step : report.steps) {
    json["steps"].push_back({{"site", step.site},
                             {"step_s", step.step_s},
                             {"compute", step.compute},
                             {"bubble", step.bubble},
                             {"reduce", step.reduce},
                             {"update", step.update}});
  }
  json["lines"] = OrderedJson::array();
  for (const LineOutcome& line : outcome.lines) {
    json["lines"].push_back({{"from", report.model->sites[line.from].name},
                             {"to", report.model->sites[line.to].name},
                             {"bytes", line.bytes},
                             {"mbit_s", line.bytes * 8 / std::max(outcome.played_s, 1e-9) / 1e6},
                             {"busy_s", line.busy_s},
                             {"faults", line.num_faults}});
  }
  json["faults"] = OrderedJson::object();
  for (const FaultOutcome& fault : outcome.faults) json["faults"][fault.name] = fault.count;
  json["events"] = outcome.num_events;
  json["notes"] = report.notes;
  return json.dump(2);
}

std::string to_table(const RunModel& model, const std::vector<BandwidthRow>& rows) {
  std::string out = fmt::format(
      "{}: bandwidth of each line, each way, for a share of time spent computing\n", model.name);
  for (const BandwidthRow& row : rows) {
    fmt::format_to(std::back_inserter(out),
                   "  {:>5.4g} %  {:>12.4g} Gbit/s{}\n",
                   100 * row.utilisation,
                   row.bits_s / 1e9,
                   row.on_grid_bits_s > 0
                       ? fmt::format("   nearest on the grid {:.4g}", row.on_grid_bits_s / 1e9)
                       : "");
  }
  return out;
}

std::string to_json(const RunModel& model, const std::vector<BandwidthRow>& rows) {
  OrderedJson json;
  json["name"] = model.name;
  json["bandwidth_needed"] = OrderedJson::array();
  for (const BandwidthRow& row : rows) {
    OrderedJson entry = {{"utilisation", row.utilisation}, {"gbit_s", row.bits_s / 1e9}};
    if (row.on_grid_bits_s > 0) entry["on_grid_gbit_s"] = row.on_grid_bits_s / 1e9;
    json["bandwidth_needed"].push_back(entry);
  }
  return json.dump(2);
}

}  // namespace pelago::plan
