#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "plan/across/joint.h"
#include "plan/plan.h"

namespace pelago::plan {

namespace {

constexpr double kMib = 1024.0 * 1024.0;
constexpr double kGib = 1024.0 * kMib;

/// Cells in columns; every column is as wide as its widest cell. Words go left, figures right.
class Columns {
 public:
  explicit Columns(std::vector<std::string> head) { rows_.push_back(std::move(head)); }
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  void add_rule() { rows_.emplace_back(); }

  std::string text(size_t num_word_columns) const {
    std::vector<size_t> widths(rows_.front().size(), 0);
    for (const auto& row : rows_) {
      for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    }
    size_t width = 2 * (widths.size() - 1);
    for (const size_t column : widths) width += column;
    std::string text;
    for (const auto& row : rows_) {
      std::string line = row.empty() ? std::string(width, '-') : "";
      for (size_t i = 0; i < row.size(); ++i) {
        const bool is_word = i < num_word_columns || i + 1 == row.size();
        line += is_word ? fmt::format("{:<{}}", row[i], widths[i])
                        : fmt::format("{:>{}}", row[i], widths[i]);
        line += "  ";
      }
      line.erase(line.find_last_not_of(' ') + 1);
      text += line + "\n";
    }
    return text;
  }

 private:
  std::vector<std::vector<std::string>> rows_;
};

/// 41234 as "41,234".
std::string grouped(double value) {
  std::string digits = fmt::format("{:.0f}", value);
  for (size_t i = digits.size(); i > 3;) digits.insert(i -= 3, 1, ',');
  return digits;
}

std::string seconds(double value) {
  return value < 1 ? fmt::format("{:.1f} ms", 1e3 * value) : fmt::format("{:.3f} s", value);
}

std::string duration(double value_s) {
  if (value_s < 120) return fmt::format("{:.0f} s", value_s);
  if (value_s < 7200) return fmt::format("{:.1f} min", value_s / 60);
  if (value_s < 172800) return fmt::format("{:.1f} h", value_s / 3600);
  return fmt::format("{:.1f} days", value_s / 86400);
}

std::string size_text(double bytes) {
  return bytes < kGib ? fmt::format("{:.1f} MiB", bytes / kMib)
                      : fmt::format("{:.2f} GiB", bytes / kGib);
}

double slowest_step_s(const Plan& plan) {
  double step_s = 0;
  for (const SitePlan& site : plan.sites) step_s = std::max(step_s, site.predicted_step_s);
  return step_s;
}

std::string share(int64_t sequences, const Plan& plan) {
  return fmt::format(
      "{} ({:.0f} %)",
      sequences,
      100.0 * static_cast<double>(sequences) / static_cast<double>(plan.batch_sequences));
}

/// "3", or "0-3,8" for the ranks of a wide stage.
std::string rank_list(const std::vector<int>& ranks) {
  std::string list;
  for (size_t i = 0; i < ranks.size();) {
    size_t last = i;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) ++last;
    list += fmt::format("{}{}", list.empty() ? "" : ",", ranks[i]);
    if (last > i) list += fmt::format("-{}", ranks[last]);
    i = last + 1;
  }
  return list;
}

bool is_alike(const SitePlan& site, const PipelinePlan& a, const PipelinePlan& b) {
  if (a.sequences != b.sequences || a.microbatch != b.microbatch ||
      a.stages.size() != b.stages.size()) {
    return false;
  }
  for (size_t i = 0; i < a.stages.size(); ++i) {
    const StagePlan& one = a.stages[i];
    const StagePlan& other = b.stages[i];
    const auto device = [&](const StagePlan& stage) {
      return kind_of_device(site.devices[static_cast<size_t>(stage.ranks.front())].device);
    };
    if (one.first_block != other.first_block || one.last_block != other.last_block ||
        one.recompute != other.recompute || one.ranks.size() != other.ranks.size() ||
        device(one) != device(other)) {
      return false;
    }
  }
  return true;
}

/// The share of a pipeline's devices' time in which they wait for each other.
double bubble_of(const SitePlan& site, const PipelinePlan& pipeline) {
  double busy_s = 0, all_s = 0;
  for (const StagePlan& stage : pipeline.stages) {
    busy_s += site.devices[static_cast<size_t>(stage.ranks.front())].predicted_step_s;
    all_s += pipeline.predicted_step_s;
  }
  return all_s > 0 ? std::max(0.0, 1 - busy_s / all_s) : 0;
}

std::vector<std::string> stage_row(const SitePlan& site,
                                   const PipelinePlan& pipeline,
                                   size_t stage_idx) {
  const StagePlan& stage = pipeline.stages[stage_idx];
  const DevicePlan& device = site.devices[static_cast<size_t>(stage.ranks.front())];
  const MemoryPlan& memory = device.predicted_memory;
  return {device.device,
          rank_list(stage.ranks),
          fmt::format(
              "{}-{}{}", stage.first_block, stage.last_block - 1, stage.recompute ? " again" : ""),
          seconds(device.predicted_step_s),
          grouped(device.predicted_tokens_s * static_cast<double>(stage.ranks.size())),
          size_text(memory.weights + memory.gradients),
          size_text(memory.optimizer),
          size_text(memory.activations + memory.buffers),
          device.memory_bytes == 0
              ? size_text(memory.total())
              : fmt::format("{} of {}", size_text(memory.total()), size_text(device.memory_bytes))};
}

void add_site(const Plan& plan, const SitePlan& site, Columns& columns) {
  for (size_t i = 0; i < site.pipelines.size();) {
    const PipelinePlan& pipeline = site.pipelines[i];
    size_t next = i + 1;
    while (next < site.pipelines.size() && is_alike(site, pipeline, site.pipelines[next])) ++next;
    const size_t count = next - i;
    for (size_t k = 0; k < pipeline.stages.size(); ++k) {
      std::vector<std::string> row = stage_row(site, pipeline, k);
      const bool is_first = k == 0;
      const std::string name =
          count > 1 ? fmt::format("{}..{} ({} alike)", i, next - 1, count) : fmt::format("{}", i);
      row.insert(
          row.begin(),
          {i == 0 && is_first ? site.name : "",
           is_first ? name : "",
           is_first ? share(pipeline.sequences, plan) : "",
           is_first ? fmt::format("{} x {}", pipeline.num_microbatches(), pipeline.microbatch)
                    : ""});
      columns.add(std::move(row));
    }
    i = next;
  }
  const double tokens = static_cast<double>(site.batch_sequences * plan.sequence_length);
  columns.add({"",
               is_joint(plan) ? "together" : "the site",
               share(site.batch_sequences, plan),
               "",
               "",
               "",
               "",
               seconds(site.predicted_step_s),
               grouped(tokens / site.predicted_step_s),
               "",
               "",
               "",
               ""});
  columns.add_rule();
}

std::string device_table(const Plan& plan) {
  Columns columns({"site",
                   "pipeline",
                   "sequences",
                   "microbatches",
                   "device",
                   "rank",
                   "blocks",
                   "computes",
                   "tokens/s",
                   "weights",
                   "optimizer",
                   "working",
                   "memory"});
  if (is_joint(plan)) {
    SitePlan joint = joint_site(plan, 0);
    joint.name = "all";
    for (size_t rank = 0; rank < joint.devices.size(); ++rank) {
      const size_t site = site_of_joint_rank(plan, static_cast<int>(rank));
      std::string& device = joint.devices[rank].device;
      device = fmt::format("{} at {}", device, plan.sites[site].name);
    }
    add_site(plan, joint, columns);
    return columns.text(/*num_word_columns=*/7);
  }
  for (const SitePlan& site : plan.sites) add_site(plan, site, columns);
  columns.add({"all",
               "",
               fmt::format("{} (100 %)", plan.batch_sequences),
               "",
               "",
               "",
               "",
               seconds(slowest_step_s(plan)),
               grouped(plan.predicted_tokens_s),
               "",
               "",
               "",
               ""});
  return columns.text(/*num_word_columns=*/7);
}

std::string site_lines(const Plan& plan) {
  std::string text;
  for (const SitePlan& site : plan.sites) {
    double bubble = 0;
    for (const PipelinePlan& pipeline : site.pipelines) {
      bubble = std::max(bubble, bubble_of(site, pipeline));
    }
    text += fmt::format(
        "{:<10} bound by {}{}{}\n",
        site.name,
        site.bound_by,
        bubble > 0.005
            ? fmt::format("; stages wait up to {:.0f} % of a pipeline's time", 100 * bubble)
            : "",
        site.slice_optimizer ? "; the optimizer's state is cut over pipelines" : "");
  }
  return text;
}

/// Which microbatches are under way to cover the lines, and what the lines carry.
std::string across_lines(const Plan& plan) {
  std::string depths;
  for (size_t i = 0; i < plan.pipelines.front().stages.size(); ++i) {
    depths += fmt::format("{}{}", i == 0 ? "" : ", ", in_flight(plan.pipelines.front(), i));
  }
  std::string text = fmt::format(
      "across     stages in several sites, in step; activations {}, at most {} microbatches under "
      "way, by stage\n",
      plan.exchange.activation_bits == 32
          ? "as they are"
          : fmt::format("in {} bits", plan.exchange.activation_bits),
      depths);
  text += plan.predicted_rounds_tokens_s > 0
              ? fmt::format("by rounds  {:.0f} tokens/s, each site with all of the model\n",
                            plan.predicted_rounds_tokens_s)
              : "by rounds  not possible: there is a site that cannot hold the model\n";
  text +=
      fmt::format("near       the same stages in one site: {:.0f} tokens/s; lines cost {:.1f} %\n",
                  plan.predicted_tokens_s / (1 - plan.predicted_line_share),
                  100 * plan.predicted_line_share);
  for (const FleetLink& link : plan.links) {
    text +=
        fmt::format("line       {} - {}: {:.0f} of {:g} Mbit/s each way ({:.1f} %), {:g} ms{}\n",
                    link.from,
                    link.to,
                    plan.predicted_line_mbit_s,
                    link.bandwidth_mbit_s,
                    100 * plan.predicted_line_mbit_s / link.bandwidth_mbit_s,
                    link.rtt_ms,
                    link.emulate ? ", emulated" : "");
  }
  return text;
}

std::string exchange_lines(const Plan& plan) {
  const SitesConfig& exchange = plan.exchange;
  if (is_joint(plan)) return across_lines(plan);
  if (exchange.fragments == 0) return "exchange   none: a single site\n";
  std::string text = fmt::format(
      "exchange   every {} steps one of {} fragments, merged {} step{} later; {} bits, alpha {:g}, "
      "outer lr {:g}\n",
      exchange.inner_steps / exchange.fragments,
      exchange.fragments,
      exchange.overlap_steps,
      exchange.overlap_steps == 1 ? "" : "s",
      exchange.delta_bits,
      exchange.merge_alpha,
      exchange.outer_lr);
  const double per_link =
      plan.predicted_line_mbit_s / std::max(1.0, static_cast<double>(plan.sites.size()) - 1);
  for (const FleetLink& link : plan.links) {
    text +=
        fmt::format("line       {} - {}: {:.1f} of {:g} Mbit/s each way ({:.1f} %), {:g} ms{}\n",
                    link.from,
                    link.to,
                    per_link,
                    link.bandwidth_mbit_s,
                    100 * per_link / link.bandwidth_mbit_s,
                    link.rtt_ms,
                    link.emulate ? ", emulated" : "");
  }
  return text;
}

std::string emulation_line(const Plan& plan) {
  if (plan.emulation_slowdown == 0) return "";
  return fmt::format(
      "emulation  {:g} times slower than the chips; {}\n",
      plan.emulation_slowdown,
      plan.host_load > 0
          ? fmt::format("keeps {:.2f} of {:g} processors busy", plan.host_load, plan.host_cores)
          : "load of this machine not measured");
}

/// How good the plan is, how sure, what it draws and costs, as far as that is known.
std::string figure_lines(const Plan& plan) {
  std::string text;
  if (plan.bound_tokens_s > 0) {
    text += fmt::format(
        "bound      {} tokens/s if every chip computed all the time: this plan {:.1f} %\n",
        grouped(plan.bound_tokens_s),
        100 * plan.predicted_tokens_s / plan.bound_tokens_s);
  }
  if (plan.predicted_tokens_s_hi > 0) {
    text += fmt::format(
        "interval   {} to {} tokens/s: published figures of some chips differ, or are the "
        "press's\n",
        grouped(plan.predicted_tokens_s_lo),
        grouped(plan.predicted_tokens_s_hi));
  }
  if (plan.predicted_power_w > 0) {
    text += fmt::format("power      {:.1f} kW of chips, {:.3g} tokens a joule\n",
                        plan.predicted_power_w / 1e3,
                        plan.predicted_tokens_s / plan.predicted_power_w);
  }
  if (plan.predicted_price_hour > 0) {
    text += fmt::format("price      {:.2f} an hour, {:.4g} a million tokens\n",
                        plan.predicted_price_hour,
                        plan.predicted_price_hour / 3600 / plan.predicted_tokens_s * 1e6);
  }
  return text;
}

bool is_measured(const Plan& plan) {
  for (const SitePlan& site : plan.sites) {
    for (const DevicePlan& device : site.devices) {
      if (!device.measured) return false;
    }
  }
  return true;
}

}  // namespace

std::string to_table(const Plan& plan) {
  std::string text = fmt::format("plan of \"{}\": {:.1f} M parameters, sequences of {} tokens\n\n",
                                 plan.job_name,
                                 static_cast<double>(plan.num_parameters) / 1e6,
                                 plan.sequence_length);
  text += device_table(plan) + "\n" + site_lines(plan);
  text += fmt::format(
      "run        {} steps of {} tokens, {} in all, about {}\n",
      grouped(static_cast<double>(plan.steps)),
      grouped(static_cast<double>(plan.batch_sequences * plan.sequence_length)),
      grouped(static_cast<double>(plan.steps * plan.batch_sequences * plan.sequence_length)),
      duration(static_cast<double>(plan.steps) * slowest_step_s(plan)));
  text += figure_lines(plan);
  text += exchange_lines(plan) + emulation_line(plan);
  if (!is_measured(plan)) {
    text += "paces      from the catalogue, not measured: `pelago probe` makes them exact\n";
  }
  for (const std::string& warning : plan.warnings) text += fmt::format("warning    {}\n", warning);
  return text;
}

}  // namespace pelago::plan
