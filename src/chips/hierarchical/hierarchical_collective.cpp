#include "chips/hierarchical/hierarchical_collective.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <optional>

#include "base/clock.h"
#include "base/error.h"
#include "chips/hierarchical/host_share.h"
#include "chips/hierarchical/vendor_groups.h"
#include "chips/links.h"
#include "chips/native/device_calls.h"
#include "chips/native/native_collective.h"
#include "chips/native/over_host.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace {

// A long vector goes in chunks, so that one is on its way to the host while another is added and a
// third comes back. Three ahead bound the host memory.
constexpr int64_t kChunkValues = 1 << 20;  // 4 MiB
constexpr size_t kChunksAhead = 3;
// Below this, the hops cost more than the bytes saved.
constexpr int64_t kStageWholeBytes = 64 << 10;

/// A view [N] of a contiguous tensor's values, outside autograd.
Tensor flat_view(const Tensor& tensor) {
  PELAGO_ASSERT(tensor.is_contiguous(), "ranks exchange tensors as they lie in memory");
  return tensor.detach().view({-1});
}

class HierarchicalCollective final : public OverHost {
 public:
  HierarchicalCollective(std::unique_ptr<Collective> host_collective,
                         const CollectiveOptions& options)
      : OverHost(std::move(host_collective), *options.device),
        options_(options),
        groups_(options.vendor_groups) {
    const std::vector<int>& own_group = groups_.group_of(rank());
    if (own_group.size() > 1) {
      const native::Library library(options.native_library, options.plugin_dir);
      inside_host_ = host().group(own_group);
      inside_.emplace(library,
                      native::join_over(*inside_host_, library, options),
                      *options.device,
                      groups_.place(rank()),
                      static_cast<int>(own_group.size()));
    }
    for (const Border& border : groups_.borders()) {
      const bool is_mine = std::ranges::find(border.ranks, rank()) != border.ranks.end();
      across_.push_back(is_mine ? host().group(border.ranks) : nullptr);
    }
    host_parts_ = agree_on_host_parts();
  }

  std::unique_ptr<Collective> group(const std::vector<int>& ranks) override {
    CollectiveOptions options = options_;
    options.vendor_groups.clear();
    for (const int rank : ranks) options.vendor_groups.push_back(groups_.group_idx(rank));
    return open_between_devices(host().group(ranks), options);
  }

  using OverHost::all_reduce_sum;
  using OverHost::broadcast;
  void all_reduce_sum(Tensor& tensor, const WorkMark& after) override;
  /// The other slices come along: what bounds it is the way to the host, which is as busy without.
  void reduce_scatter_sum(Tensor& tensor, const WorkMark& after) override;
  void all_gather_slices(Tensor& tensor, const WorkMark& after) override;
  void broadcast(Tensor& tensor, int from_rank) override;

 private:
  /// A chunk whose part of the group's sum is on its way to the host.
  struct Chunk {
    Tensor values;         // [num_units * unit_values], on the device
    Tensor own;            // this rank's part of values
    bool is_whole = true;  // over the hosts: own is all of values
    std::unique_ptr<HostCopy> copy;
  };
  int agree_on_host_parts();
  Chunk begin_chunk(const Tensor& values, bool is_whole, const WorkMark& after);
  void add_across(const Tensor& host_sum);
  void end_chunk(Chunk& chunk);
  void reduce_even(const Tensor& flat, const WorkMark& after);

  bool is_short(const Tensor& tensor) const {
    return static_cast<int64_t>(tensor.nbytes()) < kStageWholeBytes;
  }
  int group_size() const { return static_cast<int>(groups_.group_of(rank()).size()); }

  const CollectiveOptions options_;
  const VendorGroups groups_;
  std::unique_ptr<Collective> inside_host_;          // among the ranks of the group
  std::optional<native::DeviceCalls> inside_;        // none in a group of one
  std::vector<std::unique_ptr<Collective>> across_;  // by border; null where others meet
  int host_parts_ = 0;                               // of kShareParts
};

