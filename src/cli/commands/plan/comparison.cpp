#include "cli/commands/plan/comparison.h"

#include <algorithm>

#include "base/error.h"
#include "base/text/json.h"
#include "cli/terminal.h"

namespace pelago::cli {

namespace {

/// From here on the host, not the plan, is what was measured.
constexpr double kLateRatioMax = 0.02;

double percent_off(double predicted, double measured) {
  return measured > 0 ? 100 * (predicted / measured - 1) : 0;
}

/// Means over the steps of a site: of a rank's parts, and of the step itself.
plan::PartSeconds mean_parts(const std::vector<train::StepReport>& steps, size_t rank) {
  plan::PartSeconds sum;
  for (const train::StepReport& step : steps) {
    sum += step.ranks.at(rank).parts;
    sum.line_s += step.step_s - step.ranks.at(rank).parts.sum_s();
  }
  return sum.times(1 / static_cast<double>(steps.size()));
}

plan::PartSeconds mean_of(const std::vector<RankComparison>& ranks,
                          plan::PartSeconds RankComparison::*of) {
  plan::PartSeconds sum;
  for (const RankComparison& rank : ranks) sum += rank.*of;
  return sum.times(1 / static_cast<double>(ranks.size()));
}

nlohmann::json pair_json(double predicted, double measured) {
  return {{"predicted_s", predicted},
          {"measured_s", measured},
          {"off_percent", percent_off(predicted, measured)}};
}

nlohmann::json parts_json(const plan::PartSeconds& predicted, const plan::PartSeconds& measured) {
  nlohmann::json json;
  for (const plan::NamedPart& part : plan::all_parts()) {
    json[part.name] = pair_json(predicted.*part.seconds, measured.*part.seconds);
  }
  return json;
}

std::string table_of_parts(const Comparison& comparison) {
  const plan::PartSeconds predicted = comparison.mean_predicted();
  const plan::PartSeconds measured = comparison.mean_measured();
  const double step_s = comparison.measured_step_s;
  std::string text = fmt::format("{:<12}{:>12}{:>12}{:>10}{:>16}\n",
                                 "mean rank",
                                 "predicted",
                                 "measured",
                                 "off by",
                                 "of the step");
  for (const plan::NamedPart& part : plan::all_parts()) {
    const double foretold_s = predicted.*part.seconds, found_s = measured.*part.seconds;
    if (std::max(foretold_s, found_s) < 5e-5 * step_s) continue;
    text += fmt::format("{:<12}{:>10.4f} s{:>10.4f} s{:>8.1f} %{:>14.1f} %\n",
                        part.name,
                        foretold_s,
                        found_s,
                        percent_off(foretold_s, found_s),
                        100 * (foretold_s - found_s) / step_s);
  }
  return text + fmt::format("{:<12}{:>10.4f} s{:>10.4f} s{:>8.1f} %\n",
                            "step",
                            comparison.predicted_step_s,
                            step_s,
                            100 * comparison.step_error());
}

std::string table_of_ranks(const Comparison& comparison) {
  std::string text = fmt::format("{:<14}{:<26}", "rank", "predicted/measured s");
  for (const plan::NamedPart& part : plan::all_parts()) text += fmt::format("{:>16}", part.name);
  text += fmt::format("{:>24}\n", "memory");
  for (const RankComparison& rank : comparison.ranks) {
    text += fmt::format("{:<14}{:<26}", fmt::format("{} #{}", rank.site, rank.rank), rank.device);
    for (const plan::NamedPart& part : plan::all_parts()) {
      text += fmt::format(
          "{:>16}",
          fmt::format("{:.3f}/{:.3f}", rank.predicted.*part.seconds, rank.measured.*part.seconds));
    }
    if (rank.peak_memory_bytes > 0) {
      text += fmt::format(
          "{:>24}",
          fmt::format("{}/{} {:+.1f} %",
                      short_bytes(rank.predicted_memory_bytes),
                      short_bytes(rank.peak_memory_bytes),
                      percent_off(rank.predicted_memory_bytes, rank.peak_memory_bytes)));
    }
    text += "\n";
  }
  return text;
}

}  // namespace

plan::PartSeconds Comparison::mean_predicted() const {
  return mean_of(ranks, &RankComparison::predicted);
}

plan::PartSeconds Comparison::mean_measured() const {
  return mean_of(ranks, &RankComparison::measured);
}

double Comparison::late_ratio() const {
  double worst = 0;
  for (const RankComparison& rank : ranks) worst = std::max(worst, rank.late_ratio);
  return worst;
}

Comparison compare(const plan::Plan& plan, const plan::JobConfig& job, const Trial& trial) {
  const auto predicted = plan::parts_of_plan(plan, job);
  Comparison comparison;
  for (size_t i = 0; i < plan.sites.size(); ++i) {
    const std::vector<train::StepReport>& steps = trial.steps.at(i);
    PELAGO_ASSERT(!steps.empty(), "a trial that ended well has steps of every site");
    comparison.steps = static_cast<int64_t>(steps.size());
    double site_s = 0;
    for (const train::StepReport& step : steps) site_s += step.step_s;
    site_s /= static_cast<double>(steps.size());
    comparison.measured_step_s = std::max(comparison.measured_step_s, site_s);
    const plan::SitePlan& site = plan.sites[i];
    for (size_t rank = 0; rank < site.devices.size(); ++rank) {
      RankComparison one;
      one.site = site.name;
      one.rank = static_cast<int>(rank);
      one.device = site.devices[rank].device;
      one.predicted = predicted[i][rank];
      one.measured = mean_parts(steps, rank);
      one.predicted_memory_bytes = site.devices[rank].predicted_memory.total();
      for (const train::StepReport& step : steps) {
        const train::RankReport& report = step.ranks.at(rank);
        one.late_ratio += report.late_s / (site_s * static_cast<double>(steps.size()));
        one.peak_memory_bytes =
            std::max(one.peak_memory_bytes, static_cast<double>(report.peak_memory_bytes));
      }
      comparison.predicted_step_s = std::max(comparison.predicted_step_s, one.predicted.sum_s());
      comparison.ranks.push_back(std::move(one));
    }
  }
  return comparison;
}

std::string to_table(const Comparison& comparison) {
  std::string text =
      fmt::format("{} steps, after {} that do not count\n", comparison.steps, kWarmUpSteps) +
      table_of_parts(comparison) + "\n" + table_of_ranks(comparison);
  if (comparison.late_ratio() > kLateRatioMax) {
    text += fmt::format(
        "not to be trusted: the host was late for a chip's clock by {:.0f} % of the step; it "
        "computes something else, or emulation.slowdown is too small\n",
        100 * comparison.late_ratio());
  }
  return text;
}

std::string to_json(const Comparison& comparison) {
  nlohmann::json json = {
      {"steps", comparison.steps},
      {"step", pair_json(comparison.predicted_step_s, comparison.measured_step_s)},
      {"parts", parts_json(comparison.mean_predicted(), comparison.mean_measured())},
      {"late_ratio", comparison.late_ratio()},
      {"is_trusted", comparison.late_ratio() <= kLateRatioMax},
      {"ranks", nlohmann::json::array()}};
  for (const RankComparison& rank : comparison.ranks) {
    json["ranks"].push_back(
        {{"site", rank.site},
         {"rank", rank.rank},
         {"device", rank.device},
         {"parts", parts_json(rank.predicted, rank.measured)},
         {"late_ratio", rank.late_ratio},
         {"memory",
          {{"predicted_bytes", rank.predicted_memory_bytes},
           {"peak_bytes", rank.peak_memory_bytes},
           {"off_percent", percent_off(rank.predicted_memory_bytes, rank.peak_memory_bytes)}}}});
  }
  return json.dump(1);
}

}  // namespace pelago::cli
