#include "cli/setup.h"

#include <atomic>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/threads.h"
#include "cli/interrupts.h"
#include "plan/cost/device/layer_times.h"
#include "train/probe.h"
#include "train/run_folder.h"

namespace pelago::cli {

Setup read_setup(const std::filesystem::path& job_path,
                 const std::filesystem::path& fleet_path,
                 const std::vector<std::string>& overrides,
                 Dataset dataset) {
  std::vector<std::string> for_job, for_fleet;
  for (const std::string& assignment : overrides) {
    (assignment.rfind("emulation.", 0) == 0 ? for_fleet : for_job).push_back(assignment);
  }
  chips::Catalogue catalogue = chips::Catalogue::built_in();
  plan::JobConfig job = plan::read_job(job_path, for_job);
  plan::FleetConfig fleet = plan::read_fleet(fleet_path, catalogue, for_fleet);
  std::vector<std::string> notes;
  if (dataset == Dataset::kNeeded ||
      std::filesystem::exists(std::filesystem::path(job.data.dir) / "dataset.json")) {
    train::take_vocabulary(job);
  } else {
    notes.push_back(fmt::format("no dataset in {}: a vocabulary of {} is taken",
                                job.data.dir.empty() ? "data.dir" : job.data.dir,
                                job.model.vocab_size));
  }
  return {job_path,
          fleet_path,
          std::move(job),
          std::move(fleet),
          std::move(catalogue),
          std::move(notes)};
}

plan::Probe get_layer_times(Setup& setup, const std::vector<std::string>& sources) {
  plan::LayerTimes times = plan::read_layer_times(sources, setup.job, setup.fleet, setup.catalogue);
  setup.notes.insert(setup.notes.end(), times.notes.begin(), times.notes.end());
  return std::move(times.probe);
}

plan::Probe measure_devices(const Setup& setup, const std::string& site) {
  if (!setup.job.experts.is_dense()) {
    fail_usage(
        "{}: model.num_experts = {}: only dense blocks can be measured here; plan by the catalogue "
        "with `pelago plan --no-probe`, or by measured times with --profile",
        setup.job_path.string(),
        setup.job.experts.num_experts);
  }
  log_info("measuring each kind of device for this job, a few seconds each");
  std::atomic<bool> is_interrupted = false;
  const Interrupts interrupts([&is_interrupted] { is_interrupted = true; });
  return train::probe_fleet(
      setup.job, setup.fleet, site, [&is_interrupted] { return is_interrupted.load(); });
}

std::optional<plan::Probe> get_probe(const Setup& setup,
                                     const std::vector<std::string>& probe_paths,
                                     bool no_probe) {
  if (no_probe) return std::nullopt;
  if (probe_paths.empty()) return measure_devices(setup);
  plan::Probe all;
  for (const std::string& path : probe_paths) {
    plan::Probe probe = plan::probe_from_json(read_text_file(path), path);
    if (probe.job_hash != plan::probe_hash(setup.job, setup.fleet)) {
      fail_usage(
          "{}: measured for another model, sequence length, microbatch, dtype or slowdown; run "
          "`pelago probe {} --fleet {}` again",
          path,
          setup.job_path.string(),
          setup.fleet_path.string());
    }
    all.job_hash = probe.job_hash;
    for (auto& [name, profile] : probe.devices) {
      if (all.devices.try_emplace(name, std::move(profile)).second) continue;
      fail_usage(
          "{}: {} is in a --probe before it too: measure each site by itself with `pelago probe "
          "--site NAME`, and give each file once",
          path,
          name);
    }
  }
  return all;
}

double host_cores() { return static_cast<double>(allowed_cores().size()); }

}  // namespace pelago::cli
