// pelago certs: a job's own certificate authority and a certificate for each site.
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "cli/commands/commands.h"
#include "cli/many_sites.h"
#include "plan/fleet.h"

namespace pelago::cli {

namespace {

struct CertsArguments {
  std::string out, fleet;
  std::vector<std::string> sites;
};

void run_certs(const CertsArguments& arguments, const Globals& globals) {
  std::vector<std::string> sites = arguments.sites;
  if (!arguments.fleet.empty()) {
    for (const plan::FleetSite& site :
         plan::read_fleet(arguments.fleet, chips::Catalogue::built_in()).sites) {
      sites.push_back(site.name);
    }
  }
  if (sites.empty()) fail_usage("no site named; give --sites a,b or --fleet fleet.toml");
  make_job_certificates(arguments.out, sites);
  if (globals.json) {
    std::printf("{\"certs\": \"%s\", \"sites\": [\"%s\"]}\n",
                arguments.out.c_str(),
                fmt::format("{}", fmt::join(sites, "\", \"")).c_str());
    return;
  }
  std::printf(
      "%s: certificates of the coordinator and of %s\n"
      "give each site ca.pem and its own .pem and .key; ca.key stays here\n",
      arguments.out.c_str(),
      fmt::format("{}", fmt::join(sites, ", ")).c_str());
}

}  // namespace

void add_certs(CLI::App& app, Globals& globals) {
  auto arguments = std::make_shared<CertsArguments>();
  CLI::App* command = add_command(app,
                                  globals,
                                  "certs",
                                  "make a job's certificate authority and its sites' certificates",
                                  "  pelago certs --out certs --sites lingang,guizhou\n"
                                  "  pelago certs --out certs --fleet fleet.toml\n");
  command->add_option("--out", arguments->out, "the folder to write")->required();
  command->add_option("--sites", arguments->sites, "names of the sites")->delimiter(',');
  command->add_option("--fleet", arguments->fleet, "take the sites of this fleet.toml");
  command->callback([arguments, &globals] { run_certs(*arguments, globals); });
}

}  // namespace pelago::cli
