#include "plan/forecast/scenario.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <set>

#include "base/config.h"
#include "base/error.h"
#include "plan/forecast/calendar.h"

namespace pelago::plan {

namespace {

class Fields {
 public:
  explicit Fields(const ConfigTable& table) : table_(table) {}

  template <typename T>
  void at_least(const char* key, T& out, double lo) const {
    table_.read(key, out);
    if (static_cast<double>(out) >= lo) return;
    fail_usage(
        "{}: {} = {:g} must be {:g} or more", table_.where(), key, static_cast<double>(out), lo);
  }
  void above_zero(const char* key, double& out) const {
    if (!table_.has(key) && out <= 0) fail_usage("{}: {} is missing", table_.where(), key);
    table_.read(key, out);
    if (out <= 0) fail_usage("{}: {} = {:g} must be above 0", table_.where(), key, out);
  }
  void range(const char* key, Range& out, double lo, double hi) const {
    std::vector<double> values;
    table_.read(key, values);
    if (!table_.has(key)) return;
    if (values.empty() || values.size() > 2) {
      fail_usage("{}: {} must be a number or [lo, hi]", table_.where(), key);
    }
    out = {values.front(), values.back()};
    if (out.lo > out.hi) {
      fail_usage("{}: {} = [{:g}, {:g}] is written backwards", table_.where(), key, out.lo, out.hi);
    }
    if (out.lo < lo || out.hi > hi) {
      fail_usage("{}: {} = [{:g}, {:g}] must lie between {:g} and {:g}",
                 table_.where(),
                 key,
                 out.lo,
                 out.hi,
                 lo,
                 hi);
    }
  }
  /// Leaves out alone where the key is absent.
  void day(const char* key, int& out) const {
    std::string text;
    table_.read(key, text);
    if (table_.has(key)) out = parse_day(text, fmt::format("{}: {}", table_.where(), key));
  }

