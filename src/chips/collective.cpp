// What every collective shares: opening one, the case of a single rank, and tensors.
#include "chips/collective.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstring>

#include "base/error.h"
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

bool is_on_host(const Tensor& tensor) { return tensor.device().is_cpu(); }

std::span<std::byte> bytes_of(const Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.data_ptr()), static_cast<size_t>(tensor.nbytes())};
}

}  // namespace

void Collective::all_reduce_sum(Tensor& tensor) {
  PELAGO_ASSERT(tensor.is_contiguous() && tensor.scalar_type() == at::kFloat,
                "tensors are summed as contiguous f32");
  if (num_ranks() == 1) return;
  Tensor host = is_on_host(tensor) ? tensor : staged(tensor);  // [N]
  all_reduce_sum(std::span<float>(host.data_ptr<float>(), static_cast<size_t>(host.numel())));
  if (!is_on_host(tensor)) tensor.copy_(host.view(tensor.sizes()));
}

void Collective::broadcast(Tensor& tensor, int from_rank) {
  PELAGO_ASSERT(tensor.is_contiguous(), "tensors are broadcast as they lie in memory");
  if (num_ranks() == 1) return;
  Tensor host = is_on_host(tensor) ? tensor : staged(tensor);  // [N]
  broadcast(bytes_of(host), from_rank);
  if (!is_on_host(tensor) && rank() != from_rank) tensor.copy_(host.view(tensor.sizes()));
}

Tensor Collective::staged(const Tensor& tensor) {
  const auto num_bytes = static_cast<int64_t>(tensor.nbytes());
  if (!staging_.defined() || staging_.numel() < num_bytes) {
    staging_ = at::empty({num_bytes}, at::kByte);  // [N]
  }
  Tensor host = staging_.narrow(0, 0, num_bytes).view(tensor.scalar_type());  // [N]
  host.copy_(tensor.reshape({-1}));
  return host;
}

std::unique_ptr<Collective> open_collective(const CollectiveOptions& options) {
  if (options.num_ranks < 1 || options.rank < 0 || options.rank >= options.num_ranks) {
    fail_usage("rank {} of {} does not exist: ranks count from 0", options.rank, options.num_ranks);
  }
  if (options.num_ranks == 1) return std::make_unique<AloneCollective>();
  return open_ucx_collective(options);
}

}  // namespace pelago::chips
