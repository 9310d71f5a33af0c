// How much of a run is left when things fail all the time? Sites of emulated chips, each in a share
// of the processors and a namespace of its own, train for some minutes while faults that a seed
// draws hit them: kill -9 of workers, agents and the coordinator, SIGSTOP, partitions. Whoever dies
// is started again, as a service would be. ratio: tokens trained over those of as many minutes in
// which nothing failed. `quiet` asks the opposite: what it costs to be ready for all that.
#include <algorithm>
#include <memory>

#include "base/rng.h"
#include "bench/fleet_run.h"
#include "bench/report.h"
#include "chaos/run/whole_run.h"

namespace pelago::bench {
namespace {

using chaos::LiveRun;

struct ChaosOptions {
  int num_sites = 8;
  double minutes = 30;
  int num_faults = -1;  // -1: 200 in 30 minutes
  uint64_t seed = 1;
  double slowdown = 500;  // of the emulated chips: a step takes 0.8 s
  std::vector<std::string> kinds;
};

enum Kind { kKillWorker, kKillAgent, kKillCoordinator, kStopWorker, kStopSite, kPartition };
struct KindWords {
  const char* name;
  int weight;  // of 20 faults so many
};
constexpr std::array<KindWords, 6> kKinds{{{"kill_worker", 5},
                                           {"kill_agent", 4},
                                           {"kill_coordinator", 2},
                                           {"stop_worker", 3},
                                           {"stop_site", 3},
                                           {"partition", 3}}};

struct Hit {
  double at_s = 0;
  Kind kind = kKillWorker;
  std::string site;
  double lasts_s = 0;  // of what is undone
};

/// Faults spread over the time, each at a moment of its own share of it.
std::vector<Hit> draw_hits(const ChaosOptions& options,
                           const std::vector<std::string>& sites,
                           bool can_cut) {
  std::vector<Kind> urn;
  for (size_t kind = 0; kind < kKinds.size(); ++kind) {
    const auto& asked = options.kinds;
    const bool is_asked =
        asked.empty() || std::find(asked.begin(), asked.end(), kKinds[kind].name) != asked.end();
    if (!is_asked || (kind == kPartition && !can_cut)) continue;
    urn.insert(urn.end(), static_cast<size_t>(kKinds[kind].weight), static_cast<Kind>(kind));
  }
  if (urn.empty()) fail_usage("--kinds: none of them can be injected here");
  Rng rng = Rng(options.seed).fork("chaos");
  const auto draw = [&](size_t count) {
    return std::min(count - 1,
                    static_cast<size_t>(rng.next_uniform() * static_cast<double>(count)));
  };
  std::vector<Hit> hits;
  const double share_s = 60 * options.minutes / std::max(1, options.num_faults);
  for (int idx = 0; idx < options.num_faults; ++idx) {
    Hit hit;
    hit.at_s = (idx + rng.next_uniform()) * share_s;
    hit.kind = urn[draw(urn.size())];
    hit.site = sites[draw(sites.size())];
    // Partitions and stops on both sides of the five heartbeats after which a site is given up.
    hit.lasts_s =
        hit.kind == kPartition ? 1 + 7 * rng.next_uniform() : 0.3 + 2 * rng.next_uniform();
    hits.push_back(hit);
  }
  return hits;
}

/// Injects what is due, and undoes what has lasted long enough.
class Faults {
 public:
  Faults(LiveRun& run, std::vector<Hit> hits) : run_(&run), hits_(std::move(hits)) {}

  void turn(double now_s) {
    for (Hit& hit : hits_) {
      if (hit.at_s > now_s || hit.at_s < 0) continue;
      // Whom it would hit may just be starting again.
      const bool is_done = inject(hit, now_s);
      hit.at_s = is_done ? -1 : now_s + 0.25;
      if (is_done) tell(hit, now_s);
    }
    for (auto undo = undos_.begin(); undo != undos_.end();) {
      if (undo->at_s > now_s) {
        ++undo;
        continue;
      }
      end(*undo);
      undo = undos_.erase(undo);
    }
  }
  void end_all() {
    for (Undo& undo : undos_) end(undo);
    undos_.clear();
  }
  const std::map<Kind, int>& fired() const { return fired_; }
  int num_fired() const {
    int num = 0;
    for (const auto& [kind, count] : fired_) num += count;
    return num;
  }

 private:
  struct Undo {
    double at_s = 0;
    std::vector<pid_t> stopped;
    std::unique_ptr<chaos::Cut> cut;
  };

  static void tell(const Hit& hit, double now_s) {
    const char* const whom = hit.kind == kKillCoordinator ? "" : hit.site.c_str();
    std::fprintf(stderr, "%7.1f s: %s %s\n", now_s, kKinds[hit.kind].name, whom);
  }