 private:
  const ConfigTable& table_;
};

ChipOrder read_order(const ConfigTable& table,
                     const Scenario& scenario,
                     const chips::Catalogue& catalogue) {
  const Fields fields(table);
  ChipOrder order;
  std::string chip;
  table.read("chip", chip);
  if (chip.empty()) fail_usage("{}: chip is missing: which kind?", table.where());
  try {
    order.chip = &catalogue.find(chip);
  } catch (const Failure& failure) {
    fail_usage("{}: {}", table.where(), failure.what());
  }
  table.read("site", order.site);
  fields.above_zero("count", order.count);
  order.delivered = 0;
  fields.at_least("delivered", order.delivered, 0);
  if (order.delivered > order.count) {
    fail_usage("{}: delivered = {:g} is more than count = {:g}",
               table.where(),
               order.delivered,
               order.count);
  }
  order.first_day = scenario.from_day;
  fields.day("first", order.first_day);
  order.last_day = order.first_day;
  fields.day("last", order.last_day);
  if (order.delivered < order.count && !table.has("first") && !table.has("last")) {
    fail_usage("{}: {:g} of {:g} have not come: say when, with first = \"...\" and last = \"...\"",
               table.where(),
               order.count - order.delivered,
               order.count);
  }
  if (order.last_day < order.first_day) {
    fail_usage("{}: last = {} lies before first = {}",
               table.where(),
               day_text(order.last_day),
               day_text(order.first_day));
  }
  fields.range("delay_days", order.delay_days, 0, 3650);
  fields.range("arrives", order.arrives, 0, 1);
  fields.range("failures_a_year", order.failures_a_year, 0, 10);
  fields.at_least("price", order.price, 0);
  fields.day("banned_from", order.banned_from);
  if (order.chip->training_gemm_tflops() <= 0) {
    fail_usage(
        "{}: nobody has said how fast {} is in bf16 or fp16: it cannot be counted on for training",
        table.where(),
        order.chip->id);
  }
  return order;
}

WantedModel read_wanted(const ConfigTable& table, const Scenario& scenario) {
  const Fields fields(table);
  WantedModel model;
  table.read("name", model.name);
  if (model.name.empty()) fail_usage("{}: name is missing", table.where());
  fields.above_zero("parameters", model.parameters);
  fields.at_least("active_parameters", model.active_parameters, 0);
  if (model.active_parameters > model.parameters) {
    fail_usage("{}: active_parameters = {:g} are more than parameters = {:g}",
               table.where(),
               model.active_parameters,
               model.parameters);
  }
  fields.above_zero("tokens", model.tokens);
  fields.day("by", model.by_day);
  if (model.by_day >= 0 && model.by_day < scenario.from_day) {
    fail_usage("{}: by = {} lies before from = {}",
               table.where(),
               day_text(model.by_day),
               day_text(scenario.from_day));
  }
  return model;
}

void read_bans(const ConfigTable& file, Scenario& scenario) {
  for (const ConfigTable& table : file.tables("ban")) {
    std::string chip, vendor;
    int from = -1;
    table.read("chip", chip);
    table.read("vendor", vendor);
    Fields(table).day("from", from);
    if (from < 0 || chip.empty() == vendor.empty()) {
      fail_usage("{}: a ban has from = \"YYYY-MM-DD\" and either chip or vendor", table.where());
    }
    bool hits = false;
    for (ChipOrder& order : scenario.orders) {
      const auto& names = order.chip->aliases;
      const bool is_chip =
          order.chip->id == chip || std::find(names.begin(), names.end(), chip) != names.end();
      if (!is_chip && order.chip->vendor != vendor) continue;
      hits = true;
      order.banned_from = order.banned_from < 0 ? from : std::min(order.banned_from, from);
    }
    if (!hits) fail_usage("{}: no order is of {}", table.where(), chip.empty() ? vendor : chip);
  }
}

void read_sites(const ConfigTable& file, Scenario& scenario) {
  std::set<std::string> sites;
  for (const ChipOrder& order : scenario.orders) sites.insert(order.site);
  std::set<std::pair<std::string, std::string>> joined;
  for (const ConfigTable& table : file.tables("line")) {
    std::vector<std::string> between;
    table.read("between", between);
    if (between.size() != 2 || !sites.contains(between[0]) || !sites.contains(between[1])) {
      fail_usage(
          "{}: between must name two of the sites {}", table.where(), fmt::join(sites, ", "));
    }
    ForecastLine line{between[0], between[1]};
    Fields(table).above_zero("bandwidth_mbit_s", line.bandwidth_mbit_s);
    Fields(table).at_least("rtt_ms", line.rtt_ms, 0);
    joined.insert({line.from, line.to});
    joined.insert({line.to, line.from});
    scenario.lines.push_back(std::move(line));
  }
  for (const std::string& a : sites) {
    for (const std::string& b : sites) {
      if (a < b && !joined.contains({a, b})) {
        fail_usage("{}: no line joins the sites {} and {}: add [[line]] between = [\"{}\", \"{}\"]",
                   file.where(),
                   a,
                   b,
                   a,
                   b);
      }
    }
  }
  const ConfigTable exchange = file.table("exchange");
  const Fields fields(exchange);
  fields.above_zero("batch_tokens", scenario.batch_tokens);
  fields.at_least("inner_steps", scenario.inner_steps, 1);
  fields.at_least("fragments", scenario.fragments, 1);
  fields.at_least("overlap_steps", scenario.overlap_steps, 0);
  fields.above_zero("delta_bits", scenario.delta_bits);
  if (scenario.inner_steps % scenario.fragments != 0 ||
      scenario.overlap_steps >= scenario.inner_steps) {
    fail_usage(
        "{}: inner_steps = {} must be a multiple of fragments = {} and more than overlap_steps = "
        "{}",
        exchange.where(),
        scenario.inner_steps,
        scenario.fragments,
        scenario.overlap_steps);
  }
}

void read_limits(const ConfigTable& file, Scenario& scenario) {
  const ConfigTable limits = file.table("limits"), share = file.table("efficiency"),
                    generation = file.table("generation");
  const Fields fields(limits);
  fields.at_least("power_mw", scenario.power_mw, 0);
  fields.at_least("money", scenario.money, 0);
  fields.at_least("price_kwh", scenario.price_kwh, 0);
  fields.at_least("overhead_watts", scenario.overhead_watts, 1);
  Fields(share).range("mixing", scenario.mixing, 0.01, 1.5);
  Fields(share).range("goodput", scenario.goodput, 0.01, 1);
  Fields(generation).at_least("growth", scenario.generation_growth, 1);
  Fields(generation).above_zero("months", scenario.generation_months);
}

void read_serving(const ConfigTable& table, Scenario& scenario) {
  const Fields fields(table);
  ServingWish& wish = scenario.serving;
  fields.at_least("users", wish.users, 0);
  fields.at_least("requests_a_day", wish.requests_a_day, 0);
  fields.above_zero("prompt_tokens", wish.prompt_tokens);
  fields.above_zero("answer_tokens", wish.answer_tokens);
  fields.above_zero("token_ms", wish.token_ms);
  fields.above_zero("first_token_s", wish.first_token_s);
  fields.at_least("peak_ratio", wish.peak_ratio, 1);
  fields.above_zero("weight_bits", wish.weight_bits);
  table.read("model", wish.model);
  if (wish.model.empty() && !scenario.models.empty()) wish.model = scenario.models.front().name;
  for (const WantedModel& model : scenario.models) {
    if (model.name == wish.model) return;
  }
  if (wish.users > 0)
    fail_usage("{}: model = \"{}\" is none of the models", table.where(), wish.model);
}

}  // namespace

int parse_day(std::string_view text, const std::string& where) {
  int year = 0, month = 0, day = 0, used = 0;
  const std::string copy(text);
  const bool is_read =
      copy.size() == 10 &&
      std::sscanf(copy.c_str(), "%4d-%2d-%2d%n", &year, &month, &day, &used) == 3 && used == 10;
  const std::chrono::year_month_day date{
      std::chrono::year(year),
      std::chrono::month(static_cast<unsigned>(std::max(month, 0))),
      std::chrono::day(static_cast<unsigned>(std::max(day, 0)))};
  if (!is_read || !date.ok() || year < 1970) {
    fail_usage("{} = \"{}\" must be a date such as \"2026-10-01\"", where, text);
  }
  return static_cast<int>(std::chrono::sys_days(date).time_since_epoch().count());
}

std::string day_text(double day) {
  const std::chrono::year_month_day date{
      std::chrono::sys_days(std::chrono::days(static_cast<int>(day)))};
  return fmt::format("{:04}-{:02}-{:02}",
                     static_cast<int>(date.year()),
                     static_cast<unsigned>(date.month()),
                     static_cast<unsigned>(date.day()));
}

bool is_press_only(const chips::Chip& chip) {
  if (chip.measured_gemm_bf16_tflops || chip.measured_gemm_fp16_tflops) return false;
  const auto says = [&chip](const char* word) {
    return chip.peak_confidence.find(word) != std::string::npos ||
           chip.confidence.find(word) != std::string::npos;
  };
  return says("press") || says("estimate") || says("not found") || says("low") || says("analyst");
}

Scenario read_scenario(const std::filesystem::path& path,
                       const chips::Catalogue& catalogue,
                       const std::vector<std::string>& overrides) {
  ConfigTable file = ConfigTable::read_file(path);
  for (const std::string& assignment : overrides) file.set(assignment);
  Scenario scenario;
  scenario.name = path.stem().string();
  file.read("name", scenario.name);
  file.read("currency", scenario.currency);
  const Fields fields(file);
  for (const char* key : {"from", "until"}) {
    if (!file.has(key))
      fail_usage("{}: {} is missing: a date such as \"2026-10-01\"", file.where(), key);
  }
  fields.day("from", scenario.from_day);
  fields.day("until", scenario.until_day);
  if (scenario.until_day <= scenario.from_day) {
    fail_usage("{}: until = {} must lie after from = {}",
               file.where(),
               day_text(scenario.until_day),
               day_text(scenario.from_day));
  }
  if (scenario.until_day - scenario.from_day > 7305)
    fail_usage("{}: from {} until {} are more than 20 years",
               file.where(),
               day_text(scenario.from_day),
               day_text(scenario.until_day));
  fields.at_least("trials", scenario.trials, 1);
  if (scenario.trials > 100'000)
    fail_usage("{}: trials = {} must be at most 100000", file.where(), scenario.trials);
  for (const ConfigTable& table : file.tables("order")) {
    scenario.orders.push_back(read_order(table, scenario, catalogue));
  }
  if (scenario.orders.empty())
    fail_usage("{}: there is no [[order]]: which chips are there, or will come?", file.where());
  for (const ConfigTable& table : file.tables("model")) {
    scenario.models.push_back(read_wanted(table, scenario));
  }
  if (scenario.models.empty())
    fail_usage("{}: there is no [[model]]: what is to be trained?", file.where());
  read_bans(file, scenario);
  read_sites(file, scenario);
  read_limits(file, scenario);
  read_serving(file.table("serving"), scenario);
  file.refuse_unknown();
  std::set<std::string> named;
  for (const ChipOrder& order : scenario.orders) {
    if (is_press_only(*order.chip) && named.insert(order.chip->id).second) {
      scenario.warnings.push_back(
          fmt::format("{} is known by press reports and estimates only (\"{}\"): its pace is taken "
                      "as 0.7 to 1.1 "
                      "of what they say",
                      order.chip->name,
                      order.chip->peak_confidence));
    }
    if (!order.chip->train_mfu && named.insert(order.chip->id + " mfu").second) {
      scenario.warnings.push_back(
          fmt::format("nobody has published what share of its peak {} reaches in training: 0.25 to "
                      "0.45 is taken",
                      order.chip->name));
    }
  }
  return scenario;
}

}  // namespace pelago::plan
