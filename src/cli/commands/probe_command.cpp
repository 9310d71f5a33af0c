// pelago probe: what each device of a fleet needs for a job, measured.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "base/files.h"
#include "cli/commands/commands.h"
#include "cli/setup.h"

namespace pelago::cli {

namespace {

struct ProbeArguments {
  std::string job, fleet, site, out = "probe.json";
  std::vector<std::string> overrides;
};

void run_probe(const ProbeArguments& arguments, const Globals& globals) {
  const Setup setup = read_setup(arguments.job, arguments.fleet, arguments.overrides);
  const auto is_asked = [&](const plan::FleetSite& site) { return site.name == arguments.site; };
  if (!arguments.site.empty() && std::ranges::none_of(setup.fleet.sites, is_asked)) {
    fail_usage("--site {}: {} has no such site", arguments.site, arguments.fleet);
  }
  const plan::Probe probe = measure_devices(setup, arguments.site);
  write_file(arguments.out, plan::to_json(probe));
  if (globals.json) {
    std::printf("%s\n", plan::to_json(probe).c_str());
    return;
  }
  std::printf("%-30s %5s %15s %16s %10s %14s %9s\n",
              "device",
              "dtype",
              "block forward",
              "block backward",
              "head",
              "update",
              "host busy");
  const double sequences = static_cast<double>(setup.job.train.microbatch_sequences);
  for (const auto& [name, profile] : probe.devices) {
    std::printf("%-30s %5s %12.2f ms %13.2f ms %7.2f ms %8.3f ns/p. %8.0f%%\n",
                name.c_str(),
                profile.dtype.c_str(),
                1e3 * profile.block_forward.at(sequences),
                1e3 * profile.block_backward.at(sequences),
                1e3 * profile.head.at(sequences),
                1e9 * profile.update_parameter_s,
                100 * profile.host_busy_ratio);
  }
  std::printf("written to %s; use it with `pelago plan --probe %s`\n",
              arguments.out.c_str(),
              arguments.out.c_str());
}

}  // namespace

void add_probe(CLI::App& app, Globals& globals) {
  auto arguments = std::make_shared<ProbeArguments>();
  CLI::App* command =
      add_command(app,
                  globals,
                  "probe",
                  "measure what each device of a fleet needs for a job",
                  "  pelago probe job.toml --fleet fleet.toml\n"
                  "  pelago probe job.toml --fleet fleet.toml --out probe.json --json\n"
                  "  pelago probe job.toml --fleet fleet.toml --site guizhou --out guizhou.json\n"
                  "\nThe last form, at each site's host, makes files to be given together:\n"
                  "pelago coordinator --probe lingang.json --probe guizhou.json.\n");
  command->add_option("job", arguments->job, "job.toml")->required();
  command->add_option("--fleet", arguments->fleet, "fleet.toml")->required();
  command->add_option(
      "--site", arguments->site, "only this site's devices, which are those of this machine");
  command->add_option("--set", arguments->overrides, "override a field, as section.key=value");
  command->add_option("--out", arguments->out, "write the measurement here")->capture_default_str();
  command->callback([arguments, &globals] { run_probe(*arguments, globals); });
}

}  // namespace pelago::cli
