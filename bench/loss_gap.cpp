// What does it cost in loss that sites meet only now and then? Final held-out loss of sites that
// exchange fragments every H steps, less that of synchronous data parallel training on the same
// tokens in the same global batch: ~2M parameters, C headers, H = 30. Every finished run is a line
// of a CSV file, and a run whose line is there is not done again, so the bench can be stopped at
// any time and goes on where it was.
#include <ATen/Parallel.h>
#include <malloc.h>
#include <torch/torch.h>

#include <cstdio>
#include <fstream>

#include "base/files.h"
#include "bench/gap_run.h"
#include "bench/report.h"

namespace pelago::bench {
namespace {

namespace fs = std::filesystem;

constexpr const char* kHeader =
    "sites,seed,tokens,steps,bits,H,P,tau,alpha,outer_lr,outer_momentum,rule,merge,error_decay,"
    "final_bits,lr,warmup,heldout_loss,train_loss,bytes_per_parameter_round,seconds";

/// What makes a run the same run: the columns before the results.
std::string key_of(const GapRun& run) {
  const plan::SitesConfig& s = run.sites;
  const bool alone = run.shares.size() == 1 && s.fragments == 0;
  const std::string head =
      fmt::format("{},{},{},{}", fmt::join(run.shares, ":"), run.seed, run.tokens(), run.steps);
  const std::string tail = fmt::format("{},{}", run.lr, run.warmup_steps);
  if (alone) return fmt::format("{},0,1,0,0,0,0,0,sync,sync,0,0,{}", head, tail);
  return fmt::format("{},{},{},{},{},{},{},{},{},{},{},{},{}",
                     head,
                     s.delta_bits,
                     s.inner_steps,
                     s.fragments,
                     s.overlap_steps,
                     s.merge_alpha,
                     s.outer_lr,
                     s.outer_momentum,
                     run.by_direction ? "direction" : "mean",
                     run.shifts ? "shift" : "blend",
                     run.error_decay,
                     run.final_bits,
                     tail);
}

/// The CSV file of finished runs.
class RunLog {
 public:
  explicit RunLog(fs::path path) : path_(std::move(path)) {
    if (fs::exists(path_)) return;
    if (path_.has_parent_path()) fs::create_directories(path_.parent_path());
    std::ofstream(path_) << kHeader << "\n";
  }
  std::optional<double> heldout_loss(const GapRun& run) const {
    const std::string key = key_of(run) + ",";
    std::ifstream file(path_);
    for (std::string line; std::getline(file, line);) {
      if (line.starts_with(key)) return std::stod(line.substr(key.size()));
    }
    return std::nullopt;
  }
  void add(const GapRun& run, const GapResult& result) const {
    std::ofstream(path_, std::ios::app) << fmt::format("{},{:.5f},{:.5f},{:.5f},{:.0f}\n",
                                                       key_of(run),
                                                       result.heldout_loss,
                                                       result.train_loss,
                                                       result.bytes_per_parameter_round,
                                                       result.seconds);
  }

 private:
  fs::path path_;
};

struct Options {
  std::string data = (fs::temp_directory_path() / "pelago-bench" / "gap-data").string();
  std::string csv = "docs/results/loss_gap.csv";
  GapRun run;
  std::vector<int64_t> shares = {32};
};

class Gaps {
 public:
  explicit Gaps(const Options& options)
      : options_(options),
        log_(options.csv),
        tokens_(options.data, "train", /*verify=*/false),
        heldout_(options.data, "heldout", /*verify=*/false) {
    ::mallopt(M_MMAP_THRESHOLD, 32 << 20);
    ::mallopt(M_TRIM_THRESHOLD, 1 << 30);
    at::set_num_threads(1);
    at::globalContext().setFlushDenormal(true);
  }

  double loss_of(const GapRun& run) {
    if (const auto known = log_.heldout_loss(run)) return *known;
    std::fprintf(stderr, "%s\n", key_of(run).c_str());
    const double begin_s = steady_now_s();
    const GapResult result = carry_out(run, tokens_, heldout_, [&](int64_t step, double loss) {
      if (step % 100 != 0) return;
      std::fprintf(stderr,
                   "  step %ld of %ld: loss %.4f, %.0f tokens/s\n",
                   static_cast<long>(step),
                   static_cast<long>(run.steps),
                   loss,
                   static_cast<double>(step * run.batch() * run.sequence_length) /
                       (steady_now_s() - begin_s));
    });
    std::fprintf(stderr, "  held out %.5f\n", result.heldout_loss);
    log_.add(run, result);
    return result.heldout_loss;
  }

 private:
  Options options_;
  RunLog log_;
  data::TokenStream tokens_, heldout_;
};

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  using namespace pelago::bench;
  Program program(
      "loss_gap", "What does it cost in loss that sites meet only now and then?", {"one"});
  Options options;
  GapRun& run = options.run;
  pelago::plan::SitesConfig& sites = run.sites;
  sites.inner_steps = 30;
  sites.fragments = 3;
  CLI::App& app = program.options();
  app.add_option("--data", options.data, "dataset folder");
  app.add_option("--csv", options.csv, "finished runs");
  app.add_option("--shares", run.shares, "sequences a step of each site")->delimiter(':');
  app.add_option("--steps", run.steps);
  app.add_option("--seed", run.seed);
  app.add_option("--lr", run.lr);
  app.add_option("--warmup", run.warmup_steps);
  app.add_option("--bits", sites.delta_bits);
  app.add_option("--inner-steps", sites.inner_steps);
  app.add_option("--fragments", sites.fragments);
  app.add_option("--overlap", sites.overlap_steps);
  app.add_option("--alpha", sites.merge_alpha);
  app.add_option("--outer-lr", sites.outer_lr);
  app.add_option("--outer-momentum", sites.outer_momentum);
  app.add_flag("--by-direction", run.by_direction);
  app.add_flag("--shift", run.shifts);
  app.add_option("--error-decay", run.error_decay);
  app.add_option("--final-bits", run.final_bits);
  return program.run(argc, argv, [&](Report& report) {
    Gaps gaps(options);
    report.metrics["heldout_loss"] = gaps.loss_of(run);
  });
}
