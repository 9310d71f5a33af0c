#include "cli/commands/plan/trial_run.h"

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "cli/interrupts.h"
#include "cli/many_sites.h"
#include "train/run_folder.h"
#include "train/single_site.h"

namespace pelago::cli {

namespace fs = std::filesystem;

namespace {

/// Gone with all it holds when this is.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = (fs::temp_directory_path() / "pelago-compare-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) {
      fail("{}: cannot make the folder: {}", name, std::strerror(errno));
    }
    path_ = name;
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ~ScratchFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

constexpr const char* kRunName = "compare";

Setup trial_setup(const TrialArguments& arguments, const fs::path& folder, int64_t num_steps) {
  std::vector<std::string> overrides = arguments.overrides;
  for (const std::string& more : {fmt::format("name={}", kRunName),
                                  fmt::format("runs_dir={}", folder.string()),
                                  fmt::format("train.steps={}", num_steps),
                                  std::string("train.eval_sequences=1"),
                                  std::string("train.eval_every_steps=0"),
                                  std::string("train.checkpoint_every_steps=0")}) {
    overrides.push_back(more);
  }
  return read_setup(arguments.job, arguments.fleet, overrides);
}

/// Sorts the reports by site, and says when all have come.
class Gathering {
 public:
  Gathering(const plan::Plan& plan, int64_t last_step) : plan_(plan), last_step_(last_step) {
    trial_.steps.resize(plan.sites.size());
    last_of_site_.resize(plan.sites.size());
  }

  void take(const train::StepReport& report) {
    for (size_t i = 0; i < plan_.sites.size(); ++i) {
      if (plan_.sites[i].name != report.site) continue;
      last_of_site_[i] = std::max(last_of_site_[i], report.step);
      if (report.step > kWarmUpSteps && report.step <= last_step_) {
        trial_.steps[i].push_back(report);
      }
    }
  }
  bool is_whole() const {
    return std::ranges::all_of(last_of_site_, [&](int64_t step) { return step >= last_step_; });
  }
  Trial result() { return std::move(trial_); }

 private:
  const plan::Plan& plan_;  // outlives this
  int64_t last_step_;
  std::vector<int64_t> last_of_site_;
  Trial trial_;
};

}  // namespace

Trial run_trial(const TrialArguments& arguments, const plan::Plan& given) {
  const ScratchFolder scratch;
  const int64_t last_step = kWarmUpSteps + arguments.steps;
  plan::Plan plan = given;
  plan.job_name = kRunName;
  // More than are wanted: the last step of a run is followed by merges, a checkpoint and a model.
  plan.steps = last_step + std::max<int64_t>(4, 2 * plan.exchange.inner_steps);
  const Setup setup = trial_setup(arguments, scratch.path(), plan.steps);
  const auto folder = train::RunFolder::open(setup.job, setup.fleet, train::RunStart::kNew);

  std::atomic<int> stop_requests = 0;
  std::atomic<bool> is_interrupted = false;
  const Interrupts interrupts([&] {
    is_interrupted = true;
    stop_requests = 2;
  });
  Gathering gathering(plan, last_step);
  LiveLine line(STDERR_FILENO);
  const auto on_step = [&](const train::StepReport& report) {
    gathering.take(report);
    line.draw(fmt::format("step {} of {}: {:.3f} s", report.step, last_step, report.step_s), 5);
    if (gathering.is_whole()) stop_requests = 2;
  };
  try {
    if (plan.sites.size() == 1) {
      train::SingleSiteCallbacks callbacks;
      callbacks.on_step = on_step;
      train::run_single_site(folder, plan, setup.job, stop_requests, /*resume=*/false, callbacks);
    } else {
      RunView view(plan);
      ManySitesStart start;
      start.listen = "127.0.0.1:0";
      start.on_step = on_step;
      train_many_sites(folder, setup, plan, start, stop_requests, view, line);
    }
  } catch (const Failure& failure) {
    line.end();
    if (is_interrupted) throw Failure("stopped; nothing was kept of the run", kExitInterrupted);
    if (!gathering.is_whole()) {
      throw Failure(fmt::format("the plan could not be carried out: {}", failure.what()),
                    failure.exit_code());
    }
  }
  line.end();
  return gathering.result();
}

}  // namespace pelago::cli
