// Forecasts: arithmetic by hand, directions that must hold, one seed one answer, bad scenarios.
#include "plan/forecast/forecast.h"

#include <doctest/doctest.h>

#include <cmath>

#include "plan/fixtures.h"
#include "plan/forecast/calendar.h"

namespace pelago::plan {
namespace {

constexpr const char* kStock = R"(
from = "2026-01-01"
until = "2028-01-01"
trials = 50
[efficiency]
goodput = 0.9
[[order]]
chip = "a100"
count = 1000
delivered = 1000
failures_a_year = 0
[[model]]
name = "7B"
parameters = 7e9
tokens = 2e12
by = "2026-03-01"
)";

Scenario scenario_of(const std::string& toml, const std::vector<std::string>& overrides = {}) {
  const TempFolder folder;
  return read_scenario(folder.write("scenario.toml", toml), catalogue(), overrides);
}

double middle_days(const std::string& toml, const std::vector<std::string>& overrides = {}) {
  const Scenario scenario = scenario_of(toml, overrides);
  return play_trial(scenario, middle_draw(scenario)).models.front().done_day - scenario.from_day;
}

}  // namespace

TEST_CASE("a model takes its FLOP over what the chips give") {
  // 6 * 7e9 * 2e12 over 1,000 A100 at 312 TFLOP/s, 0.515 of it reached, 0.9 of the time.
  const double days = 6 * 7e9 * 2e12 / (1000 * 312e12 * 0.515 * 0.9) / 86400;
  CHECK(middle_days(kStock) == doctest::Approx(days));
}

TEST_CASE("half the power trains half as fast, and failing chips slower from day to day") {
  const double all = middle_days(kStock);
  // 1,000 A100 of 400 W and half as much for what is around them.
  CHECK(middle_days(kStock, {"limits.power_mw=0.3"}) == doctest::Approx(2 * all));
  CHECK(middle_days(kStock, {"limits.money=1e-9"}) < 0);  // none to pay for power
  std::string failing = kStock;
  failing.replace(failing.find("failures_a_year = 0"), 19, "failures_a_year = 3");
  CHECK(middle_days(failing) > 1.02 * all);
}

TEST_CASE("ranges of facts make ranges of dates, and one seed has one answer") {
  const Scenario scenario = scenario_of(kStock);
  const Forecast forecast = make_forecast(scenario, 3);
  const Percentiles& done = forecast.models.front().done_day;
  CHECK(done.p10 < done.p50);
  CHECK(done.p50 < done.p90);
  CHECK(to_json(scenario, forecast) == to_json(scenario, make_forecast(scenario, 3)));
  CHECK(to_json(scenario, forecast) != to_json(scenario, make_forecast(scenario, 4)));
  CHECK(forecast.values.front().days_earlier > 0);
  CHECK(contains(to_svg(scenario, forecast), "<polygon"));
}

TEST_CASE("late deliveries, small shares of them and bans move the date back, never forward") {
  const std::string waiting = std::string(kStock) +
                              "[[order]]\nchip = 'h20'\ncount = 20000\nfirst = '2026-01-02'\n"
                              "last = '2026-01-20'\n";
  const auto with = [&](const std::string& line) { return middle_days(waiting + line); };
  const double on_time = with("");
  CHECK(with("delay_days = [5, 20]\n") > on_time);
  CHECK(with("arrives = 0.1\n") > on_time);
  CHECK(with("banned_from = '2026-01-03'\n") > on_time);
  CHECK(with("banned_from = '2026-01-03'\n") < middle_days(kStock));
  const Scenario banned = scenario_of(waiting + "banned_from = '2026-01-03'\n");
  const Forecast forecast = make_forecast(banned, 1);
  REQUIRE(forecast.bans.size() == 1);
  CHECK(forecast.bans.front().days_later > 0);
}

TEST_CASE("a model that no site can hold waits for memory") {
  std::string large = kStock;
  large.replace(large.find("7e9"), 3, "7e12");  // 147 TB; there are 83
  const Scenario too_large = scenario_of(large);
  const Forecast forecast = make_forecast(too_large, 1);
  CHECK(std::isinf(forecast.models.front().done_day.p10));
  CHECK(contains(forecast.models.front().waits_for, "memory"));
  CHECK(contains(to_table(too_large, forecast), "waits for memory"));
}

TEST_CASE("a stock is good for more generations the slower they grow") {
  const auto generations = [](const char* growth) {
    const Scenario scenario = scenario_of(kStock, {std::string("generation.growth=") + growth});
    return play_trial(scenario, middle_draw(scenario)).generations;
  };
  CHECK(generations("8") >= 0);
  CHECK(generations("2") > generations("8"));
}

