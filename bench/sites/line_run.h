// A run whose sites are started by hand, as on hosts of their own: in namespaces joined by a
// packet-level line, or side by side without one. The coordinator stands at the first site.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "bench/fleet_run.h"
#include "tests/wan/packet_line.h"

namespace pelago::bench {

struct LineRun {
  double tokens_s = 0;                          // of all sites; the first two steps left out
  int64_t num_commits = 0;                      // fragments exchanged
  double wait_line_ratio = 0;                   // of the time of the steps
  std::map<std::string, double> site_tokens_s;  // of each
  std::map<std::string, int64_t>
      exchanged_bytes;  // that left a site, headers included; with a line
};

/// The shell's words for a run: the coordinator, then each site's agent once its token is there.
inline std::string script_by_hand(const FleetBench& bench,
                                  const std::string& name,
                                  const std::vector<std::string>& sites,
                                  const std::string& coordinator_words,
                                  wan::PacketLine* line) {
  const std::string program = (program_path().parent_path() / "pelago").string();
  const std::string host = line != nullptr ? line->address(0) : "127.0.0.1";
  const auto at = [&](size_t site) {
    return line != nullptr ? line->at(static_cast<int>(site)) : std::string();
  };
  std::string script = fmt::format(
      "cd {0} && rm -rf runs joined-* *.log\n"
      "{1}{2} coordinator job.toml --quiet --fresh --listen {3}:4800 {4} >coordinator.log 2>&1 &\n"
      "pids=$!\n",
      bench.folder().string(),
      at(0),
      program,
      host,
      coordinator_words);
  for (size_t site = 0; site < sites.size(); ++site) {
    script += fmt::format(
        "for i in $(seq 600); do [ -s runs/{0}/tokens/{1}.token ] && break; sleep 0.05; done\n"
        "{2}{3} agent --join {4}:4800 --token runs/{0}/tokens/{1}.token --run-dir joined-{1} "
        "--data {5} >{1}.log 2>&1 &\n"
        "pids=\"$pids $!\"\n",
        name,
        sites[site],
        at(site),
        program,
        host,
        (bench.folder() / "data").string());
  }
  script += "failed=0\nfor pid in $pids; do wait $pid || failed=1; done\nexit $failed\n";
  return script;
}

/// Starts everything, waits for the end and reads the run's steps. name: of the job.
/// coordinator_words: its fleet and settings. Throws Failure with the last words of whoever failed.
inline LineRun run_by_hand(const FleetBench& bench,
                           const std::string& name,
                           const std::vector<std::string>& sites,
                           const std::string& coordinator_words,
                           wan::PacketLine* line) {
  write_file(bench.folder() / "run.sh",
             script_by_hand(bench, name, sites, coordinator_words, line));
  LineRun run;
  for (size_t site = 0; line != nullptr && site < sites.size(); ++site) {
    run.exchanged_bytes[sites[site]] = -line->sent_bytes(static_cast<int>(site));
  }
  const std::string command = "bash " + (bench.folder() / "run.sh").string();
  if (std::system(command.c_str()) != 0) {
    const std::string words = read_text_file(bench.folder() / "coordinator.log");
    fail("a run by hand failed: {}", words.substr(words.size() > 800 ? words.size() - 800 : 0));
  }
  for (size_t site = 0; line != nullptr && site < sites.size(); ++site) {
    run.exchanged_bytes[sites[site]] += line->sent_bytes(static_cast<int>(site));
  }
  std::map<std::string, double> tokens, seconds;
  double waited_s = 0, all_s = 0;
  for (const nlohmann::json& step : bench.steps_of(fs::path("runs") / name)) {
    if (step["step"].get<int64_t>() < 3) continue;
    const std::string site = step["site"];
    tokens[site] += step["tokens"].get<double>();
    seconds[site] += step["step_s"].get<double>();
    waited_s += step["wait_line_s"].get<double>();
    all_s += step["step_s"].get<double>();
  }
  for (const auto& [site, counted] : tokens) {
    run.site_tokens_s[site] = counted / seconds[site];
    run.tokens_s += run.site_tokens_s[site];
  }
  if (run.site_tokens_s.size() != sites.size()) fail("a run by hand has no steps of some site");
  run.wait_line_ratio = waited_s / all_s;
  std::istringstream events(read_text_file(bench.folder() / "runs" / name / "events.jsonl"));
  for (std::string event; std::getline(events, event);) {
    if (event.find("\"commit\"") != std::string::npos) ++run.num_commits;
  }
  return run;
}

}  // namespace pelago::bench
