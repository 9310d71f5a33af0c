// pelago simulate: a run in virtual time, before anyone switches a chip on.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "base/files.h"
#include "cli/commands/commands.h"
#include "cli/setup.h"
#include "plan/planner/aim/choose.h"
#include "plan/simulation/bandwidth.h"
#include "plan/simulation/input/setting.h"
#include "plan/simulation/output/report.h"
#include "plan/simulation/planned_play.h"

namespace pelago::cli {

namespace {

struct SimulateArguments {
  std::string file, fleet, plan, probe, faults, trace, svg;
  std::vector<std::string> overrides, profiles;
  int64_t steps = 0;
  double hours = 0;
  uint64_t seed = 1;
  std::vector<double> bandwidth_for;
  std::vector<double> grid;
};

void print(const std::string& text) { std::printf("%s\n", text.c_str()); }

void run_bandwidth(const SimulateArguments& arguments,
                   const plan::RunModel& model,
                   const Globals& globals) {
  if (!arguments.grid.empty() &&
      (arguments.grid.size() != 3 || arguments.grid[0] <= 0 ||
       arguments.grid[1] <= arguments.grid[0] || arguments.grid[2] < 2)) {
    fail_usage("--grid takes a least and a largest Gbit/s and a count, such as --grid 0.1 1000 50");
  }
  std::vector<plan::BandwidthRow> rows;
  for (const double percent : arguments.bandwidth_for) {
    plan::BandwidthRow row{percent / 100, plan::bandwidth_needed(model, percent / 100), 0};
    if (!arguments.grid.empty()) {
      row.on_grid_bits_s = 1e9 * plan::nearest_on_grid(row.bits_s / 1e9,
                                                       arguments.grid[0],
                                                       arguments.grid[1],
                                                       static_cast<int>(arguments.grid[2]));
    }
    rows.push_back(row);
  }
  print(globals.json ? plan::to_json(model, rows) : plan::to_table(model, rows));
}

void write_pictures(const SimulateArguments& arguments,
                    const plan::Trace& trace,
                    const std::string& title) {
  if (!arguments.trace.empty()) write_file(arguments.trace, plan::to_chrome_json(trace));
  if (!arguments.svg.empty()) write_file(arguments.svg, plan::to_svg(trace, {.title = title}));
}

plan::RunOptions run_options(const SimulateArguments& arguments, plan::Trace& trace) {
  if (arguments.steps < 0 || arguments.hours < 0) {
    fail_usage("--steps and --hours must be above 0");
  }
  plan::RunOptions options;
  options.steps = arguments.steps;
  options.hours = arguments.hours;
  options.seed = arguments.seed;
  if (!arguments.trace.empty() || !arguments.svg.empty()) options.trace = &trace;
  return options;
}

void show(const SimulateArguments& arguments,
          const plan::SimulationReport& report,
          const plan::Trace& trace,
          const Globals& globals) {
  print(globals.json ? plan::to_json(report) : plan::to_table(report));
  write_pictures(arguments, trace, report.model->name);
}

void run_planned(const SimulateArguments& arguments, const Globals& globals) {
  Setup setup = read_setup(arguments.file, arguments.fleet, arguments.overrides, Dataset::kMayLack);
  std::optional<plan::Probe> probe;
  if (!arguments.profiles.empty()) {
    probe = get_layer_times(setup, arguments.profiles);
  } else if (!arguments.probe.empty()) {
    probe = get_probe(setup, {arguments.probe}, /*no_probe=*/false);
  } else if (arguments.plan.empty()) {
    setup.notes.push_back(
        "the chips' pace is the catalogue's; --probe probe.json takes a measured one");
  }
  plan::Plan plan;
  if (!arguments.plan.empty()) {
    plan = plan::plan_from_json(read_text_file(arguments.plan), arguments.plan);
    plan::check_plan_fits(plan, setup.job, setup.fleet, setup.catalogue, arguments.plan);
  } else {
    plan::ChosenFleet chosen = plan::choose_devices(
        setup.job, setup.fleet, setup.catalogue, probe ? &*probe : nullptr, host_cores());
    plan = std::move(chosen.plan);
    if (!chosen.left_free.empty()) setup.notes.push_back("left free: " + chosen.left_free);
  }
  plan::Trace trace;
  plan::PlannedOptions options;
  options.run = run_options(arguments, trace);
  if (arguments.steps == 0 && arguments.hours == 0) {
    options.run.steps =
        std::min<int64_t>(plan.steps, 10 * std::max<int64_t>(plan.exchange.inner_steps, 10));
  }
  if (!arguments.faults.empty()) options.faults = plan::read_faults(arguments.faults);
  plan::RunModel model;
  plan::SimulationReport report = plan::play_plan(plan, setup.job, options, model);
  report.notes.insert(report.notes.end(), plan.warnings.begin(), plan.warnings.end());
  report.notes.insert(report.notes.end(), setup.notes.begin(), setup.notes.end());
  if (!arguments.bandwidth_for.empty()) return run_bandwidth(arguments, model, globals);
  show(arguments, report, trace, globals);
}

void run_setting(const SimulateArguments& arguments, const Globals& globals) {
  plan::RunModel model = plan::read_setting(arguments.file, arguments.overrides);
  if (!arguments.faults.empty()) model.faults = plan::read_faults(arguments.faults);
  if (!arguments.bandwidth_for.empty()) return run_bandwidth(arguments, model, globals);
  plan::Trace trace;
  plan::RunOptions options = run_options(arguments, trace);
  if (options.steps == 0 && options.hours == 0) options.hours = 24;
  plan::SimulationReport report;
  report.model = &model;
  report.seed = arguments.seed;
  report.outcome = plan::play_run(model, options);
  show(arguments, report, trace, globals);
}

void run_simulate(const SimulateArguments& arguments, const Globals& globals) {
  if (!arguments.fleet.empty()) return run_planned(arguments, globals);
  if (!arguments.plan.empty() || !arguments.probe.empty() || !arguments.profiles.empty()) {
    fail_usage("--plan, --probe and --profile belong to a job and its --fleet");
  }
  run_setting(arguments, globals);
}

}  // namespace

void add_simulate(CLI::App& app, Globals& globals) {
  auto arguments = std::make_shared<SimulateArguments>();
  CLI::App* command = add_command(
      app,
      globals,
      "simulate",
      "play a run in virtual time: steps, exchanges, lines, faults",
      "  pelago simulate job.toml --fleet fleet.toml\n"
      "  pelago simulate job.toml --fleet fleet.toml --hours 24 --faults rates.toml --seed 7\n"
      "  pelago simulate job.toml --fleet fleet.toml --steps 20 --trace out.json --svg out.svg\n"
      "  pelago simulate job.toml --fleet fleet.toml --profile a100=layers.json --steps 20\n"
      "  pelago simulate setting.toml --hours 24 --set learners.count=8     without a fleet\n"
      "  pelago simulate setting.toml --bandwidth-needed 50 80 90 95 99\n"
      "\nout.json opens in ui.perfetto.dev; docs/SIMULATION.md says what a setting holds.\n");
  command->add_option("file", arguments->file, "job.toml, or a setting without a fleet")
      ->required();
  command->add_option("--fleet", arguments->fleet, "fleet.toml of the job");
  command->add_option("--plan", arguments->plan, "plan.json to play; else the planner makes one");
  command->add_option("--probe", arguments->probe, "probe.json of `pelago probe`");
  command
      ->add_option("--profile",
                   arguments->profiles,
                   "times by layer, microbatch and tensor parallelism, as in `pelago plan`")
      ->excludes("--probe")
      ->excludes("--plan");
  command->add_option("--steps", arguments->steps, "optimizer steps of each site");
  command->add_option(
      "--hours", arguments->hours, "virtual hours; neither: a day, or some rounds of a job");
  command->add_option("--faults", arguments->faults, "what breaks how often: rates.toml");
  command->add_option("--seed", arguments->seed, "of all that is left to chance");
  command->add_option("--trace", arguments->trace, "write a Chrome/Perfetto trace here");
  command->add_option("--svg", arguments->svg, "write a timeline here");
  command->add_option("--set", arguments->overrides, "override a field, as section.key=value");
  command
      ->add_option("--bandwidth-needed",
                   arguments->bandwidth_for,
                   "what each line must carry for the sites to compute so many percent of the time")
      ->expected(1, 100);
  command
      ->add_option("--grid", arguments->grid, "with it: round to this grid: least, largest, count")
      ->expected(3);
  command->callback([arguments, &globals] { run_simulate(*arguments, globals); });
}

}  // namespace pelago::cli