  bool inject(const Hit& hit, double now_s) {
    if (hit.kind == kPartition) {
      undos_.push_back({.at_s = now_s + hit.lasts_s,
                        .stopped = {},
                        .cut = std::make_unique<chaos::Cut>(
                            run_->space_of(hit.site),
                            chaos::CutRules{.drop_from = {"any"}, .drop_to = {"any"}})});
      return true;
    }
    std::vector<pid_t> pids;
    if (hit.kind == kKillCoordinator) pids = {run_->coordinator()};
    if (hit.kind == kKillAgent) pids = {run_->agent(hit.site)};
    if (hit.kind == kKillWorker || hit.kind == kStopWorker) pids = run_->workers(hit.site);
    if (hit.kind == kStopSite) pids = run_->site_pids(hit.site);
    const bool is_stop = hit.kind == kStopWorker || hit.kind == kStopSite;
    if (hit.kind != kStopSite && pids.size() > 1) pids.resize(1);
    const bool is_there = !pids.empty() && std::none_of(pids.begin(), pids.end(), [](pid_t pid) {
      return pid < 0 || chaos::is_gone(pid) || chaos::state_of(pid) == 'T';
    });
    if (!is_there) return false;
    for (const pid_t pid : pids) ::kill(pid, is_stop ? SIGSTOP : SIGKILL);
    if (!chaos::reach_state(pids, is_stop ? 'T' : '-', 1)) return true;  // not counted as fired
    ++fired_[hit.kind];
    if (is_stop) undos_.push_back({.at_s = now_s + hit.lasts_s, .stopped = pids, .cut = nullptr});
    return true;
  }

  void end(Undo& undo) {
    for (const pid_t pid : undo.stopped) ::kill(pid, SIGCONT);
    if (undo.cut && undo.cut->num_dropped() > 0) ++fired_[kPartition];
    undo.cut.reset();
  }

