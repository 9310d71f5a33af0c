#include "train/probe.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "base/process/child.h"
#include "base/threads.h"
#include "chips/device.h"
#include "chips/torch.h"
#include "train/probe/measure.h"

namespace pelago::train {

namespace fs = std::filesystem;

namespace {

constexpr double kLookAroundS = 0.1;    // how soon a wish to stop is heard
constexpr double kChildTimeoutS = 120;  // a device slower than this cannot be of use to the job

/// A folder of its own, removed with all it holds.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "pelago-probe-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) {
      fail("{}: cannot make the folder: {}", name, std::strerror(errno));
    }
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

plan::DeviceProfile probe_in_child(const plan::JobConfig& job,
                                   const plan::FleetDevice& device,
                                   const fs::path& dir,
                                   const std::function<bool()>& should_stop) {
  const fs::path answer = dir / "probe.json";
  const fs::path log = dir / "log";
  const int file = ::open(answer.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) fail("{}: cannot write: {}", answer.string(), std::strerror(errno));
  const size_t num_threads = std::max<size_t>(1, device.cores.size());
  ChildOptions options;
  options.program = program_path();
  options.arguments = {"probe-device",
                       "--job",
                       (dir / "job.toml").string(),
                       "--fleet",
                       (dir / "fleet.toml").string(),
                       "--device",
                       device.device,
                       "--vocab-size",
                       std::to_string(job.model.vocab_size)};
  for (const int core : device.cores) {
    options.arguments.insert(options.arguments.end(), {"--core", std::to_string(core)});
  }
  options.environment = {fmt::format("OMP_NUM_THREADS={}", num_threads),
                         fmt::format("OPENBLAS_NUM_THREADS={}", num_threads)};
  options.descriptors = {{file, 1}};
  options.log = log;
  ChildProcess child(options);
  ::close(file);
  const double deadline_s = steady_now_s() + kChildTimeoutS;
  while (!child.wait(kLookAroundS)) {
    if (should_stop && should_stop()) {
      throw Failure("stopped while the devices were measured; nothing was written",
                    kExitInterrupted);
    }
    if (steady_now_s() < deadline_s) continue;
    fail(
        "{}: no answer from its probe within {} s: shrink the job, lower emulation.slowdown if the "
        "device is emulated, or plan from the catalogue with --no-probe",
        device.device,
        kChildTimeoutS);
  }
  if (child.exit_code() != kExitDone) {
    std::string words = read_text_file(log);
    while (!words.empty() && words.back() == '\n') words.pop_back();
    throw Failure(fmt::format("{}: its probe {}: {}",
                              device.device,
                              child.how_it_ended(),
                              words.substr(words.rfind('\n') + 1)),
                  child.exit_code() > 0 ? child.exit_code() : kExitFailed);
  }
  return plan::probe_from_json(read_text_file(answer), "probe of " + device.device)
      .devices.at(device.device);
}

}  // namespace

plan::DeviceProfile probe_device(const plan::JobConfig& job,
                                 const plan::FleetConfig& fleet,
                                 const std::string& device,
                                 const chips::Catalogue& catalogue) {
  chips::EmulationOptions emulation;
  if (fleet.emulation_slowdown > 0) emulation.slowdown = fleet.emulation_slowdown;
  if (fleet.emulation_memory_gib) emulation.memory_bytes = *fleet.emulation_memory_gib * 0x1p30;
  const std::unique_ptr<chips::Device> opened = chips::open_device(device, catalogue, emulation);
  plan::JobConfig smaller = job;
  while (true) {
    try {
      return measure_device(smaller, device, *opened);
    } catch (const c10::Error& error) {
      const std::string why = error.what_without_backtrace();
      int64_t& microbatch = smaller.train.microbatch_sequences;
      if (microbatch == 1) fail("{}: {}", device, why.substr(0, why.find('\n')));
      microbatch /= 2;  // memory is what a smaller microbatch can mend; else the last try tells
    }
  }
}

plan::Probe probe_fleet(const plan::JobConfig& job,
                        const plan::FleetConfig& fleet,
                        const std::string& site,
                        const std::function<bool()>& should_stop) {
  const TemporaryFolder dir;
  write_file(dir.path() / "job.toml", job.source_toml);
  write_file(dir.path() / "fleet.toml", fleet.source_toml);
  plan::Probe probe;
  probe.job_hash = plan::probe_hash(job, fleet);
  std::map<std::string, size_t> num_cores;  // of what was measured: more make a "cpu" faster
  for (const plan::FleetSite& one : fleet.sites) {
    if (!site.empty() && one.name != site) continue;
    for (const plan::FleetDevice& device : one.devices) {
      const std::string of_site = fmt::format("{}/{}", one.name, device.device);
      const auto known = num_cores.find(device.device);
      const bool differs = device.device == "cpu" && known != num_cores.end() &&
                           known->second != device.cores.size();
      const std::string& name = !site.empty() || differs ? of_site : device.device;
      if (!num_cores.try_emplace(name, device.cores.size()).second) continue;
      log_info("probing device={}", name);
      probe.devices[name] = probe_in_child(job, device, dir.path(), should_stop);
    }
  }
  return probe;
}

int run_probe_device(const ProbeDeviceOptions& options) {
  if (!options.cores.empty()) bind_to_cores(options.cores);
  at::set_num_threads(std::max<int>(1, static_cast<int>(options.cores.size())));
  const chips::Catalogue catalogue = chips::Catalogue::built_in();
  plan::JobConfig job = plan::read_job(options.job, {});
  job.model.vocab_size = options.vocab_size;
  const plan::FleetConfig fleet = plan::read_fleet(options.fleet, catalogue);
  plan::Probe probe;
  probe.job_hash = plan::probe_hash(job, fleet);
  probe.devices[options.device] = probe_device(job, fleet, options.device, catalogue);
  std::printf("%s\n", plan::to_json(probe).c_str());
  return kExitDone;
}

}  // namespace pelago::train
