// What does it cost in loss that sites meet only now and then? Final held-out loss of sites that
// exchange fragments every H steps, less that of synchronous data parallel training on the same
// tokens in the same global batch: 2.2 M parameters, Muon, 24.3 M tokens of C headers, 64 sequences
// of 128 a step, H = 30. Every finished run is a line of a CSV file, and a run whose line is there
// is not done again: the bench can be stopped at any time and goes on where it was. On one core it
// takes half an hour a run; --runs says how many more to do, and 0 only tells what is known.
#include <ATen/Parallel.h>
#include <malloc.h>
#include <torch/torch.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "bench/loss_gap/gap_run.h"
#include "bench/report.h"
#include "data/build.h"

namespace pelago::bench {
namespace {

namespace fs = std::filesystem;

constexpr const char* kHeader =
    "data,optimizer,heads,layers,shares,seed,tokens,steps,lr,min_lr_ratio,warmup,bits,H,P,tau,alpha,outer_lr,"
    "outer_momentum,combine,error_decay,heldout_loss,site_loss,train_loss,"
    "bytes_per_parameter_round,seconds";

/// What makes a run the same run: the columns before the results.
std::string key_of(const GapRun& run, const std::string& data_hash) {
  const plan::SitesConfig& sites = run.sites;
  const std::string head = fmt::format("{},{},{},{},{},{},{},{},{},{},{}",
                                       data_hash.substr(0, 8),
                                       run.optimizer,
                                       run.heads,
                                       run.layers,
                                       fmt::join(run.shares, ":"),
                                       run.seed,
                                       run.tokens(),
                                       run.steps,
                                       run.lr,
                                       run.min_lr_ratio,
                                       run.warmup_steps);
  if (run.shares.size() == 1 && sites.fragments == 0) return head + ",0,1,0,0,0,0,0,sync,0";
  return fmt::format("{},{},{},{},{},{},{},{},{},{}",
                     head,
                     sites.delta_bits,
                     sites.inner_steps,
                     sites.fragments,
                     sites.overlap_steps,
                     sites.merge_alpha,
                     sites.outer_lr,
                     sites.outer_momentum,
                     sites.combine,
                     sites.error_decay);
}

/// The CSV file of finished runs.
class RunLog {
 public:
  explicit RunLog(fs::path path) : path_(std::move(path)) {
    if (fs::exists(path_)) return;
    if (path_.has_parent_path()) fs::create_directories(path_.parent_path());
    std::ofstream(path_) << kHeader << "\n";
  }
  std::optional<double> heldout_loss(const std::string& key) const {
    std::ifstream file(path_);
    for (std::string line; std::getline(file, line);) {
      if (line.starts_with(key + ",")) return std::stod(line.substr(key.size() + 1));
    }
    return std::nullopt;
  }
  void add(const std::string& key, const GapResult& result) const {
    std::ofstream(path_, std::ios::app) << fmt::format("{},{:.5f},{:.5f},{:.5f},{:.5f},{:.0f}\n",
                                                       key,
                                                       result.heldout_loss,
                                                       result.site_loss,
                                                       result.train_loss,
                                                       result.bytes_per_parameter_round,
                                                       result.seconds);
  }

 private:
  fs::path path_;
};

/// The dataset of the machine's C and C++ headers, made once.
fs::path headers_dataset() {
  const fs::path folder = fs::temp_directory_path() / "pelago-bench" / "headers-40mb";
  if (!fs::exists(folder / "dataset.json")) {
    fs::create_directories(folder.parent_path());
    data::build_dataset({.from = {"/usr/include"},
                         .globs = {"*.h", "*.hpp"},
                         .out = folder,
                         .vocab_size = 2048,
                         .text_bytes_max = 40 << 20});
  }
  return folder;
}

class Gaps {
 public:
  Gaps(const fs::path& dataset, const fs::path& csv, int64_t runs_max)
      : log_(csv),
        tokens_(dataset, "train", /*verify=*/false),
        heldout_(dataset, "heldout", /*verify=*/false),
        runs_left_(runs_max) {
    ::mallopt(M_MMAP_THRESHOLD, 32 << 20);
    ::mallopt(M_TRIM_THRESHOLD, 1 << 30);
    at::set_num_threads(1);
    at::globalContext().setFlushDenormal(true);
  }

  /// Held-out loss in nats; nothing if the run is not done and no more are to be.
  std::optional<double> loss_of(const GapRun& run) {
    const std::string key = key_of(run, tokens_.dataset_hash());
    if (const auto known = log_.heldout_loss(key)) return known;
    if (runs_left_ == 0) return std::nullopt;
    --runs_left_;
    std::fprintf(stderr, "%s\n", key.c_str());
    const double begin_s = steady_now_s();
    const GapResult result = carry_out(run, tokens_, heldout_, [&](int64_t step, double loss) {
      if (step % 100 != 0) return;
      const double done = static_cast<double>(step) / static_cast<double>(run.steps);
      std::fprintf(stderr,
                   "  %.0f %%: loss %.4f, %.0f tokens/s\n",
                   100 * done,
                   loss,
                   done * static_cast<double>(run.tokens()) / (steady_now_s() - begin_s));
    });
    std::fprintf(stderr, "  held out %.5f\n", result.heldout_loss);
    log_.add(key, result);
    return result.heldout_loss;
  }

