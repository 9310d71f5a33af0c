// Collectives between worker processes of one site. Sums run in rank order, so that every rank
// holds the same bits. Implementations: alone (one rank), ucx (shared memory, RDMA or TCP;
// host-staged).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "chips/device.h"
#include "chips/native/links.h"
#include "chips/tensor.h"

namespace pelago::chips {

/// Every call throws Failure naming the rank if a peer is gone or silent for timeout_s.
class Collective {
 public:
  virtual ~Collective() = default;
  virtual int rank() const = 0;
  virtual int num_ranks() const = 0;
  /// Replaces values by their sum over ranks, added in rank order 0, 1, 2...: bit-identical on
  /// every rank.
  virtual void all_reduce_sum(std::span<float> values) = 0;
  virtual void all_reduce_sum(std::span<double> values) = 0;
  virtual void all_reduce_max(std::span<double> values) = 0;
  virtual void broadcast(std::span<std::byte> bytes, int from_rank) = 0;
  /// Every rank gives as many bytes; the result has them in rank order.
  virtual std::vector<std::byte> all_gather(std::span<const std::byte> bytes) = 0;
  virtual void send(std::span<const std::byte> bytes, int to_rank, uint32_t tag) = 0;
  virtual void receive(std::span<std::byte> bytes, int from_rank, uint32_t tag) = 0;
  virtual void barrier() = 0;

  /// A collective of some of the ranks, which count from 0 in the order given. Each of these ranks,
  /// and nobody else, calls it; ranks that share several groups call for them in the same order.
  /// The one it came from outlives it, and belongs to the same thread.
  virtual std::unique_ptr<Collective> group(const std::vector<int>& ranks);

  /// Tensors: contiguous, on the CPU or on the device of CollectiveOptions. Sums are f32 whatever
  /// the dtype. `after`: what the tensor waits for on its device (Device::mark()); null: all given.
  /// Replaces a tensor [N] of any float dtype by its sum over ranks.
  virtual void all_reduce_sum(Tensor& tensor, const WorkMark& after = nullptr);
  /// As all_reduce_sum, but only own_slice(N) of the tensor receives its sum.
  virtual void reduce_scatter_sum(Tensor& tensor, const WorkMark& after = nullptr);
  /// Every rank gives own_slice(N) of the tensor [N]; all receive all of it.
  virtual void all_gather_slices(Tensor& tensor, const WorkMark& after = nullptr);
  /// Copies a contiguous tensor from one rank to all, whatever its dtype.
  virtual void broadcast(Tensor& tensor, int from_rank);

  /// Slice slice_idx of num_values cut over num_slices ranks, whose lengths differ by at most one.
  struct Slice {
    int64_t begin = 0, end = 0;
  };
  static Slice slice_of(int64_t num_values, int num_slices, int slice_idx);
  Slice own_slice(int64_t num_values) const { return slice_of(num_values, num_ranks(), rank()); }
};

struct CollectiveOptions {
  int rank = 0;
  int num_ranks = 1;
  /// Ranks leave their addresses here; empty at the start, one folder a start.
  std::filesystem::path rendezvous_dir = {};
  double timeout_s = 120;    // the longest silence that is not yet a failure
  Device* device = nullptr;  // of device tensors, outlives the collective; null: the CPU's only

  // Between devices of one brand their own library moves device tensors ("nccl", "hccl", ...:
  // chips/native/facts.h has all). Empty, and no vendor groups: everything goes over the hosts.
  std::string native_library = {};
  std::filesystem::path plugin_dir = {};  // where it is looked for first; empty: beside the program
  std::vector<int> vendor_groups = {};    // by rank; ranks of one number share a library; empty:
                                          // all share one
  native::Links links = {};               // what emulated chips are charged
};

/// One rank needs no transport. More: UCX between the hosts, and where native_library or
/// vendor_groups are given, the chips' own links within a group. Throws Failure if a rank does not
/// come in time.
std::unique_ptr<Collective> open_collective(const CollectiveOptions& options);

}  // namespace pelago::chips
