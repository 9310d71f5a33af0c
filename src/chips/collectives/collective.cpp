// What every collective shares: opening one, slices, and the case of a single rank.
#include "chips/collective.h"

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "base/error.h"
#include "chips/collectives/alone.h"
#include "chips/hierarchical/hierarchical_collective.h"
#include "chips/ucx/ucx_collective.h"

namespace pelago::chips {
namespace {

/// A site of one device: every sum is the value itself.
class AloneCollective final : public Collective {
 public:
  int rank() const override { return 0; }
  int num_ranks() const override { return 1; }
  void all_reduce_sum(std::span<float>) override {}
  void all_reduce_sum(std::span<double>) override {}
  void all_reduce_max(std::span<double>) override {}
  void broadcast(std::span<std::byte>, int from_rank) override {
    PELAGO_ASSERT(from_rank == 0, "a single rank broadcasts from rank 0");
  }
  std::vector<std::byte> all_gather(std::span<const std::byte> bytes) override {
    return {bytes.begin(), bytes.end()};
  }
  void send(std::span<const std::byte>, int, uint32_t) override { no_peer(); }
  void receive(std::span<std::byte>, int, uint32_t) override { no_peer(); }
  void barrier() override {}

 private:
  static void no_peer() { PELAGO_ASSERT(false, "a single rank has no peer to speak to"); }
};

constexpr const char* kOnlyAlone = "a collective of several ranks has tensor calls of its own";

}  // namespace

Collective::Slice Collective::slice_of(int64_t num_values, int num_slices, int slice_idx) {
  const int64_t shortest = num_values / num_slices;
  const int64_t num_longer = num_values % num_slices;
  const int64_t begin = slice_idx * shortest + std::min<int64_t>(slice_idx, num_longer);
  return {.begin = begin, .end = begin + shortest + (slice_idx < num_longer ? 1 : 0)};
}

std::unique_ptr<Collective> Collective::group(const std::vector<int>& ranks) {
  PELAGO_ASSERT(num_ranks() == 1, kOnlyAlone);
  PELAGO_ASSERT(ranks.size() == 1 && ranks[0] == 0, "a single rank is a group by itself");
  return open_alone_collective();
}

void Collective::all_reduce_sum(Tensor&, const WorkMark&) {
  PELAGO_ASSERT(num_ranks() == 1, kOnlyAlone);
}

void Collective::reduce_scatter_sum(Tensor&, const WorkMark&) {
  PELAGO_ASSERT(num_ranks() == 1, kOnlyAlone);
}

void Collective::all_gather_slices(Tensor&, const WorkMark&) {
  PELAGO_ASSERT(num_ranks() == 1, kOnlyAlone);
}

void Collective::broadcast(Tensor&, int) { PELAGO_ASSERT(num_ranks() == 1, kOnlyAlone); }

std::unique_ptr<Collective> open_alone_collective() { return std::make_unique<AloneCollective>(); }

std::unique_ptr<Collective> open_collective(const CollectiveOptions& options) {
  if (options.num_ranks < 1 || options.rank < 0 || options.rank >= options.num_ranks) {
    fail_usage("rank {} of {} does not exist: ranks count from 0", options.rank, options.num_ranks);
  }
  if (options.num_ranks == 1) return open_alone_collective();
  std::unique_ptr<Collective> host = open_ucx_collective(options);
  if (options.native_library.empty() && options.vendor_groups.empty()) return host;
  return open_between_devices(std::move(host), options);
}

}  // namespace pelago::chips
