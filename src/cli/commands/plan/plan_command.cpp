// pelago plan: who would compute what, without running it; with --compare, a few steps of it and
// what they really take.
#include <cstdio>
#include <memory>

#include "base/files.h"
#include "cli/commands/commands.h"
#include "cli/commands/plan/comparison.h"
#include "cli/setup.h"
#include "plan/planner/aim/choose.h"
#include "plan/planner/explain/explain.h"

namespace pelago::cli {

namespace {

struct PlanArguments {
  std::string job, fleet, out;
  std::vector<std::string> overrides, probes, profiles;
  std::string objective;
  std::vector<std::string> keep_free;
  double max_watts = 0, deadline_hours = 0;
  bool no_probe = false, explain = false, compare = false;
  int64_t steps = 0;  // to compare; 0: four, or as many as one round of exchanges takes
};

// Sites that exchange by rounds wait in some steps and not in others: whole rounds are measured.
int64_t steps_to_compare(int64_t asked, const plan::Plan& plan) {
  constexpr int64_t kSteps = 4;
  const int64_t wanted = asked > 0 ? asked : kSteps;
  const plan::SitesConfig& exchange = plan.exchange;
  if (plan.sites.size() < 2 || exchange.fragments == 0) return wanted;
  const int64_t interval = exchange.inner_steps / exchange.fragments;
  const int64_t rounds = (wanted + interval - 1) / interval;
  return rounds * interval;
}

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

void run_comparison(const PlanArguments& arguments,
                    const Setup& setup,
                    const plan::Plan& plan,
                    const Globals& globals) {
  if (!setup.job.experts.is_dense()) {
    fail_usage("{}: model.num_experts = {}: the trainer has dense blocks only; leave --compare out",
               arguments.job,
               setup.job.experts.num_experts);
  }
  if (!globals.json) std::printf("%s\n", plan::to_table(plan).c_str());
  std::fflush(stdout);
  const Trial trial = run_trial({.job = arguments.job,
                                 .fleet = arguments.fleet,
                                 .overrides = arguments.overrides,
                                 .steps = steps_to_compare(arguments.steps, plan)},
                                plan);
  const Comparison comparison = compare(plan, setup.job, trial);
  if (globals.json) {
    std::printf("{\"plan\": %s, \"comparison\": %s}\n",
                plan::to_json(plan).c_str(),
                to_json(comparison).c_str());
  } else {
    std::printf("%s", to_table(comparison).c_str());
  }
}

void run_plan(const PlanArguments& arguments, const Globals& globals) {
  if (arguments.compare && arguments.explain) {
    fail_usage("--compare and --explain exclude each other; give one");
  }
  if (arguments.steps > 0 && !arguments.compare) {
    fail_usage("--steps is of --compare; give that too, or leave it out");
  }
  const bool measures = !arguments.no_probe && arguments.profiles.empty();
  Setup setup = read_setup(arguments.job,
                           arguments.fleet,
                           with_aim(arguments),
                           measures || arguments.compare ? Dataset::kNeeded : Dataset::kMayLack);
  const std::optional<plan::Probe> probe =
      arguments.profiles.empty()
          ? get_probe(setup, arguments.probes, arguments.no_probe)
          : std::optional<plan::Probe>(get_layer_times(setup, arguments.profiles));
  auto [fleet, plan, left_free, num_plans] = plan::choose_devices(
      setup.job, setup.fleet, setup.catalogue, probe ? &*probe : nullptr, host_cores());
  if (!left_free.empty()) {
    plan.warnings.push_back(
        fmt::format("for {} this plan leaves free {}", setup.job.aim.objective, left_free));
  }
  plan.warnings.insert(plan.warnings.end(), setup.notes.begin(), setup.notes.end());
  if (!arguments.out.empty()) write_file(arguments.out, plan::to_json(plan));
  if (arguments.compare) return run_comparison(arguments, setup, plan, globals);
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
      "  pelago plan job.toml --fleet fleet.toml --compare --steps 8      run it: was it right?\n"
      "  pelago plan job.toml --fleet fleet.toml --profile a100=layers.json    measured elsewhere\n"
      "\nplan.json may be edited and carried out: pelago train --plan plan.json\n");
  command->add_option("job", arguments->job, "job.toml")->required();
  command->add_option("--fleet", arguments->fleet, "fleet.toml")->required();
  command
      ->add_option("--probe",
                   arguments->probes,
                   "probe.json of `pelago probe`, once for each host; else the devices are "
                   "measured now")
      ->allow_extra_args(false);
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
  command->add_flag("--compare",
                    arguments->compare,
                    "carry out a few steps and lay what they took beside what was predicted");
  command
      ->add_option("--steps", arguments->steps, "of --compare, two more go before; 4 if left out")
      ->check(CLI::Range(1, 1000));
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
