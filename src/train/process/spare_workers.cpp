#include "train/process/spare_workers.h"

#include <utility>

namespace pelago::train {

void SpareWorkers::fill(const WorkerStart& start, const plan::SitePlan& site) {
  const size_t num_ranks = site.devices.size();
  spares_.erase(spares_.lower_bound(num_ranks), spares_.end());
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    const plan::DevicePlan& device = site.devices[rank];
    const auto known = spares_.find(rank);
    if (known != spares_.end() && known->second.num_threads == num_threads_of(device)) continue;
    spares_.erase(rank);
    spares_.emplace(rank,
                    Spare{spawn_worker(start, device, rank, fmt::format("rank-{}.log", rank)),
                          num_threads_of(device)});
  }
}

void SpareWorkers::open_devices() {
  for (auto& [rank, spare] : spares_) spare.worker.socket.send(R"({"type":"open_device"})");
}

std::optional<Worker> SpareWorkers::take(size_t rank, size_t num_threads) {
  const auto found = spares_.find(rank);
  if (found == spares_.end()) return std::nullopt;
  Spare spare = std::move(found->second);
  spares_.erase(found);
  // One that said why it ended is handed over: whoever takes it must hear that.
  if (spare.num_threads != num_threads || spare.worker.socket.is_at_end()) return std::nullopt;
  return std::move(spare.worker);
}

}  // namespace pelago::train
