#include "chips/native/native_collective.h"

#include "base/error.h"
#include "chips/collectives/alone.h"
#include "chips/native/device_calls.h"
#include "chips/native/over_host.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace {

class NativeCollective final : public OverHost {
 public:
  NativeCollective(std::unique_ptr<Collective> host_collective,
                   const native::Library& library,
                   const CollectiveOptions& options)
      : OverHost(std::move(host_collective), *options.device),
        library_(library),
        options_(options),
        calls_(library,
               native::join_over(host(), library, options),
               *options.device,
               rank(),
               num_ranks()) {}

  std::unique_ptr<Collective> group(const std::vector<int>& ranks) override {
    std::unique_ptr<Collective> hosts = host().group(ranks);
    if (ranks.size() == 1) return hosts;
    return open_native_collective(std::move(hosts), library_, options_);
  }

  using OverHost::all_reduce_sum;
  using OverHost::broadcast;
  void all_reduce_sum(Tensor& tensor, const WorkMark& after) override {
    if (!is_on_device(tensor)) return host().all_reduce_sum(tensor, after);
    calls_.all_reduce_sum(tensor.detach(), after);
  }
  void reduce_scatter_sum(Tensor& tensor, const WorkMark& after) override {
    if (!is_on_device(tensor)) return host().reduce_scatter_sum(tensor, after);
    calls_.reduce_scatter_sum(tensor.detach(), after);
  }
  void all_gather_slices(Tensor& tensor, const WorkMark& after) override {
    if (!is_on_device(tensor)) return host().all_gather_slices(tensor, after);
    calls_.all_gather_slices(tensor.detach(), after);
  }
  void broadcast(Tensor& tensor, int from_rank) override {
    if (!is_on_device(tensor)) return host().broadcast(tensor, from_rank);
    calls_.broadcast(tensor.detach(), from_rank);
  }

 private:
  native::Library library_;
  const CollectiveOptions options_;
  native::DeviceCalls calls_;
};

}  // namespace

bool OverHost::is_on_device(const Tensor& tensor) const {
  return tensor.device().type() == device_.torch_device().type();
}

std::unique_ptr<Collective> open_native_collective(std::unique_ptr<Collective> host,
                                                   const native::Library& library,
                                                   const CollectiveOptions& options) {
  return std::make_unique<NativeCollective>(std::move(host), library, options);
}

}  // namespace pelago::chips