void HierarchicalCollective::all_reduce_sum(Tensor& tensor, const WorkMark& after) {
  if (!is_on_device(tensor) || is_short(tensor) || tensor.scalar_type() == at::kDouble) {
    return host().all_reduce_sum(tensor, after);
  }
  if (tensor.scalar_type() != at::kFloat) {
    Tensor wide = tensor.detach().to(at::kFloat);  // nothing is rounded between two additions
    all_reduce_sum(wide, /*after=*/nullptr);
    tensor.detach().copy_(wide);
    return;
  }
  const Tensor flat = flat_view(tensor);
  const int64_t num_odd = flat.numel() % groups_.num_units();
  reduce_even(flat.narrow(0, 0, flat.numel() - num_odd), after);
  if (num_odd > 0) {
    Tensor odd = flat.narrow(0, flat.numel() - num_odd, num_odd);
    host().all_reduce_sum(odd, after);
  }
}

/// flat: [N], N a multiple of the groups' units.
void HierarchicalCollective::reduce_even(const Tensor& flat, const WorkMark& after) {
  const int64_t chunk_values = kChunkValues / groups_.num_units() * groups_.num_units();
  std::deque<Chunk> under_way;
  const auto end_first = [&] {
    end_chunk(under_way.front());
    under_way.pop_front();
  };
  for (int64_t begin = 0; begin < flat.numel(); begin += chunk_values) {
    const int64_t length = std::min(chunk_values, flat.numel() - begin);
    const bool is_whole = goes_over_hosts(begin / chunk_values, host_parts_);
    under_way.push_back(begin_chunk(flat.narrow(0, begin, length), is_whole, after));
    if (under_way.size() == kChunksAhead) end_first();
  }
  while (!under_way.empty()) end_first();
}

/// All ranks tell their rates, and compute the same.
int HierarchicalCollective::agree_on_host_parts() {
  const Chip* const chip = device().chip();
  RankRates own = {.group_size = group_size(),
                   .group_bytes_per_s = options_.links.group_bytes_per_s,
                   .host_bytes_per_s = chip != nullptr ? host_bytes_per_s(*chip) : 0};
  const std::vector<std::byte> gathered = host().all_gather(std::as_bytes(std::span(&own, 1)));
  std::vector<RankRates> all(static_cast<size_t>(num_ranks()));
  std::memcpy(all.data(), gathered.data(), gathered.size());
  return best_host_parts(all);
}

HierarchicalCollective::Chunk HierarchicalCollective::begin_chunk(const Tensor& values,
                                                                  bool is_whole,
                                                                  const WorkMark& after) {
  Chunk chunk = {.values = values, .own = values, .is_whole = is_whole, .copy = nullptr};
  WorkMark ready = after;
  if (inside_ && !is_whole) {
    inside_->reduce_scatter_sum(chunk.values, after);
    ready = inside_->done();
    const int64_t own_values = values.numel() / group_size();
    chunk.own = values.narrow(0, groups_.place(rank()) * own_values, own_values);
  }
  chunk.copy = device().start_copy_to_host(chunk.own, ready);
  return chunk;
}

void HierarchicalCollective::end_chunk(Chunk& chunk) {
  const Tensor& host_sum = chunk.copy->wait();  // of this rank or its group; becomes everybody's
  if (chunk.is_whole) {
    host().all_reduce_sum(
        std::span(host_sum.data_ptr<float>(), static_cast<size_t>(host_sum.numel())));
  } else {
    add_across(host_sum);
  }
  if (host_sum.data_ptr() != chunk.own.data_ptr()) {
    device().copy_into(chunk.own, host_sum, steady_now_s());
  }
  if (inside_ && !chunk.is_whole) inside_->all_gather_slices(chunk.values, /*after=*/nullptr);
}

/// host_sum: this rank's part of a chunk.
void HierarchicalCollective::add_across(const Tensor& host_sum) {
  const int64_t own_units = groups_.num_units() / group_size();
  const int64_t unit_values = host_sum.numel() / own_units;
  const int64_t first_unit = groups_.place(rank()) * own_units;
  for (size_t i = 0; i < across_.size(); ++i) {
    if (across_[i] == nullptr) continue;
    const Border& border = groups_.borders()[i];
    across_[i]->all_reduce_sum(
        std::span(host_sum.data_ptr<float>() + (border.first_unit - first_unit) * unit_values,
                  static_cast<size_t>(border.num_units * unit_values)));
  }
}

void HierarchicalCollective::reduce_scatter_sum(Tensor& tensor, const WorkMark& after) {
  if (!is_on_device(tensor) || is_short(tensor)) return host().reduce_scatter_sum(tensor, after);
  all_reduce_sum(tensor, after);
}

