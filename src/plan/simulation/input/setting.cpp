#include "plan/simulation/input/setting.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/config.h"
#include "base/error.h"

namespace pelago::plan {

namespace {

/// Reads a number and refuses it outside [lo, hi].
class Reader {
 public:
  explicit Reader(const ConfigTable& table) : table_(table) {}

  template <typename T>
  void within(const char* key, T& out, double lo, double hi, const char* unit = "") const {
    table_.read(key, out);
    const auto value = static_cast<double>(out);
    if (value >= lo && value <= hi) return;
    fail_usage("{}: {} = {:g}{}{} must be between {:g} and {:g}",
               table_.where(),
               key,
               value,
               *unit == '\0' ? "" : " ",
               unit,
               lo,
               hi);
  }
  void one_of(const char* key, std::string& out, const std::vector<std::string>& allowed) const {
    table_.read(key, out);
    if (std::find(allowed.begin(), allowed.end(), out) != allowed.end()) return;
    fail_usage(
        "{}: {} = \"{}\" must be one of {}", table_.where(), key, out, fmt::join(allowed, ", "));
  }

 private:
  const ConfigTable& table_;
};

constexpr double kMany = 1e15;
constexpr double kHour = 3600;

void read_model(const ConfigTable& table, Setting& setting) {
  const Reader read(table);
  if (!table.has("parameters"))
    fail_usage("{}: parameters is missing: how large is the model?", table.where());
  read.within("parameters", setting.parameters, 1, kMany);
  read.within("layers", setting.layers, 1, 10'000);
  read.within("embedding_parameters", setting.embedding_parameters, 0, setting.parameters);
}

void read_learners(const ConfigTable& table, Setting& setting) {
  const Reader read(table);
  if (!table.has("step_s"))
    fail_usage("{}: step_s is missing: how long does a step compute?", table.where());
  read.within("count", setting.learners, 1, 4096);
  read.within("chips", setting.chips, 1, 1e9);
  if (table.has("chips_together")) {
    double together = 1;
    read.within("chips_together", together, 1, 1e12);
    setting.chips = together / static_cast<double>(setting.learners);
  }
  read.within("step_s", setting.step_s, 1e-9, 1e7, "s");
  read.within("tokens", setting.tokens, 0, kMany);
  read.within("forward_share", setting.forward_share, 0.01, 0.99);
}

void read_exchange(const ConfigTable& table, Setting& setting) {
  const Reader read(table);
  read.one_of("method", setting.method, {"streaming", "diloco", "data-parallel", "none"});
  read.within("inner_steps", setting.inner_steps, 1, 1'000'000);
  read.within("fragments", setting.fragments, 0, 100'000);
  read.within("fragment_layers", setting.fragment_layers, 1, 10'000);
  table.read("embedding_fragment", setting.embedding_fragment);
  read.within("overlap_steps", setting.overlap_steps, 0, 1'000'000);
  read.within("bits", setting.bits, 0.001, 64);
  read.one_of("pattern", setting.pattern, {"all-to-all", "ring", "all-gather"});
  read.within("codec_gb_s", setting.codec_gb_s, 0, 1e6);
  read.within("grace_s", setting.grace_s, 0.001, 1e6, "s");
}

/// Of [line] or of a [[link]], which may leave out what [line] says.
SimulatedLine read_line(const ConfigTable& table, SimulatedLine line) {
  const Reader read(table);
  double mbit_s = line.bytes_s * 8 / 1e6;
  double rtt_ms = 2e3 * line.delay_s;
  read.within("bandwidth_mbit_s", mbit_s, 1e-6, 1e12);
  read.within("rtt_ms", rtt_ms, 0, 1e6);
  read.within("loss", line.loss, 0, 0.99);
  read.within("rate_deviation", line.rate_deviation, 0, 3);
  line.bytes_s = mbit_s * 1e6 / 8;
  line.delay_s = rtt_ms / 2e3;
  return line;
}

FaultKind read_kind(const ConfigTable& table, const std::string& name, double chips_per_unit) {
  FaultKind kind;
  kind.name = name;
  const Reader read(table);
  double mtbf_h = 0, repair_h = 0;
  read.within("mtbf_h", mtbf_h, 0, kMany, "h");
  if (name == "host") read.within("chips", chips_per_unit, 1, 1e6);
  if (name != "process") read.within("repair_h", repair_h, 0, 1e6, "h");
  kind.mtbf_s = mtbf_h * kHour;
  kind.repair_s = repair_h * kHour;
  kind.chips_per_unit = chips_per_unit;
  kind.chips_lost = name == "process" || name == "site" ? 0 : chips_per_unit;
  if (name == "chip") read.within("takes_chips", kind.chips_lost, 1, 1e6);
  kind.stops_site_until_repair = name == "site";
  return kind;
}

FaultModel faults_of(const ConfigTable& table) {
  FaultModel faults;
  faults.kinds = {read_kind(table.table("process"), "process", 1),
                  read_kind(table.table("chip"), "chip", 1),
                  read_kind(table.table("host"), "host", 8),
                  read_kind(table.table("site"), "site", 0)};
  const ConfigTable line = table.table("line"), slow = table.table("slow"),
                    recovery = table.table("recovery");
  double mtbf_h = 0, repair_h = 0.1, slow_h = 0, minutes = 10;
  Reader(line).within("mtbf_h", mtbf_h, 0, kMany, "h");
  Reader(line).within("repair_h", repair_h, 0, 1e6, "h");
  faults.line_mtbf_s = mtbf_h * kHour;
  faults.line_repair_s = repair_h * kHour;
  Reader(slow).within("mtbf_h", slow_h, 0, kMany, "h");
  Reader(slow).within("minutes", minutes, 0, 1e6);
  Reader(slow).within("factor", faults.slow_factor, 1, 1000);
  Reader(slow).within("step_deviation", faults.step_deviation, 0, 1);
  faults.slow_mtbf_s = slow_h * kHour;
  faults.slow_s = minutes * 60;
  const Reader read(recovery);
  read.within("detect_s", faults.detect_s, 0, 1e6, "s");
  read.within("restart_s", faults.restart_s, 0, 1e7, "s");
  read.within("snapshot_every_steps", faults.snapshot_every_steps, 1, 1'000'000'000);
  read.within("snapshot_s", faults.snapshot_s, 0, 1e6, "s");
  read.within("spares", faults.spares, 0, 1e9);
  read.within("least_share", faults.least_share, 0, 1);
  return faults;
}

std::vector<SimulatedSite> sites_of(const ConfigTable& file, const Setting& setting) {
  SimulatedSite usual;
  usual.step_s = setting.step_s;
  usual.forward_share = setting.forward_share;
  usual.num_layers = setting.layers;
  usual.tokens = setting.tokens;
  usual.chips = setting.chips;
  std::vector<SimulatedSite> sites;
  for (const ConfigTable& table : file.tables("learner")) {
    SimulatedSite site = usual;
    site.name = fmt::format("learner-{}", sites.size());
    table.read("name", site.name);
    const Reader read(table);
    double joins_h = 0, leaves_h = -1;
    read.within("step_s", site.step_s, 1e-9, 1e7, "s");
    read.within("chips", site.chips, 1, 1e9);
    read.within("tokens", site.tokens, 0, kMany);
    read.within("joins_h", joins_h, 0, 1e6, "h");
    read.within("leaves_h", leaves_h, -1, 1e6, "h");
    if (leaves_h >= 0 && leaves_h <= joins_h) {
      fail_usage("{}: leaves_h = {:g} must be later than joins_h = {:g}",
                 table.where(),
                 leaves_h,
                 joins_h);
    }
    site.joins_at_s = joins_h * kHour;
    site.leaves_at_s = leaves_h < 0 ? -1 : leaves_h * kHour;
    for (const SimulatedSite& other : sites) {
      if (other.name == site.name)
        fail_usage("{}: name = \"{}\" is another learner's too", table.where(), site.name);
    }
    sites.push_back(std::move(site));
  }
  while (sites.size() < static_cast<size_t>(setting.learners)) {
    SimulatedSite site = usual;
    site.name = fmt::format("learner-{}", sites.size());
    sites.push_back(std::move(site));
  }
  return sites;
}

void add_lines(const ConfigTable& file, RunModel& model) {
  SimulatedLine usual;
  usual.bytes_s = 1e9 / 8;
  usual = read_line(file.table("line"), usual);
  std::map<std::pair<size_t, size_t>, SimulatedLine> lines;
  for (size_t from = 0; from < model.sites.size(); ++from) {
    for (size_t to = 0; to < model.sites.size(); ++to) {
      usual.from = from;
      usual.to = to;
      if (from != to) lines[{from, to}] = usual;
    }
  }
  const auto idx_of = [&model](const ConfigTable& table, const std::string& name) -> size_t {
    std::vector<std::string> names;
    for (size_t i = 0; i < model.sites.size(); ++i) {
      if (model.sites[i].name == name) return i;
      names.push_back(model.sites[i].name);
    }
    fail_usage("{}: no learner is called \"{}\"; there are {}",
               table.where(),
               name,
               fmt::join(names, ", "));
  };
  for (const ConfigTable& table : file.tables("link")) {
    std::vector<std::string> between;
    table.read("between", between);
    if (between.size() != 2 || between[0] == between[1]) {
      fail_usage("{}: between must name two learners", table.where());
    }
    const size_t a = idx_of(table, between[0]), b = idx_of(table, between[1]);
    for (const auto& ends : {std::pair{a, b}, std::pair{b, a}}) {
      lines[ends] = read_line(table, lines[ends]);
    }
    // What the second one sends back, where a line is not the same both ways.
    if (table.has("back_mbit_s")) {
      double back_mbit_s = 0;
      Reader(table).within("back_mbit_s", back_mbit_s, 1e-6, 1e12);
      lines[{b, a}].bytes_s = back_mbit_s * 1e6 / 8;
    }
  }
  for (const auto& [ends, line] : lines) model.lines.push_back(line);
}

}  // namespace

std::vector<ScheduledExchange> schedule_of(const Setting& setting, const std::string& where) {
  const int64_t layers = setting.layers;
  const bool is_strided = setting.method == "streaming" && setting.fragments == 0 && layers > 1;
  const double embedding = setting.embedding_parameters;
  const double bytes = setting.bits / 8;
  const double layer_bytes = (setting.parameters - embedding) / static_cast<double>(layers) * bytes;
  const auto part_of = [&](int64_t layer) { return ExchangePart{layer, layer_bytes}; };
  std::vector<ScheduledExchange> schedule;
  if (setting.method == "none") return schedule;
  if (setting.method != "streaming") {
    const int64_t period = setting.method == "diloco" ? setting.inner_steps : 1;
    ScheduledExchange all{
        period - 1, period, setting.method == "diloco" ? setting.overlap_steps : 0, {}};
    for (int64_t layer = layers - 1; layer >= 0; --layer) all.parts.push_back(part_of(layer));
    all.parts.back().bytes += embedding * bytes;
    return {all};
  }
  int64_t num_fragments = setting.fragments;
  if (is_strided) {
    if (layers % setting.fragment_layers != 0) {
      fail_usage("{}: fragment_layers = {} must divide model.layers = {}",
                 where,
                 setting.fragment_layers,
                 layers);
    }
    num_fragments = layers / setting.fragment_layers;
  }
  num_fragments = std::max<int64_t>(num_fragments, 1);
  const bool has_own = is_strided && setting.embedding_fragment;
  const int64_t count = num_fragments + (has_own ? 1 : 0);
  const int64_t interval = setting.inner_steps / count;
  if (interval < 1 || setting.overlap_steps >= setting.inner_steps) {
    fail_usage(
        "{}: inner_steps = {} is too few for {} fragments and an overlap of {} steps: take {} or "
        "more",
        where,
        setting.inner_steps,
        count,
        setting.overlap_steps,
        std::max(count, setting.overlap_steps + 1));
  }
  for (int64_t p = 0; p < count; ++p) {
    ScheduledExchange exchange{
        (p + 1) * interval - 1, setting.inner_steps, setting.overlap_steps, {}};
    for (int64_t layer = layers - 1; is_strided && layer >= 0 && p < num_fragments; --layer) {
      if (layer % num_fragments == p) exchange.parts.push_back(part_of(layer));
    }
    const double share = 1 / static_cast<double>(num_fragments);
    if (!is_strided) {
      const int64_t layer = layers == 1 ? 0 : std::min(layers - 1, p * layers / num_fragments);
      exchange.parts.push_back({layer, setting.parameters * bytes * share});
    }
    if (is_strided && has_own && p == num_fragments)
      exchange.parts.push_back({0, embedding * bytes});
    if (is_strided && !has_own && p == 0) exchange.parts.back().bytes += embedding * bytes;
    schedule.push_back(std::move(exchange));
  }
  return schedule;
}

RunModel read_setting(const std::filesystem::path& path,
                      const std::vector<std::string>& overrides) {
  ConfigTable file = ConfigTable::read_file(path);
  for (const std::string& assignment : overrides) file.set(assignment);
  if (file.has("train") || file.has("data")) {
    fail_usage(
        "{}: this is a job: say on which devices, with --fleet fleet.toml; what is simulated "
        "without a fleet is a setting, such as those of examples/simulations",
        file.where());
  }
  Setting setting;
  RunModel model;
  model.name = path.filename().string();
  file.read("name", model.name);
  read_model(file.table("model"), setting);
  read_learners(file.table("learners"), setting);
  const ConfigTable exchange = file.table("exchange");
  read_exchange(exchange, setting);
  model.sites = sites_of(file, setting);
  if (model.sites.size() > 1) model.exchange.schedule = schedule_of(setting, exchange.where());
  model.exchange.pattern = setting.pattern == "ring"         ? ExchangePattern::kRing
                           : setting.pattern == "all-gather" ? ExchangePattern::kAllGather
                                                             : ExchangePattern::kAllToAll;
  model.exchange.codec_bytes_s = setting.codec_gb_s * 1e9;
  model.exchange.state_bytes = 8 * setting.parameters;  // global weights and outer momentum, f32
  model.exchange.grace_s = setting.grace_s;
  add_lines(file, model);
  model.faults = faults_of(file.table("faults"));
  file.refuse_unknown();
  check_model(model);
  return model;
}

FaultModel read_faults(const std::filesystem::path& path) {
  const ConfigTable file = ConfigTable::read_file(path);
  FaultModel faults = faults_of(file);
  file.refuse_unknown();
  return faults;
}

}  // namespace pelago::plan
