#include "train/messages.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/text/json.h"

namespace pelago::train {

namespace {

using nlohmann::json;

json parse(const std::string& text, const char* what) {
  try {
    return parse_json(text);
  } catch (const json::exception& error) {
    fail("{}: not JSON: {}", what, error.what());
  }
}

/// JSON has no NaN: nlohmann writes it as null, and null comes back as NaN.
double number(const json& value) {
  return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

/// Clocks tell no more, and a thin line carries a report of every step: 1.760312 for
/// 1.7603120803833008.
double microseconds(double seconds) { return std::round(seconds * 1e6) / 1e6; }

json rank_to_json(const RankReport& rank) {
  return {{"device", rank.device},
          {"tokens", rank.tokens},
          {"compute_s", microseconds(rank.compute_s)},
          {"wait_stages_s", microseconds(rank.wait_stages_s)},
          {"wait_ranks_s", microseconds(rank.wait_ranks_s)},
          {"late_s", microseconds(rank.late_s)},
          {"host_busy_s", microseconds(rank.host_busy_s)},
          {"peak_memory_bytes", rank.peak_memory_bytes},
          {"parts_s",
           {microseconds(rank.parts.forward_s),
            microseconds(rank.parts.backward_s),
            microseconds(rank.parts.bubble_s),
            microseconds(rank.parts.reduce_s),
            microseconds(rank.parts.optimizer_s)}}};
}

RankReport rank_from_json(const json& value) {
  RankReport rank;
  value.at("device").get_to(rank.device);
  value.at("tokens").get_to(rank.tokens);
  value.at("compute_s").get_to(rank.compute_s);
  value.at("wait_stages_s").get_to(rank.wait_stages_s);
  value.at("wait_ranks_s").get_to(rank.wait_ranks_s);
  value.at("late_s").get_to(rank.late_s);
  value.at("host_busy_s").get_to(rank.host_busy_s);
  value.at("peak_memory_bytes").get_to(rank.peak_memory_bytes);
  const auto parts = value.at("parts_s").get<std::array<double, 5>>();
  rank.parts = {parts[0], parts[1], parts[2], parts[3], parts[4]};
  return rank;
}

}  // namespace

int64_t ExchangeSchedule::num_regular() const {
  if (interval() == 0 || num_steps < overlap_steps) return 0;
  return (num_steps - overlap_steps) / interval();
}

int64_t ExchangeSchedule::snapshot_after(int64_t completed_steps) const {
  if (interval() == 0 || completed_steps <= 0 || completed_steps % interval() != 0) return -1;
  const int64_t exchange_idx = completed_steps / interval() - 1;
  return exchange_idx < num_regular() ? exchange_idx : -1;
}

int64_t ExchangeSchedule::merge_after(int64_t completed_steps) const {
  return snapshot_after(completed_steps - overlap_steps);
}

bool ExchangeSchedule::is_quiet(int64_t completed_steps) const {
  if (interval() == 0 || completed_steps < interval()) return true;
  const int64_t exchange_idx = completed_steps / interval() - 1;
  return exchange_idx >= num_regular() || completed_steps % interval() >= overlap_steps;
}

bool ExchangeSchedule::is_checkpoint_step(int64_t completed_steps, int64_t every_steps) const {
  if (every_steps <= 0 || completed_steps <= 0 || !is_quiet(completed_steps)) return false;
  int64_t quiet_before = completed_steps - 1;
  while (!is_quiet(quiet_before)) --quiet_before;  // step 0 is quiet
  return completed_steps / every_steps > quiet_before / every_steps;
}

int64_t ExchangeSchedule::first_step_after(int64_t exchange_idx) const {
  if (interval() == 0 || exchange_idx < 0) return 0;
  return std::min((exchange_idx + 1) * interval() + overlap_steps, num_steps);
}

std::string to_json(const StepReport& report) {
  json value = {{"site", report.site},
                {"step", report.step},
                {"loss", report.loss},
                {"grad_norm", report.grad_norm},
                {"lr", report.lr},
                {"tokens", report.tokens},
                {"step_s", microseconds(report.step_s)},
                {"wait_line_s", microseconds(report.wait_line_s)},
                {"reduce_s", microseconds(report.reduce_s)},
                {"skipped", report.skipped},
                {"left_out", report.left_out},
                {"ranks", json::array()}};
  for (const RankReport& rank : report.ranks) value["ranks"].push_back(rank_to_json(rank));
  return value.dump();
}

std::string to_json(const EvaluationReport& report) {
  return json({{"site", report.site},
               {"step", report.step},
               {"loss", report.loss},
               {"bits_per_byte", report.bits_per_byte},
               {"tokens", report.tokens}})
      .dump();
}

StepReport step_report_from_json(const std::string& text) {
  const json value = parse(text, "step report");
  StepReport report;
  try {
    value.at("site").get_to(report.site);
    value.at("step").get_to(report.step);
    report.loss = number(value.at("loss"));
    report.grad_norm = number(value.at("grad_norm"));
    value.at("lr").get_to(report.lr);
    value.at("tokens").get_to(report.tokens);
    value.at("step_s").get_to(report.step_s);
    value.at("wait_line_s").get_to(report.wait_line_s);
    value.at("reduce_s").get_to(report.reduce_s);
    value.at("skipped").get_to(report.skipped);
    report.left_out = value.value("left_out", int64_t{0});
    for (const json& rank : value.at("ranks")) report.ranks.push_back(rank_from_json(rank));
  } catch (const json::exception& error) {
    fail("step report: {}", error.what());
  }
  return report;
}

EvaluationReport evaluation_report_from_json(const std::string& text) {
  const json value = parse(text, "evaluation report");
  EvaluationReport report;
  try {
    value.at("site").get_to(report.site);
    value.at("step").get_to(report.step);
    report.loss = number(value.at("loss"));
    report.bits_per_byte = number(value.at("bits_per_byte"));
    value.at("tokens").get_to(report.tokens);
  } catch (const json::exception& error) {
    fail("evaluation report: {}", error.what());
  }
  return report;
}

}  // namespace pelago::train