void HierarchicalCollective::all_gather_slices(Tensor& tensor, const WorkMark& after) {
  if (!is_on_device(tensor) || is_short(tensor)) return host().all_gather_slices(tensor, after);
  // The hosts gather everything; each chip of a group fetches its share of what is new to the
  // group, and the group's own links spread it.
  Tensor flat = flat_view(tensor);
  const Slice own = own_slice(flat.numel());
  Tensor gathered = device().make_host_tensor(flat.sizes(), flat.scalar_type());
  const auto copy =
      device().start_copy_to_host(flat.narrow(0, own.begin, own.end - own.begin), after);
  gathered.narrow(0, own.begin, own.end - own.begin).copy_(copy->wait());
  host().all_gather_slices(gathered);
  const double arrived_s = steady_now_s();
  const int own_group = groups_.group_idx(rank());
  const std::vector<int> receivers = groups_.receivers(own_group);
  std::vector<Slice> slices;
  for (int r = 0; r < num_ranks(); ++r) {
    const Slice slice = slice_of(flat.numel(), num_ranks(), r);
    slices.push_back(slice);
    const bool is_foreign = groups_.group_idx(r) != own_group;
    const bool is_mine = receivers[static_cast<size_t>(r)] == groups_.place(rank());
    if (!is_foreign || !is_mine || slice.begin == slice.end) continue;
    Tensor place = flat.narrow(0, slice.begin, slice.end - slice.begin);
    device().copy_into(place, gathered.narrow(0, slice.begin, slice.end - slice.begin), arrived_s);
  }
  if (inside_) inside_->broadcast_slices(flat, slices, receivers);
}

void HierarchicalCollective::broadcast(Tensor& tensor, int from_rank) {
  if (!is_on_device(tensor) || is_short(tensor)) return host().broadcast(tensor, from_rank);
  Tensor flat = flat_view(tensor);
  Tensor on_host;
  std::unique_ptr<HostCopy> copy;
  if (rank() == from_rank) {
    copy = device().start_copy_to_host(flat, /*after=*/nullptr);
    on_host = copy->wait();
  } else {
    on_host = device().make_host_tensor(flat.sizes(), flat.scalar_type());
  }
  host().broadcast(on_host, from_rank);
  const std::vector<int>& group = groups_.group_of(rank());
  const auto source = std::ranges::find(group, from_rank);
  if (source != group.end()) {
    if (inside_) inside_->broadcast(flat, static_cast<int>(source - group.begin()));
    return;
  }
  const Slice own = slice_of(flat.numel(), group_size(), groups_.place(rank()));
  Tensor place = flat.narrow(0, own.begin, own.end - own.begin);
  device().copy_into(place, on_host.narrow(0, own.begin, own.end - own.begin), steady_now_s());
  if (inside_) inside_->all_gather_slices(flat, /*after=*/nullptr);
}

/// Fails if the options do not fit the ranks; a group of several ranks needs a library.
void check_options(const CollectiveOptions& options, const VendorGroups& groups, int rank) {
  if (options.device == nullptr) {
    fail_usage("a collective between devices needs a device: rank {} has none", rank);
  }
  if (groups.group_of(rank).size() > 1 && options.native_library.empty()) {
    fail_usage("rank {} is one of {} in its vendor group, which names no collective library",
               rank,
               groups.group_of(rank).size());
  }
}

}  // namespace

std::unique_ptr<Collective> open_between_devices(std::unique_ptr<Collective> host,
                                                 const CollectiveOptions& options) {
  CollectiveOptions complete = options;
  const auto num_ranks = static_cast<size_t>(host->num_ranks());
  if (complete.vendor_groups.empty()) complete.vendor_groups.assign(num_ranks, 0);
  if (complete.vendor_groups.size() != num_ranks) {
    fail_usage("vendor groups are given for {} ranks where {} meet",
               complete.vendor_groups.size(),
               num_ranks);
  }
  const VendorGroups groups(complete.vendor_groups);
  check_options(complete, groups, host->rank());
  if (groups.groups().size() == num_ranks) return host;  // no two ranks share a library
  if (groups.groups().size() > 1) {
    return std::make_unique<HierarchicalCollective>(std::move(host), complete);
  }
  const native::Library library(complete.native_library, complete.plugin_dir);
  return open_native_collective(std::move(host), library, complete);
}

}  // namespace pelago::chips
