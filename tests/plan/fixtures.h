// What the tests of this room share: files that vanish, messages of refusals, fleets and probes
// made in memory.
#pragma once

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "plan/plan.h"

namespace pelago::plan {

/// The message of the refusal, which must carry the exit code of wrong usage; empty if none came.
inline std::string refusal(auto&& action) {
  try {
    action();
  } catch (const Failure& failure) {
    CHECK(failure.exit_code() == kExitUsage);
    CHECK(std::string_view(failure.what()).find('\n') == std::string_view::npos);
    return failure.what();
  }
  return "";
}

inline bool contains(std::string_view text, std::string_view part) {
  INFO("text: " << text);
  INFO("part: " << part);
  const bool found = text.find(part) != std::string_view::npos;
  CHECK(found);
  return found;
}

/// Properties are tried on the same random cases every time; RC_PARAMS="seed=..." tries others.
inline const bool kSeedIsFixed = setenv("RC_PARAMS", "seed=7", /*overwrite=*/0) == 0;

/// A folder that is gone when the test is.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "plan-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  std::filesystem::path write(const std::string& name, std::string_view text) const {
    write_file(path_ / name, text);
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

inline JobConfig job_from(std::string_view toml, const std::vector<std::string>& overrides = {}) {
  return read_job(TempFolder().write("job.toml", toml), overrides);
}

inline const chips::Catalogue& catalogue() {
  static const chips::Catalogue built_in = chips::Catalogue::built_in();
  return built_in;
}

inline FleetConfig fleet_from(std::string_view toml,
                              const std::vector<std::string>& overrides = {}) {
  return read_fleet(TempFolder().write("fleet.toml", toml), catalogue(), overrides);
}

inline JobConfig small_job() {
  return job_from("[model]\npreset = '2m'\n[data]\ndir = 'corpus'\nsequence_length = 128\n");
}

/// A job whose model is so small that any device holds it, each for itself, asked for this batch.
inline JobConfig job_of_batch(int64_t batch_sequences) {
  JobConfig job = small_job();
  job.train.pipeline = "never";
  job.train.batch_sequences = batch_sequences;
  return job;
}

/// What a device of the small job's model needs if a step of n sequences in k microbatches takes
/// n * sequence_s + k * microbatch_s + step_s.
struct PaceOptions {
  double sequence_s = 0.1;
  double step_s = 0;
  double microbatch_s = 0;
  double host_busy_ratio = 0;
};
inline DeviceProfile profile_of(const PaceOptions& options) {
  static const auto num_blocks = static_cast<double>(model::preset("2m").num_hidden_layers);
  DeviceProfile profile;
  profile.dtype = "bf16";
  profile.block_forward = {options.microbatch_s / num_blocks / 3,
                           options.sequence_s / num_blocks / 3};
  profile.block_backward = profile.block_forward.times(2);
  profile.update_s = options.step_s;
  profile.host_busy_ratio = options.host_busy_ratio;
  profile.host_byte_s = profile.group_byte_s = 1e-15;  // so that only computing takes time
  profile.measured = true;
  return profile;
}

/// A probe for devices "cuda:0", "cuda:1"... of these paces, and the one-site fleet of them.
struct ProbedFleet {
  FleetConfig fleet;
  Probe probe;
};
inline ProbedFleet probed_fleet(const JobConfig& job, const std::vector<DeviceProfile>& profiles) {
  ProbedFleet probed;
  probed.fleet.sites.push_back({.name = "here", .listen = "127.0.0.1", .devices = {}});
  for (size_t i = 0; i < profiles.size(); ++i) {
    DeviceProfile profile = profiles[i];
    profile.device = fmt::format("cuda:{}", i);
    profile.measured = true;
    probed.probe.devices[profile.device] = profile;
    FleetDevice device;
    device.device = profile.device;
    probed.fleet.sites[0].devices.push_back(std::move(device));
  }
  probed.probe.job_hash = probe_hash(job, probed.fleet);
  return probed;
}

}  // namespace pelago::plan
