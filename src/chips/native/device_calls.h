// A communicator of the chips' own library, on tensors: waits for the work that wrote them, widens
// 16-bit values where the library would add them in 16 bits, and pads slices, which the libraries
// want of one length.
#pragma once

#include <memory>
#include <vector>

#include "chips/collective.h"
#include "chips/native/library.h"

namespace pelago::chips::native {

/// Tensors are contiguous, on the device and outside autograd; slices are those of
/// Collective::slice_of.
class DeviceCalls {
 public:
  /// device: outlives me. Throws Failure if the library cannot read the device's memory.
  DeviceCalls(const Library& library,
              std::unique_ptr<Communicator> communicator,
              Device& device,
              int rank,
              int num_ranks);

  /// Sums in f32 (f64 for f64) whatever the dtype. tensor: [N]. Only slice `rank` of a
  /// reduce_scatter's tensor receives its sum; the rest is not to be used.
  void all_reduce_sum(const Tensor& tensor, const WorkMark& after);
  void reduce_scatter_sum(const Tensor& tensor, const WorkMark& after);
  void all_gather_slices(const Tensor& tensor, const WorkMark& after);
  void broadcast(const Tensor& tensor, int from_rank);
  /// Slice i of the tensor [N] comes from owners[i], a rank here. The slices may be of any lengths.
  void broadcast_slices(const Tensor& tensor,
                        const std::vector<Collective::Slice>& slices,
                        const std::vector<int>& owners);

  /// When the result of the last call is ready on the device.
  WorkMark done() const { return done_; }

 private:
  template <typename Call>
  void run(const WorkMark& after, const Call& call);
  bool needs_widening(const Tensor& tensor) const;
  Tensor padded(const Tensor& flat) const;
  void take_slices(const Tensor& rows, const Tensor& flat) const;

  Library library_;
  std::unique_ptr<Communicator> communicator_;
  Device& device_;
  const bool is_emulated_;
  const int rank_, num_ranks_;
  WorkMark done_;
};

/// All ranks of `among` open a communicator together; its rank 0 makes the unique id.
std::unique_ptr<Communicator> join_over(Collective& among,
                                        const Library& library,
                                        const CollectiveOptions& options);

}  // namespace pelago::chips::native
