#include "train/probe.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/threads.h"
#include "chips/collective.h"
#include "chips/device.h"
#include "chips/torch.h"
#include "model/transformer.h"
#include "train/process/child.h"
#include "train/rank/trainer.h"

namespace pelago::train {

namespace fs = std::filesystem;

namespace {

constexpr double kBudgetS = 2.5;       // of timed steps, a device
constexpr int kLargeMicrobatches = 2;  // the largest of the three steps that the fit goes through
constexpr int kRepeatsMax = 5;
constexpr double kChildTimeoutS = 120;  // a device slower than this cannot be of use to the job

struct StepTime {
  double seconds = 0;
  double host_cpu_s = 0;     // of this process, all threads
  double device_busy_s = 0;  // emulated: what the chip would have needed; real: 0
};

double process_cpu_s() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// A site of one device that takes num_sequences a step.
TrainerOptions alone(const plan::JobConfig& job, const std::string& device, int64_t sequences) {
  plan::DevicePlan share;
  share.device = device;
  share.sequences = sequences;
  share.microbatch = std::min(sequences, job.train.microbatch_sequences);
  TrainerOptions options;
  options.model = job.model;
  options.train = job.train;
  options.site.name = "probe";
  options.site.devices = {share};
  options.site.batch_sequences = sequences;
  options.batch_sequences = sequences;
  options.sequence_length = job.data.sequence_length;
  options.num_steps = 1000;  // beyond any number of timed ones
  return options;
}

MemorySource made_up_tokens(const plan::JobConfig& job) {
  Rng rng = Rng(static_cast<uint64_t>(job.train.seed)).fork("probe");
  std::vector<int64_t> tokens(static_cast<size_t>(8 * job.data.sequence_length + 1));
  for (int64_t& token : tokens) {
    token = static_cast<int64_t>(rng.next_below(static_cast<uint64_t>(job.model.vocab_size)));
  }
  return MemorySource(std::move(tokens));
}

/// Steps of one size, timed one by one.
class Timing {
 public:
  Timing(const plan::JobConfig& job,
         const std::string& name,
         int64_t sequences,
         chips::Device& device,
         const TokenSource& tokens,
         const Tensor& weights)
      : device_(&device),
        collective_(chips::open_collective({.rank = 0, .num_ranks = 1, .rendezvous_dir = ""})),
        trainer_(alone(job, name, sequences), device, *collective_, tokens) {
    trainer_.load_weights(weights);
  }

  StepTime time_step() {
    const double device_before_s = device_->stats().device_busy_s;
    const double cpu_before_s = process_cpu_s();
    const double begin_s = steady_now_s();
    trainer_.step(step_idx_++);
    return {.seconds = steady_now_s() - begin_s,
            .host_cpu_s = process_cpu_s() - cpu_before_s,
            .device_busy_s = device_->stats().device_busy_s - device_before_s};
  }

 private:
  chips::Device* device_;
  std::unique_ptr<chips::Collective> collective_;
  Trainer trainer_;
  int64_t step_idx_ = 0;
};

/// The median of a few steps; the very first of a process warms up and does not count.
StepTime median_step(Timing& timing, double budget_s, bool is_first) {
  if (is_first) timing.time_step();
  const double deadline_s = steady_now_s() + budget_s;
  std::vector<StepTime> times;
  do {
    times.push_back(timing.time_step());
  } while (times.size() < kRepeatsMax && steady_now_s() < deadline_s);
  std::sort(times.begin(), times.end(), [](const StepTime& a, const StepTime& b) {
    return a.seconds < b.seconds;
  });
  return times[(times.size() - 1) / 2];
}

plan::DeviceProfile profile_with(const plan::JobConfig& job,
                                 const std::string& name,
                                 chips::Device& device) {
  const MemorySource tokens = made_up_tokens(job);
  const Tensor weights =
      model::initial_weights(job.model, Rng(static_cast<uint64_t>(job.train.seed)));
  const int64_t whole = job.train.microbatch_sequences;
  const int64_t part = std::max<int64_t>(1, whole / 4);
  bool is_first = true;
  const auto time = [&](int64_t sequences, double budget_s) {
    Timing timing(job, name, sequences, device, tokens, weights);
    return median_step(timing, budget_s, std::exchange(is_first, false));
  };
  const double part_s = whole > part ? time(part, kBudgetS * 0.2).seconds : 0;
  const double one_s = time(whole, kBudgetS * 0.3).seconds;
  const StepTime large_step = time(kLargeMicrobatches * whole, kBudgetS * 0.5);
  plan::DeviceProfile profile;
  profile.device = name;
  // What a further microbatch costs; noise must not turn a real device's slopes around.
  const double microbatch_s = std::max((large_step.seconds - one_s) / (kLargeMicrobatches - 1),
                                       0.5 * large_step.seconds / kLargeMicrobatches);
  const double all_sequences_s = whole > part ? (one_s - part_s) * static_cast<double>(whole) /
                                                    static_cast<double>(whole - part)
                                              : microbatch_s;
  profile.sequence_s =
      std::clamp(all_sequences_s, 0.1 * microbatch_s, microbatch_s) / static_cast<double>(whole);
  profile.microbatch_s = microbatch_s - profile.sequence_s * static_cast<double>(whole);
  profile.step_s = std::max(0.0, large_step.seconds - kLargeMicrobatches * microbatch_s);
  // Against the chip's own time, not the clock's: a host that is too slow stretches the clock.
  profile.host_busy_ratio =
      large_step.device_busy_s > 0 ? large_step.host_cpu_s / large_step.device_busy_s : 0;
  profile.memory_bytes = device.stats().peak_bytes;
  profile.measured = true;
  return profile;
}

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
                                   const fs::path& dir) {
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
  options.ignore_interrupts = false;
  ChildProcess child(options);
  ::close(file);
  if (!child.wait(kChildTimeoutS)) {
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
      return profile_with(smaller, device, *opened);
    } catch (const c10::Error& error) {
      const std::string why = error.what_without_backtrace();
      int64_t& microbatch = smaller.train.microbatch_sequences;
      if (microbatch == 1) fail("{}: {}", device, why.substr(0, why.find('\n')));
      microbatch /= 2;  // memory is what a smaller microbatch can mend; else the last try tells
    }
  }
}

plan::Probe probe_fleet(const plan::JobConfig& job, const plan::FleetConfig& fleet) {
  const TemporaryFolder dir;
  write_file(dir.path() / "job.toml", job.source_toml);
  write_file(dir.path() / "fleet.toml", fleet.source_toml);
  plan::Probe probe;
  probe.job_hash = plan::probe_hash(job, fleet);
  for (const plan::FleetSite& site : fleet.sites) {
    for (const plan::FleetDevice& device : site.devices) {
      if (probe.devices.contains(device.device)) continue;
      log_info("probing device={}", device.device);
      probe.devices[device.device] = probe_in_child(job, device, dir.path());
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