TEST_CASE("sites on a thin line lose what the simulator says they wait for it") {
  const std::string apart = std::string(kStock) +
                            "[[order]]\nchip = 'h20'\nsite = 'there'\ncount = 1000\n"
                            "delivered = 1000\n[[line]]\nbetween = ['here', 'there']\n"
                            "bandwidth_mbit_s = ";
  const auto share = [&](const std::string& mbit_s) {
    const Scenario scenario = scenario_of(apart + mbit_s + "\n");
    return play_trial(scenario, middle_draw(scenario)).models.front().line_share;
  };
  CHECK(share("1e6") == doctest::Approx(1));
  CHECK(share("200") < 0.99);
  CHECK(share("50") < share("200"));
}

TEST_CASE("more people, longer answers and less patience need more chips") {
  const auto chips = [](const std::vector<std::string>& overrides) {
    std::vector<std::string> all = {"serving.users=1e8"};
    all.insert(all.end(), overrides.begin(), overrides.end());
    const std::vector<ServingNeed> needs = serving_needs(scenario_of(kStock, all));
    REQUIRE(needs.size() == 1);
    CHECK(needs.front().chips.p10 <= needs.front().chips.p90);
    return needs.front().chips.p50;
  };
  const double usual = chips({});
  CHECK(usual > 100);
  CHECK(chips({"serving.users=2e8"}) > 1.9 * usual);
  CHECK(chips({"serving.answer_tokens=1600"}) > 2 * usual);
  CHECK(chips({"serving.token_ms=4"}) > usual);
  const std::vector<ServingNeed> never =
      serving_needs(scenario_of(kStock, {"serving.users=1e8", "serving.token_ms=0.01"}));
  CHECK(never.front().answers_together == 0);
}

TEST_CASE("a chip known by press reports only makes the answer say so") {
  std::string press = kStock;
  press.replace(press.find("\"a100\""), 6, "\"p800\"");
  const Scenario scenario = scenario_of(press);
  REQUIRE(!scenario.warnings.empty());
  CHECK(contains(scenario.warnings.front(), "press"));
  CHECK(contains(to_table(scenario, make_forecast(scenario, 1)), "note: "));
}

TEST_CASE("a scenario that cannot be is refused in one line") {
  const auto refused = [](std::string from, const std::string& to, const std::string& said) {
    std::string toml = kStock;
    const size_t at = toml.find(from);
    REQUIRE(at != std::string::npos);
    toml.replace(at, from.size(), to);
    contains(refusal([&] { scenario_of(toml); }), said);
  };
  refused("until = \"2028-01-01\"", "until = \"2025-01-01\"", "until = 2025-01-01 must lie after");
  refused("2026-01-01", "2026-02-30", "from = \"2026-02-30\" must be a date");
  refused("2026-01-01", "soon", "must be a date such as");
  refused("\"a100\"", "\"a1000\"", "order[0]");
  refused("count = 1000", "count = -5", "count = -5 must be above 0");
  refused("count = 1000", "count = 10", "delivered = 1000 is more than count = 10");
  refused("delivered = 1000", "delivered = 10", "have not come: say when");
  refused("failures_a_year = 0", "failures_a_year = [0.5, 0.1]", "is written backwards");
  refused("failures_a_year = 0", "failures_a_year = -1", "must lie between 0 and 10");
  refused("failures_a_year = 0",
          "first = '2026-05-01'\nlast = '2026-04-01'",
          "last = 2026-04-01 lies before first = 2026-05-01");
  refused("parameters = 7e9", "parameters = 7e9\nactive_parameters = 8e9", "are more than");
  refused("by = \"2026-03-01\"", "by = \"2025-03-01\"", "by = 2025-03-01 lies before");
  refused("trials = 50", "trails = 50", "trials");
  refused("failures_a_year = 0",
          "site='b'\n[[order]]\nchip='h20'\ncount=1\ndelivered=1",
          "no line joins");
  refused("[[model]]", "[[ban]]\nvendor='AMD'\nfrom='2026-02-01'\n[[model]]", "no order is of AMD");
}

TEST_CASE("every example of a forecast trains its first model before the end") {
  const std::filesystem::path examples =
      std::filesystem::path(__FILE__).parent_path() / "../../../examples/forecasts";
  int num_read = 0;
  for (const auto& entry : std::filesystem::directory_iterator(examples)) {
    INFO(entry.path().string());
    const Scenario scenario = read_scenario(entry.path(), catalogue(), {"trials=20"});
    const Forecast forecast = make_forecast(scenario, 1);
    CHECK(std::isfinite(forecast.models.front().done_day.p50));
    num_read += 1;
  }
  CHECK(num_read == 4);
}

}  // namespace pelago::plan
