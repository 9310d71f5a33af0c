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
  std::string out, fleet, token, run;
  std::vector<std::string> sites;
  double days = 365, hours = 24;
  int64_t uses = 1;
  bool renew = false;
};

void print(const Globals& globals, const std::string& json, const std::string& words) {
  std::printf("%s\n", globals.json ? json.c_str() : words.c_str());
}

void make_token(const CertsArguments& arguments, const Globals& globals) {
  if (arguments.run.empty()) fail_usage("--token {}: of which run? give --run", arguments.token);
  if (!(arguments.hours > 0)) fail_usage("--hours {}: must be greater than 0", arguments.hours);
  if (arguments.uses < 1) fail_usage("--uses {}: must be at least 1", arguments.uses);
  const std::string file = make_join_token(arguments.run,
                                           arguments.token,
                                           static_cast<int64_t>(3600 * arguments.hours),
                                           arguments.uses)
                               .string();
  print(globals,
        fmt::format(R"({{"token": "{}"}})", file),
        fmt::format(
            "{}: a secret, for {} hours; at the site: pelago agent --join HOST:PORT --token {}",
            file,
            arguments.hours,
            arguments.token + ".token"));
}

void run_certs(const CertsArguments& arguments, const Globals& globals) {
  if (!arguments.token.empty()) return make_token(arguments, globals);
  if (arguments.out.empty()) fail_usage("give --out, the folder of the certificates");
  if (arguments.days < 0) fail_usage("--days {}: must not be negative", arguments.days);
  JobCertificates wanted{.dir = arguments.out,
                         .sites = arguments.sites,
                         .valid_s = static_cast<int64_t>(86400 * arguments.days)};
  if (arguments.renew) {
    const std::string names = fmt::format("{}", fmt::join(renew_job_certificates(wanted), ", "));
    return print(globals,
                 fmt::format(R"({{"certs": "{}", "renewed": "{}"}})", arguments.out, names),
                 fmt::format("{}: new certificates of {}; their keys stay, copy each NAME.pem over "
                             "the old one, no run need stop",
                             arguments.out,
                             names));
  }
  if (!arguments.fleet.empty()) {
    for (const plan::FleetSite& site :
         plan::read_fleet(arguments.fleet, chips::Catalogue::built_in()).sites) {
      wanted.sites.push_back(site.name);
    }
  }
  if (wanted.sites.empty()) fail_usage("no site named; give --sites a,b or --fleet fleet.toml");
  make_job_certificates(wanted);
  print(globals,
        fmt::format(R"({{"certs": "{}", "sites": ["{}"]}})",
                    arguments.out,
                    fmt::join(wanted.sites, "\", \"")),
        fmt::format("{}: certificates of the coordinator and of {}\n"
                    "give each site ca.pem and its own .pem and .key; ca.key stays here",
                    arguments.out,
                    fmt::join(wanted.sites, ", ")));
}

}  // namespace

void add_certs(CLI::App& app, Globals& globals) {
  auto arguments = std::make_shared<CertsArguments>();
  CLI::App* command =
      add_command(app,
                  globals,
                  "certs",
                  "make a job's certificate authority and its sites' certificates",
                  "  pelago certs --out certs --sites lingang,guizhou\n"
                  "  pelago certs --out certs --fleet fleet.toml\n"
                  "  pelago certs --out certs --renew          under a run, too\n"
                  "  pelago certs --run runs/two-sites --token guizhou --hours 2\n");
  command->add_option("--out", arguments->out, "the folder to write");
  command->add_option("--sites", arguments->sites, "names of the sites")->delimiter(',');
  command->add_option("--fleet", arguments->fleet, "take the sites of this fleet.toml");
  command->add_option("--days", arguments->days, "how long certificates hold")
      ->capture_default_str();
  command->add_flag("--renew", arguments->renew, "new certificates for the keys of --out");
  command->add_option("--token", arguments->token, "make a join token for this site of --run");
  command->add_option("--run", arguments->run, "the run folder, at the coordinator");
  command->add_option("--hours", arguments->hours, "how long the token holds")
      ->capture_default_str();
  command->add_option("--uses", arguments->uses, "machines or folders that the token lets in")
      ->capture_default_str();
  command->callback([arguments, &globals] { run_certs(*arguments, globals); });
}

}  // namespace pelago::cli
