// pelago plan: who would compute what, without running it.
#include <cstdio>
#include <memory>

#include "base/files.h"
#include "cli/commands/commands.h"
#include "cli/setup.h"
#include "plan/planner/explain/explain.h"

namespace pelago::cli {

namespace {

struct PlanArguments {
  std::string job, fleet, probe, out;
  std::vector<std::string> overrides;
  bool no_probe = false, explain = false;
};

void run_plan(const PlanArguments& arguments, const Globals& globals) {
  const Setup setup = read_setup(arguments.job, arguments.fleet, arguments.overrides);
  const std::optional<plan::Probe> probe = get_probe(setup, arguments.probe, arguments.no_probe);
  const plan::Plan plan = plan::make_plan(
      setup.job, setup.fleet, setup.catalogue, probe ? &*probe : nullptr, host_cores());
  if (!arguments.out.empty()) write_file(arguments.out, plan::to_json(plan));
  if (!arguments.explain) {
    std::printf("%s\n", globals.json ? plan::to_json(plan).c_str() : plan::to_table(plan).c_str());
    return;
  }
  const plan::Explanation explanation = plan::explain_plan(
      plan, setup.job, setup.fleet, setup.catalogue, probe ? &*probe : nullptr, host_cores());
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
      "  pelago plan job.toml --fleet fleet.toml --explain      what bounds it, what would help\n"
      "\nplan.json may be edited and carried out: pelago train --plan plan.json\n");
  command->add_option("job", arguments->job, "job.toml")->required();
  command->add_option("--fleet", arguments->fleet, "fleet.toml")->required();
  command->add_option("--probe",
                      arguments->probe,
                      "probe.json of `pelago probe`; else the devices are measured now");
  command->add_flag(
      "--no-probe", arguments->no_probe, "measure nothing: speeds come from the catalogue");
  command->add_flag("--explain",
                    arguments->explain,
                    "say what bounds the plan, and plan anew with one thing changed at a time");
  command->add_option("--set", arguments->overrides, "override a field, as section.key=value");
  command->add_option("--out", arguments->out, "write plan.json here");
  command->callback([arguments, &globals] { run_plan(*arguments, globals); });
}

}  // namespace pelago::cli
