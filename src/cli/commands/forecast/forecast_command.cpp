// pelago forecast: what chips there and to come can train and serve, and by when.
#include <cstdio>
#include <memory>

#include "base/files.h"
#include "cli/commands/commands.h"
#include "plan/forecast/forecast.h"

namespace pelago::cli {

namespace {

struct ForecastArguments {
  std::string file, svg;
  std::vector<std::string> overrides;
  uint64_t seed = 1;
};

void run_forecast(const ForecastArguments& arguments, const Globals& globals) {
  const chips::Catalogue catalogue = chips::Catalogue::built_in();
  const plan::Scenario scenario =
      plan::read_scenario(arguments.file, catalogue, arguments.overrides);
  const plan::Forecast forecast = plan::make_forecast(scenario, arguments.seed);
  const std::string text =
      globals.json ? plan::to_json(scenario, forecast) : plan::to_table(scenario, forecast);
  std::printf("%s\n", text.c_str());
  if (!arguments.svg.empty()) write_file(arguments.svg, plan::to_svg(scenario, forecast));
}

}  // namespace

void add_forecast(CLI::App& app, Globals& globals) {
  auto arguments = std::make_shared<ForecastArguments>();
  CLI::App* command =
      add_command(app,
                  globals,
                  "forecast",
                  "what chips there and to come can train and serve, and by when",
                  "  pelago forecast examples/forecasts/ascend-order.toml\n"
                  "  pelago forecast scenario.toml --svg chart.svg --seed 7\n"
                  "  pelago forecast scenario.toml --set limits.power_mw=20 --json\n"
                  "\ndocs/FORECAST.md says what a scenario holds and what the answers rest on.\n");
  command->add_option("scenario", arguments->file, "scenario.toml")->required();
  command->add_option("--svg", arguments->svg, "write a chart here");
  command->add_option("--seed", arguments->seed, "of the trials that are drawn");
  command->add_option("--set", arguments->overrides, "override a field, as section.key=value");
  command->callback([arguments, &globals] { run_forecast(*arguments, globals); });
}

}  // namespace pelago::cli
