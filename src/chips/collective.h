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

  /// Sums a contiguous f32 tensor [N] in place: on the CPU directly, else staged through the host.
  void all_reduce_sum(Tensor& tensor);
  /// Copies a contiguous tensor from one rank to all, whatever its dtype.
  void broadcast(Tensor& tensor, int from_rank);

 private:
  Tensor staged(const Tensor& tensor);  // a flat host copy in the dtype of tensor
  Tensor staging_;                      // [N] uint8, grows to the largest device tensor seen
};

struct CollectiveOptions {
  int rank = 0;
  int num_ranks = 1;
  std::filesystem::path
      rendezvous_dir;      // ranks leave their addresses here; empty at the start, one dir a start
  double timeout_s = 120;  // the longest silence that is not yet a failure
};

/// One rank needs no transport. More: UCX. Throws Failure if a rank does not come in time.
std::unique_ptr<Collective> open_collective(const CollectiveOptions& options);

}  // namespace pelago::chips
