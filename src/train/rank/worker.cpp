// The life of a worker process, outside of training: bound to its cores, tied to its parent, deaf
// to the signals that the terminal sends to everyone, and never silent about why it ended.
#include <c10/util/Exception.h>
#include <malloc.h>
#include <signal.h>
#include <sys/prctl.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <utility>

#include "base/log.h"
#include "base/text/json.h"
#include "base/threads.h"
#include "chips/torch.h"
#include "train/process/control.h"
#include "train/process/worker_set.h"
#include "train/rank/rank_run.h"
#include "train/recovery/plan_files.h"
#include "train/run_folder.h"
#include "train/site_runner.h"

namespace pelago::train {

namespace {

/// The supervisor alone decides when a worker ends, and it does so by closing the control socket.
void tie_to_parent() {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::signal(SIGINT, SIG_IGN);
  ::signal(SIGTERM, SIG_IGN);
}

/// A training step allocates and frees the same large buffers again and again. By default glibc
/// maps each anew, and the kernel clears every page: kept memory saves that.
void keep_freed_memory() {
  ::mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the largest that glibc takes
  ::mallopt(M_TRIM_THRESHOLD, 1 << 30);
  ::mallopt(M_TOP_PAD, 64 << 20);
}

/// Work goes to as many threads as the plan gives this device processors.
void take_processors(const std::vector<int>& cores) {
  if (!cores.empty() && !bind_to_cores(cores)) {
    log_warn("cannot bind to the plan's cores cores={}", fmt::join(cores, ","));
  }
  at::set_num_threads(std::max<int>(1, static_cast<int>(cores.size())));
  at::globalContext().setFlushDenormal(true);  // moments that fade to denormals cost 100x a number
}

/// The first line: libtorch appends a stack trace.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

/// cause: "job", "device" or "health" (the device is there, but computes wrong).
[[noreturn]] void end_in_failure(Control& control, const char* cause, const std::string& message) {
  log_error("{}", message);
  control.send(nlohmann::json({{"type", "failed"}, {"cause", cause}, {"message", message}}).dump());
  // Not through destructors: taking down a transport may wait for peers that are gone.
  std::_Exit(kExitFailed);
}

/// In the first 15 letters, what ps and top show: a spare is told from a worker by it.
void name_process(const char* name) { ::prctl(PR_SET_NAME, name); }

/// By the run's own plan, before it is known from where to train.
OpenDevice open_early(const WorkerOptions& options) {
  const plan::Plan plan = read_run_plan(options.run_dir);
  const auto site_idx = static_cast<size_t>(options.site_idx);
  const plan::DevicePlan& share =
      plan.sites.at(site_idx).devices.at(static_cast<size_t>(options.rank));
  take_processors(share.cores);
  return open_examined(plan, share, read_run_job(options.run_dir).train.known_answer);
}

/// Opens the device and asks it what it must know, nothing else.
void examine(const plan::Plan& plan, plan::DevicePlan share, Control& control) {
  share.faults.clear();
  open_examined(plan, share, /*is_on=*/true);
  control.send(nlohmann::json({{"type", "well"}}).dump());
}

}  // namespace

int run_worker(const WorkerOptions& options) {
  tie_to_parent();
  keep_freed_memory();
  Control control{PacketSocket(kControlDescriptor)};
  std::unique_ptr<RankRun> run;
  try {
    name_process("pelago-spare");
    std::optional<OpenDevice> opened;
    const WorkerSetup setup = control.wait_for_setup([&] { opened = open_early(options); });
    name_process("pelago-worker");
    const plan::Plan plan = read_plan(
        options.run_dir, read_run_plan(options.run_dir), options.site_idx, setup.plan_idx);
    const plan::SitePlan& site = plan.sites.at(static_cast<size_t>(options.site_idx));
    init_log(LogLevel::kInfo, fmt::format("{}/{}", site.name, options.rank));
    const plan::DevicePlan& share = site.devices.at(static_cast<size_t>(options.rank));
    take_processors(share.cores);
    if (setup.examine) {
      examine(plan, share, control);
      return kExitDone;
    }
    run = std::make_unique<RankRun>(options,
                                    setup,
                                    SharedWeights::attach(kWeightsDescriptor, plan.num_parameters),
                                    std::move(opened),
                                    control);
    run->run();
  } catch (const c10::Error& error) {
    end_in_failure(control, "device", first_line(error.what_without_backtrace()));
  } catch (const DeviceFault& fault) {
    end_in_failure(control, "health", fault.what());
  } catch (const std::exception& error) {
    end_in_failure(control, "job", first_line(error.what()));
  }
  return kExitDone;
}

}  // namespace pelago::train
