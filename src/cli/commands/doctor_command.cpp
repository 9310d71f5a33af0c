// pelago doctor: is this machine fit to train? Each line OK, WARN or FAIL, with the remedy.
#include <unistd.h>

#include <cstdio>
#include <memory>

#include "base/error.h"
#include "base/text/json.h"
#include "chips/doctor.h"
#include "cli/commands/commands.h"
#include "cli/many_sites.h"
#include "cli/terminal.h"
#include "plan/fleet.h"

namespace pelago::cli {

namespace {

struct DoctorArguments {
  std::string dir = ".", certs, fleet;
};

void print_check(const chips::Check& check) {
  constexpr const char* kWords[] = {"OK  ", "WARN", "FAIL"};
  constexpr Colour kColours[] = {Colour::kGreen, Colour::kYellow, Colour::kRed};
  const auto level = static_cast<size_t>(check.level);
  std::printf("%s  %-22s %s\n",
              coloured(kWords[level], kColours[level], STDOUT_FILENO).c_str(),
              check.name.c_str(),
              check.text.c_str());
  if (!check.remedy.empty()) std::printf("      %-22s %s\n", "", check.remedy.c_str());
}

std::vector<std::string> devices_of(const std::string& fleet_path) {
  std::vector<std::string> devices;
  if (fleet_path.empty()) return devices;
  const plan::FleetConfig fleet = plan::read_fleet(fleet_path, chips::Catalogue::built_in());
  for (const plan::FleetSite& site : fleet.sites) {
    for (const plan::FleetDevice& device : site.devices) devices.push_back(device.device);
  }
  return devices;
}

void run_doctor(const DoctorArguments& arguments, const Globals& globals) {
  std::vector<chips::Check> checks =
      chips::examine_machine({.work_dir = arguments.dir, .fleet = devices_of(arguments.fleet)});
  if (!arguments.certs.empty()) {
    for (const auto& [name, problem] : check_job_certificates(arguments.certs)) {
      checks.push_back({problem.empty() ? chips::Check::kOk : chips::Check::kFail,
                        "certificate " + name,
                        problem.empty() ? "good" : problem,
                        ""});
    }
  }
  bool failed = false;
  nlohmann::json json = nlohmann::json::array();
  for (const chips::Check& check : checks) {
    failed = failed || check.level == chips::Check::kFail;
    if (!globals.json) print_check(check);
    constexpr const char* kLevels[] = {"ok", "warn", "fail"};
    json.push_back({{"level", kLevels[static_cast<size_t>(check.level)]},
                    {"name", check.name},
                    {"text", check.text},
                    {"remedy", check.remedy}});
  }
  if (globals.json) std::printf("%s\n", json.dump().c_str());
  if (failed) fail("this machine is not fit to train; see the lines that say FAIL");
}

}  // namespace

void add_doctor(CLI::App& app, Globals& globals) {
  auto arguments = std::make_shared<DoctorArguments>();
  CLI::App* command =
      add_command(app,
                  globals,
                  "doctor",
                  "examine this machine: devices, libraries, clocks, ports, disk",
                  "  pelago doctor\n"
                  "  pelago doctor --dir /data/runs --certs runs/two-sites/certs\n"
                  "  pelago doctor --fleet fleet.toml    (on each machine of it)\n");
  command->add_option("--dir", arguments->dir, "where runs will be written")->capture_default_str();
  command->add_option("--fleet", arguments->fleet, "look for what its devices need here");
  command->add_option("--certs", arguments->certs, "check the certificates of a job as well");
  command->callback([arguments, &globals] { run_doctor(*arguments, globals); });
}

}  // namespace pelago::cli
