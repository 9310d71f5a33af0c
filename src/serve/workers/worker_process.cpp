// Workers as children of this program. Their cores are given before the program starts, and they
// die with the thread that started them.
#include <algorithm>

#include "base/files.h"
#include "base/process/child.h"
#include "base/threads.h"
#include "serve/workers/router_engine.h"

namespace pelago::serve {

namespace {

constexpr int kWorkerSocket = 3;  // its number in the child

class ChildHost final : public WorkerHost {
 public:
  explicit ChildHost(const ChildOptions& options) : child_(options) {}
  int64_t pid() const override { return child_.pid(); }
  void kill() override { child_.kill(); }
  std::string end(double timeout_s) override {
    if (!child_.wait(timeout_s)) {
      child_.kill();
      child_.wait(timeout_s);
    }
    return child_.how_it_ended();
  }

 private:
  ChildProcess child_;
};

/// Neighbouring cores, as many for each; where there are more workers than cores, one each in turn.
std::vector<int> cores_of(size_t worker_idx, size_t num_workers) {
  const std::vector<int> all = allowed_cores();
  if (num_workers >= all.size()) return {all[worker_idx % all.size()]};
  const size_t begin = worker_idx * all.size() / num_workers;
  const size_t end = (worker_idx + 1) * all.size() / num_workers;
  return {all.begin() + static_cast<ptrdiff_t>(begin), all.begin() + static_cast<ptrdiff_t>(end)};
}

}  // namespace

StartWorker start_worker_processes(size_t num_workers) {
  return [num_workers](size_t worker_idx, int socket) -> std::unique_ptr<WorkerHost> {
    ChildOptions options;
    options.program = program_path();
    options.arguments = {"serve-worker",
                         "--worker",
                         std::to_string(worker_idx),
                         "--socket",
                         std::to_string(kWorkerSocket)};
    options.descriptors = {{socket, kWorkerSocket}};
    options.cores = cores_of(worker_idx, num_workers);
    return std::make_unique<ChildHost>(options);
  };
}

}  // namespace pelago::serve
