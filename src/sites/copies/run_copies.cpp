#include "sites/copies/run_copies.h"

namespace pelago::sites {

std::optional<CopierOptions> copier_options(const plan::JobConfig& job,
                                            const std::filesystem::path& run_dir,
                                            const std::string& site) {
  if (job.checkpoint.copy_to.empty()) return std::nullopt;
  CopierOptions options;
  options.store.place = parse_s3_place(job.checkpoint.copy_to);
  options.store.account = account_from_environment();
  options.run = job.name;
  options.site = site;
  options.checkpoints_dir = run_dir / "sites" / site / "checkpoints";
  options.plan_path = run_dir / "plan.json";
  options.keep = job.train.keep_checkpoints;
  return options;
}

std::vector<CheckpointOffer> offer_copies(const CopierOptions& options,
                                          std::vector<std::string>& problems) {
  Result<std::optional<CopyIndex>> copies = find_copies(options);
  if (!copies) {
    problems.push_back("no copies of checkpoints: " + copies.error().message);
    return {};
  }
  return *copies ? (*copies)->checkpoints : std::vector<CheckpointOffer>();
}

}  // namespace pelago::sites
