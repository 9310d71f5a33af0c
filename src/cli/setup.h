// From the files a person wrote to the values a command works with.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "chips/catalogue.h"
#include "plan/fleet.h"
#include "plan/job.h"
#include "plan/plan.h"

namespace pelago::cli {

/// Whether a command goes on without the job's dataset, whose vocabulary is the model's.
enum class Dataset { kNeeded, kMayLack };

struct Setup {
  std::filesystem::path job_path, fleet_path;
  plan::JobConfig job;  // vocabulary and end-of-text are those of the dataset
  plan::FleetConfig fleet;
  chips::Catalogue catalogue;
  std::vector<std::string> notes;  // what the reader should know: one sentence each
};

/// overrides: `--set` assignments; those that begin with "emulation." go to the fleet, all others
/// to the job.
Setup read_setup(const std::filesystem::path& job_path,
                 const std::filesystem::path& fleet_path,
                 const std::vector<std::string>& overrides,
                 Dataset dataset = Dataset::kNeeded);

/// Times by layers from --profile, as a probe.
plan::Probe get_layer_times(Setup& setup, const std::vector<std::string>& sources);

/// Measures the fleet's devices on this machine, a few seconds each; site: as probe_fleet() has it.
/// Ctrl-C is a Failure.
plan::Probe measure_devices(const Setup& setup, const std::string& site = "");

/// The probes of --probe FILE together (a device in two of them is a Failure), or a new one, or
/// none for --no-probe.
std::optional<plan::Probe> get_probe(const Setup& setup,
                                     const std::vector<std::string>& probe_paths,
                                     bool no_probe);

/// Processors that emulated chips may use.
double host_cores();

}  // namespace pelago::cli
