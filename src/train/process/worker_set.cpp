#include "train/process/worker_set.h"

#include <poll.h>

#include <algorithm>
#include <system_error>

#include "base/clock.h"
#include "base/error.h"
#include "base/files.h"
#include "train/process/spare_workers.h"

namespace pelago::train {

namespace fs = std::filesystem;

namespace {

/// The last line of a worker's log: what a crash printed.
std::string last_line(const fs::path& log) {
  std::error_code ignored;
  if (!fs::is_regular_file(log, ignored)) return "";
  std::string text = read_text_file(log);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  const size_t begin = text.rfind('\n');
  return begin == std::string::npos ? text : text.substr(begin + 1);
}

}  // namespace

Worker spawn_worker(const WorkerStart& start,
                    const plan::DevicePlan& device,
                    size_t rank,
                    const std::string& log_name) {
  auto [ours, theirs] = PacketSocket::make_pair();
  const size_t num_threads = num_threads_of(device);
  fs::path log = start.site_dir / "logs" / log_name;
  ChildOptions options{.program = program_path(),
                       .arguments = {"worker",
                                     "--run-dir",
                                     start.run_dir.string(),
                                     "--site-dir",
                                     start.site_dir.string(),
                                     "--site-idx",
                                     std::to_string(start.site_idx),
                                     "--rank",
                                     std::to_string(rank)},
                       .environment = {fmt::format("OMP_NUM_THREADS={}", num_threads),
                                       fmt::format("OPENBLAS_NUM_THREADS={}", num_threads)},
                       .descriptors = {{theirs.descriptor(), kControlDescriptor}},
                       .log = log};
  if (start.weights_descriptor >= 0) {
    options.descriptors.emplace_back(start.weights_descriptor, kWeightsDescriptor);
  }
  if (!start.bridge_descriptors.empty()) {
    options.descriptors.emplace_back(start.bridge_descriptors.at(rank), kBridgeDescriptor);
  }
  return Worker{.process = ChildProcess(options),
                .socket = std::move(ours),
                .log = std::move(log),
                .device = device.device,
                .last_words = "",
                .cause = ""};
}

Worker start_worker(const WorkerStart& start,
                    const plan::DevicePlan& device,
                    size_t rank,
                    const std::string& log_name) {
  Worker worker = spawn_worker(start, device, rank, log_name);
  worker.socket.send(start.setup);
  return worker;
}

void WorkerSet::start(const WorkerStart& start,
                      const plan::SitePlan& site,
                      SpareWorkers& spares) {
  PELAGO_ASSERT(workers_.empty(), "the workers of an earlier start have ended");
  for (size_t rank = 0; rank < site.devices.size(); ++rank) {
    const plan::DevicePlan& device = site.devices[rank];
    if (std::optional<Worker> spare = spares.take(rank, num_threads_of(device))) {
      spare->device = device.device;
      spare->socket.send(start.setup);
      workers_.push_back(std::move(*spare));
    } else {
      workers_.push_back(start_worker(start, device, rank, fmt::format("rank-{}.log", rank)));
    }
  }
}

bool WorkerSet::wait(double timeout_s, const OnPacket& on_packet) {
  std::vector<pollfd> watched;
  for (const Worker& worker : workers_) {
    // A descriptor of -1 is passed over: of a worker that has ended nothing more can come.
    watched.push_back(
        {.fd = worker.is_over() ? -1 : worker.socket.descriptor(), .events = POLLIN, .revents = 0});
  }
  const int timeout_ms = static_cast<int>(1e3 * std::max(timeout_s, 0.0));
  if (::poll(watched.data(), watched.size(), timeout_ms) <= 0) return false;
  for (size_t rank = 0; rank < watched.size(); ++rank) {
    if (watched[rank].revents == 0) continue;
    const std::optional<std::string> packet = workers_[rank].socket.receive();
    if (packet) {
      on_packet(rank, *packet);
    } else {
      workers_[rank].is_lost = true;
    }
  }
  return true;
}

void WorkerSet::tell_first(const std::string& packet) {
  if (!workers_.empty()) workers_.front().socket.send(packet);
}

void WorkerSet::tell_all(const std::string& packet) {
  for (Worker& worker : workers_) {
    if (!worker.is_over()) worker.socket.send(packet);
  }
}

void WorkerSet::end(double grace_s) {
  for (Worker& worker : workers_) worker.socket.close();
  const double deadline_s = steady_now_s() + grace_s;
  for (Worker& worker : workers_) {
    if (!worker.process.wait(std::max(0.0, deadline_s - steady_now_s()))) worker.process.kill();
  }
  workers_.clear();
}

bool WorkerSet::all_are(bool Worker::*state) const {
  return std::all_of(
      workers_.begin(), workers_.end(), [&](const Worker& worker) { return worker.*state; });
}

bool WorkerSet::any_is(bool Worker::*state) const {
  return std::any_of(
      workers_.begin(), workers_.end(), [&](const Worker& worker) { return worker.*state; });
}

std::string describe_end(Worker& worker, size_t rank) {
  worker.process.wait(1.0);
  const std::string words = worker.last_words.empty() ? last_line(worker.log) : worker.last_words;
  return fmt::format("rank {} ({}) {}{}{}",
                     rank,
                     worker.device,
                     worker.process.how_it_ended(),
                     words.empty() ? "" : ": ",
                     words);
}

}  // namespace pelago::train
