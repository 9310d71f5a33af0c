// Workers that are started before they are needed. Loading libtorch and a driver takes tenths of a
// second to seconds, in which a site whose worker died would train nothing: a spare has done that
// and waits for its setup. While a worker has the device, a spare does not touch it; before the
// site's first start, it may open and examine it, too.
#pragma once

#include <cstddef>
#include <map>
#include <optional>

#include "plan/plan.h"
#include "train/process/worker_set.h"

namespace pelago::train {

class SpareWorkers {
 public:
  /// One for each device of the site that has none; of those that it no longer has they end. They
  /// die with the thread that calls this. start: without a setup.
  void fill(const WorkerStart& start, const plan::SitePlan& site);
  /// Has those that wait open their devices by the run's own plan, and examine them.
  void open_devices();
  /// The spare of this rank, with so many threads, its setup to be sent; nothing if there is none,
  /// or it died without a word.
  std::optional<Worker> take(size_t rank, size_t num_threads);

 private:
  struct Spare {
    Worker worker;
    size_t num_threads;
  };
  std::map<size_t, Spare> spares_;  // by rank
};

}  // namespace pelago::train
