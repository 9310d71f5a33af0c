// pelago plan: who would compute what, without running it.
#include <cstdio>
#include <memory>

#include "base/files.h"
#include "cli/commands/commands.h"
#include "cli/setup.h"
#include "plan/planner/aim/choose.h"
#include "plan/planner/explain/explain.h"

namespace pelago::cli {

namespace {

struct PlanArguments {
  std::string job, fleet, probe, out;
  std::vector<std::string> overrides, profiles;
  std::string objective;
  std::vector<std::string> keep_free;
  double max_watts = 0, deadline_hours = 0;
  bool no_probe = false, explain = false;
};

/// What the plan is to aim for, as fields of the job.
std::vector<std::string> with_aim(const PlanArguments& arguments) {
  std::vector<std::string> overrides = arguments.overrides;
  if (!arguments.objective.empty()) {
    overrides.push_back(fmt::format("plan.objective=\"{}\"", arguments.objective));
  }
  if (!arguments.keep_free.empty()) {
    overrides.push_back(
        fmt::format("plan.keep_free=[\"{}\"]", fmt::join(arguments.keep_free, "\", \"")));
  }
  if (arguments.max_watts > 0) {
    overrides.push_back(fmt::format("plan.max_watts={}", arguments.max_watts));
  }
  if (arguments.deadline_hours > 0) {
    overrides.push_back(fmt::format("plan.deadline_hours={}", arguments.deadline_hours));
  }
  return overrides;
}

void run_plan(const PlanArguments& arguments, const Globals& globals) {
  const bool measures = !arguments.no_probe && arguments.profiles.empty();
  Setup setup = read_setup(arguments.job,
                           arguments.fleet,
                           with_aim(arguments),
                           measures ? Dataset::kNeeded : Dataset::kMayLack);
  const std::optional<plan::Probe> probe =
      arguments.profiles.empty()
          ? get_probe(setup, arguments.probe, arguments.no_probe)
          : std::optional<plan::Probe>(get_layer_times(setup, arguments.profiles));
  auto [fleet, plan, left_free] = plan::choose_devices(
      setup.job, setup.fleet, setup.catalogue, probe ? &*probe : nullptr, host_cores());
  if (!left_free.empty()) {
    plan.warnings.push_back(
        fmt::format("for {} this plan leaves free {}: to train by it, take "
                    "them out of {}",
                    setup.job.aim.objective,
                    left_free,
                    arguments.fleet));
  }
  plan.warnings.insert(plan.warnings.end(), setup.notes.begin(), setup.notes.end());
  if (!arguments.out.empty()) write_file(arguments.out, plan::to_json(plan));
  if (!arguments.explain) {
    std::printf("%s\n", globals.json ? plan::to_json(plan).c_str() : plan::to_table(plan).c_str());
    return;
  }
  const plan::Explanation explanation = plan::explain_plan(
      plan, setup.job, fleet, setup.catalogue, probe ? &*probe : nullptr, host_cores());
  if (globals.json) {
    std::printf("{\"plan\": %s, \"explanation\": %s}\n",
                plan::to_json(plan).c_str(),
                plan::to_json(explanation).c_str());
    return;
  }
  std::printf("%s\n%s\n", plan::to_table(plan).c_str(), plan::to_text(explanation).c_str());
}

}  // namespace

void add_plan(CLI::App& app, Globals& globals) {
  auto arguments = std::make_shared<PlanArguments>();
  CLI::App* command = add_command(
      app,
      globals,
      "plan",
      "show who would compute what and how fast, without running it",
      "  pelago plan job.toml --fleet fleet.toml\n"
      "  pelago plan job.toml --fleet fleet.toml --no-probe        from the catalogue alone\n"
      "  pelago plan job.toml --fleet fleet.toml --set train.batch_sequences=64 --out plan.json\n"
      "  pelago plan job.toml --fleet fleet.toml --set train.pipeline=always      compare cuts\n"
      "  pelago plan job.toml --fleet fleet.toml --objective tokens/joule --deadline 72\n"
      "  pelago plan job.toml --fleet fleet.toml --keep-free a100=2 --max-watts 20000\n"
      "  pelago plan job.toml --fleet fleet.toml --explain      what bounds it, what would help\n"
      "  pelago plan job.toml --fleet fleet.toml --profile a100=layers.json    measured elsewhere\n"
      "\nplan.json may be edited and carried out: pelago train --plan plan.json\n");
  command->add_option("job", arguments->job, "job.toml")->required();
  command->add_option("--fleet", arguments->fleet, "fleet.toml")->required();
  command->add_option("--probe",
                      arguments->probe,
                      "probe.json of `pelago probe`; else the devices are measured now");
  command->add_flag(
      "--no-probe", arguments->no_probe, "measure nothing: speeds come from the catalogue");
  command
      ->add_option("--profile",
                   arguments->profiles,
                   "times by layer, microbatch and tensor parallelism: CHIP=FILE, or FILE with "
                   "names in it; docs/FILES.md has the format")
      ->excludes("--probe")
      ->excludes("--no-probe");
  command->add_flag("--explain",
                    arguments->explain,
                    "say what bounds the plan, and plan anew with one thing changed at a time");
  command->add_option("--objective",
                      arguments->objective,
                      "tokens/s (default), tokens/joule or tokens/price: chips that do not serve "
                      "it stay free");
  command->add_option("--max-watts", arguments->max_watts, "of all chips at work")
      ->check(CLI::PositiveNumber);
  command->add_option("--deadline", arguments->deadline_hours, "hours for train.steps")
      ->check(CLI::PositiveNumber);
  command->add_option("--keep-free", arguments->keep_free, "CHIP=NUMBER that stay unused");
  command->add_option("--set", arguments->overrides, "override a field, as section.key=value");
  command->add_option("--out", arguments->out, "write plan.json here");
  command->callback([arguments, &globals] { run_plan(*arguments, globals); });
}

}  // namespace pelago::cli