 private:
  RunLog log_;
  data::TokenStream tokens_, heldout_;
  int64_t runs_left_;
};

/// A run against the synchronous one, and the gap in nats that it may have.
struct Question {
  const char* name;
  std::vector<int64_t> shares;
  int bits;
  int64_t inner_steps;
  double gap_max;
};

/// The most important first: the bench may be stopped.
const std::vector<Question>& questions() {
  static const std::vector<Question> all = {{"2_sites_4_bits", {32, 32}, 4, 30, 0.015},
                                            {"2_sites_thin", {32, 32}, 2, 30, 0.04},
                                            {"3_unequal_4_bits", {32, 20, 12}, 4, 30, 0.025},
                                            {"4_sites_4_bits", {16, 16, 16, 16}, 4, 30, 0.04},
                                            {"2_sites_32_bits", {32, 32}, 32, 30, 0.015},
                                            {"2_sites_8_bits", {32, 32}, 8, 30, 0.015},
                                            {"4_sites_thin", {16, 16, 16, 16}, 2, 30, 0.04},
                                            {"3_unequal_thin", {32, 20, 12}, 2, 30, 0.04},
                                            {"2_sites_4_bits_H15", {32, 32}, 4, 15, 0.015},
                                            {"2_sites_4_bits_H60", {32, 32}, 4, 60, 0.015}};
  return all;
}

/// Of those tried in docs/LOG.md, "The loss gap again". Thin exchanges carry so little of a delta
/// that momentum only repeats it.
void take_settings(GapRun& run, int bits, int64_t inner_steps) {
  run.sites.delta_bits = bits;
  run.sites.inner_steps = inner_steps;
  run.sites.fragments = 3;
  run.sites.merge_alpha = 0;
  run.sites.outer_lr = 1;
  run.sites.outer_momentum = bits == 2 ? 0 : 0.5;
}

/// Asks every question with every seed; report.ratio: how far the worst gap lies under its limit.
void ask_all(Gaps& gaps, const GapRun& shape, double sync_lr, Report& report) {
  double margin = 1;
  int64_t num_missing = 0;
  for (const int64_t seed : {1, 2}) {
    GapRun sync = shape;
    sync.seed = seed;
    sync.shares = {shape.batch()};
    sync.lr = sync_lr;
    sync.sites.fragments = 0;
    const auto wanted = gaps.loss_of(sync);
    num_missing += !wanted;
    if (wanted) report.metrics[fmt::format("sync_seed{}_nat", seed)] = *wanted;
    for (const Question& question : questions()) {
      GapRun run = shape;
      run.seed = seed;
      run.shares = question.shares;
      take_settings(run, question.bits, question.inner_steps);
      const auto loss = gaps.loss_of(run);
      num_missing += !loss;
      if (!loss || !wanted) continue;
      const double gap = *loss - *wanted;
      report.metrics[fmt::format("gap_{}_seed{}_nat", question.name, seed)] = gap;
      margin = std::min(margin, question.gap_max - gap);
    }
  }
  report.ratio = margin;
  report.target = 0;
  report.notes.push_back("ratio: nats by which the worst gap stays under what it may be");
  if (num_missing > 0) {
    report.notes.push_back(fmt::format("{} runs are not done yet: start it again", num_missing));
  }
}

int main_of(int argc, char** argv) {
  Program program(
      "loss_gap", "What does it cost in loss that sites meet only now and then?", {"full", "one"});
  GapRun run;
  run.sites.inner_steps = 30;
  run.sites.fragments = 3;
  run.optimizer = "muon";
  run.steps = 2970;
  run.lr = 8e-3;
  std::string dataset, csv = "docs/results/loss_gap_muon.csv";
  int64_t runs_max = 1000;
  double sync_lr = 8e-3;
  CLI::App& app = program.options();
  app.add_option("--data", dataset, "dataset folder; by default one of /usr/include is made");
  app.add_option("--csv", csv, "finished runs")->capture_default_str();
  app.add_option("--runs", runs_max, "of case full: do at most so many that are not done yet");
  app.add_option("--heads", run.heads, "of 64 dimensions: the model's width")
      ->capture_default_str();
  app.add_option("--layers", run.layers)->capture_default_str();
  app.add_option("--optimizer", run.optimizer, "of the matrices of blocks")
      ->check(CLI::IsMember({"adamw", "muon"}))
      ->capture_default_str();
  app.add_option("--steps", run.steps, "optimizer steps")->capture_default_str();
  app.add_option("--lr", run.lr, "peak of the inner rate")->capture_default_str();
  app.add_option("--sync-lr", sync_lr, "of the synchronous run; each side has its best")
      ->capture_default_str();
  app.add_option("--min-lr-ratio", run.min_lr_ratio)->capture_default_str();
  app.add_option("--warmup", run.warmup_steps, "steps")->capture_default_str();
  // The rest is for case one.
  app.add_option("--shares", run.shares, "sequences a step of each site, as 8:8")->delimiter(':');
  app.add_option("--seed", run.seed);
  app.add_option("--bits", run.sites.delta_bits);
  app.add_option("--inner-steps", run.sites.inner_steps);
  app.add_option("--fragments", run.sites.fragments, "0, with one site: synchronous");
  app.add_option("--overlap", run.sites.overlap_steps);
  app.add_option("--alpha", run.sites.merge_alpha);
  app.add_option("--outer-lr", run.sites.outer_lr);
  app.add_option("--outer-momentum", run.sites.outer_momentum);
  app.add_option("--combine", run.sites.combine);
  app.add_option("--error-decay", run.sites.error_decay);
  return program.run(argc, argv, [&](Report& report) {
    Gaps gaps(dataset.empty() ? headers_dataset() : fs::path(dataset), csv, runs_max);
    if (report.case_name == "full") return ask_all(gaps, run, sync_lr, report);
    report.metrics["heldout_loss"] = gaps.loss_of(run).value_or(0);
  });
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) { return pelago::bench::main_of(argc, argv); }
