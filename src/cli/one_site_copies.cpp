// Copies of the checkpoints of a run of one site: the room of many sites has the store's protocol.
#include "base/error.h"
#include "cli/many_sites.h"
#include "sites/copies/run_copies.h"
#include "train/checkpoint.h"

namespace pelago::cli {

namespace {

constexpr double kLastCopyS = 600;

class Copies final : public OneSiteCopies {
 public:
  explicit Copies(const sites::CopierOptions& options) : copier_(options) {}
  void offer(int64_t step) override { copier_.offer(step); }
  std::vector<std::pair<std::string, std::string>> take_events() override {
    return copier_.take_events();
  }
  void finish() override { copier_.finish(kLastCopyS); }

 private:
  sites::CheckpointCopier copier_;
};

/// The step that the run goes on from: of the disk, else of the store.
int64_t find_start(const sites::CopierOptions& options) {
  const std::vector<int64_t> good = train::good_checkpoints(options.checkpoints_dir);
  if (!good.empty()) return good.back();
  std::vector<std::string> problems;
  const std::vector<sites::CheckpointOffer> offers = sites::offer_copies(options, problems);
  if (!problems.empty()) fail("{}", problems.front());
  if (offers.empty()) return 0;
  const Status fetched = sites::fetch_copy(options, offers.back().step);
  if (!fetched) fail("{}; begin anew with --fresh", fetched.error().message);
  return offers.back().step;
}

}  // namespace

void check_copies(const plan::JobConfig& job) { sites::copier_options(job, {}, ""); }

std::unique_ptr<OneSiteCopies> open_one_site_copies(const train::RunFolder& folder,
                                                    const plan::JobConfig& job,
                                                    const plan::Plan& plan,
                                                    bool resume) {
  std::optional<sites::CopierOptions> options =
      sites::copier_options(job, folder.path(), plan.sites.front().name);
  if (!options) return nullptr;
  if (resume) options->start_step = find_start(*options);
  return std::make_unique<Copies>(*options);
}

std::optional<std::string> fetch_plan_of_run(const plan::JobConfig& job) {
  const std::optional<sites::CopierOptions> options = sites::copier_options(job, {}, "");
  if (!options) return std::nullopt;
  Result<std::optional<std::string>> plan = sites::fetch_plan(*options);
  if (!plan) fail("{}", plan.error().message);
  return *plan;
}

}  // namespace pelago::cli