  LiveRun* run_;
  std::vector<Hit> hits_;
  std::vector<Undo> undos_;
  std::map<Kind, int> fired_;
};

chaos::LiveRunOptions live_options(const ChaosOptions& options) {
  chaos::LiveRunOptions live;
  live.num_sites = options.num_sites;
  live.slowdown = options.slowdown;
  live.site_sequences = 16;
  live.microbatch_sequences = 2;
  live.inner_steps = 16;
  live.fragments = 2;
  live.overlap_steps = 6;
  // Below the 4.7 s that six steps hide, less what an exchange takes: waiting for a late site costs
  // the others nothing.
  live.grace_s = 4;
  live.snapshot_every_steps = 1;  // a step of a lost worker takes longer than its restart
  live.rate_mbit_s = 200;
  live.rtt_ms = 20;
  live.checkpoint_every_steps = 100;
  live.has_packets = !wan::PacketLine::obstacle() && !chaos::Cut::obstacle();
  live.shares_processors = fs::exists("/sys/fs/cgroup/cpu/cgroup.procs") && ::geteuid() == 0;
  return live;
}

struct Window {
  int64_t tokens = 0, spent_tokens = 0, returned_tokens = 0;
  int64_t last_step = 0;  // that every site has done
  std::map<std::string, int> fired;
  int num_fired = 0, num_restarts = 0;
  std::vector<std::string> problems;
  std::unique_ptr<chaos::RunRecords> records;
  std::vector<std::string> sites;
};

/// One run, measured over options.minutes from its tenth step on.
Window run_window(const FleetBench& bench, const ChaosOptions& options, const std::string& name) {
  const std::string program = (program_path().parent_path() / "pelago").string();
  LiveRun run(bench.folder() / name, bench.folder() / "data", program, live_options(options));
  run.start(/*steps=*/10, /*timeout_s=*/300);
  Faults faults(run, draw_hits(options, run.sites(), live_options(options).has_packets));
  const double begin_unix_s = chaos::unix_s(), begin_s = chaos::steady_s();
  const double length_s = 60 * options.minutes;
  run.wait_until(
      [&] {
        const double now_s = chaos::steady_s() - begin_s;
        faults.turn(now_s);
        return now_s >= length_s || !run.problem().empty();
      },
      length_s + 60,
      0.01);
  faults.end_all();
  const double end_unix_s = chaos::unix_s();
  run.stop(300);
  const chaos::WholeRun whole = chaos::judge_whole_run(run, program);
  Window window;
  window.problems = whole.problems;
  window.spent_tokens = whole.spent_tokens;
  window.returned_tokens = whole.returned_tokens;
  window.sites = run.sites();
  window.last_step = std::numeric_limits<int64_t>::max();
  for (const std::string& site : run.sites()) {
    window.last_step = std::min(window.last_step, run.records().last_step(site));
    window.num_restarts += run.num_restarts(site);
  }
  window.num_restarts += run.num_restarts(chaos::kCoordinator);
  for (const auto& [kind, count] : faults.fired()) window.fired[kKinds[kind].name] = count;
  window.num_fired = faults.num_fired();
  window.records = std::make_unique<chaos::RunRecords>(run.run_dir());
  window.records->read_on();
  window.tokens = chaos::tokens_between(*window.records, begin_unix_s, end_unix_s);
  return window;
}

/// Tokens a second of a run in which nothing fails, with all that faults need switched on or off:
/// snapshots, checkpoints, examinations of the chips. Heartbeats, hashes and the journal stay.
double quiet_tokens_s(const FleetBench& bench,
                      const ChaosOptions& options,
                      bool is_ready,
                      int turn) {
  const std::string program = (program_path().parent_path() / "pelago").string();
  chaos::LiveRunOptions live = live_options(options);
  live.checkpoint_every_steps = is_ready ? 20 : 0;
  live.snapshot_every_steps = is_ready ? 1 : 0;
  live.is_examined = is_ready;
  const fs::path folder = bench.folder() / fmt::format("quiet-{}-{}", turn, is_ready);
  LiveRun run(folder, bench.folder() / "data", program, live);
  run.start(/*steps=*/10, /*timeout_s=*/300);
  run.wait_until([] { return false; }, 60 * options.minutes);
  run.stop(300);
  // By the steps' own seconds: where a window begins and ends would be half a step of noise.
  double tokens = 0, seconds = 0;
  for (const chaos::StepLine& step : run.records().steps()) {
    if (step.step <= 10) continue;
    tokens += static_cast<double>(step.tokens);
    seconds += step.step_s;
  }
  return tokens / seconds * options.num_sites;
}

void measure_quiet(const ChaosOptions& options, Report& report) {
  const FleetBench bench("", /*vocab_size=*/512);
  std::vector<double> with, without, ratios;
  for (int turn = 0; turn < 3; ++turn) {
    without.push_back(quiet_tokens_s(bench, options, false, turn));
    with.push_back(quiet_tokens_s(bench, options, true, turn));
    ratios.push_back(with.back() / without.back());
    std::fprintf(stderr,
                 "turn %d: %.1f tokens/s ready for faults, %.1f not, ratio %.4f\n",
                 turn,
                 with.back(),
                 without.back(),
                 ratios.back());
  }
  report.metrics["ready_tokens_s"] = median(with);
  report.metrics["bare_tokens_s"] = median(without);
  report.ratio = median(ratios);
  report.target = 0.99;
}

double loss_at(const Window& window, int64_t last) {
  return chaos::mean_loss(*window.records, window.sites, std::max<int64_t>(last - 50, 0), last);
}

void measure_faults(ChaosOptions options, Report& report) {
  if (options.num_faults < 0) {
    options.num_faults = std::max(1, static_cast<int>(options.minutes * 200 / 30));
  }
  const FleetBench bench("", /*vocab_size=*/512);
  ChaosOptions calm = options;
  calm.num_faults = 0;
  const Window quiet = run_window(bench, calm, "quiet");
  std::fprintf(stderr,
               "without faults: %lld tokens, step %lld\n",
               static_cast<long long>(quiet.tokens),
               static_cast<long long>(quiet.last_step));
  const Window hurt = run_window(bench, options, "hurt");
  const int64_t last = std::min(quiet.last_step, hurt.last_step);
  report.ratio = static_cast<double>(hurt.tokens) / static_cast<double>(quiet.tokens);
  report.target = 0.985;
  report.metrics["quiet_tokens"] = static_cast<double>(quiet.tokens);
  report.metrics["hurt_tokens"] = static_cast<double>(hurt.tokens);
  report.metrics["hurt_spent_tokens"] = static_cast<double>(hurt.spent_tokens);
  report.metrics["hurt_returned_tokens"] = static_cast<double>(hurt.returned_tokens);
  report.metrics["spent_ratio"] =
      static_cast<double>(hurt.spent_tokens) / static_cast<double>(quiet.spent_tokens);
  report.metrics["loss_ratio"] = loss_at(hurt, last) / loss_at(quiet, last);
  report.metrics["faults_asked"] = options.num_faults;
  report.metrics["faults_fired"] = hurt.num_fired;
  report.metrics["restarts"] = hurt.num_restarts;
  for (const auto& [kind, count] : hurt.fired) report.metrics["fired_" + kind] = count;
  report.metrics["problems"] = static_cast<double>(hurt.problems.size() + quiet.problems.size());
  for (const std::string& problem : quiet.problems) report.notes.push_back("quiet: " + problem);
  for (const std::string& problem : hurt.problems) report.notes.push_back("hurt: " + problem);
  if (!live_options(options).has_packets) report.notes.push_back("no partitions: they need root");
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  using namespace pelago::bench;
  Program program(
      "chaos", "How much of a run is left when things fail all the time?", {"faults", "quiet"});
  ChaosOptions options;
  program.options().add_option("--sites", options.num_sites, "of one emulated chip each");
  program.options().add_option("--minutes", options.minutes, "measured, of each of the two runs");
  program.options().add_option("--faults", options.num_faults, "in all; else 200 in 30 minutes");
  program.options().add_option("--seed", options.seed, "of the faults");
  program.options().add_option("--slowdown", options.slowdown, "of the emulated chips");
  program.options().add_option("--kinds", options.kinds, "kill_worker, stop_site, ...");
  return program.run(argc, argv, [&](Report& report) {
    report.case_name == "quiet" ? measure_quiet(options, report) : measure_faults(options, report);
  });
}
