#include "chips/native/device_calls.h"

#include <optional>

#include "base/clock.h"
#include "base/error.h"
#include "chips/torch.h"

namespace pelago::chips::native {
namespace {

ValueType value_type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return ValueType::kF32;
    case at::kDouble:
      return ValueType::kF64;
    case at::kHalf:
      return ValueType::kF16;
    case at::kBFloat16:
      return ValueType::kBf16;
    default:
      fail("tensors of dtype {} are not summed; convert to f32 before",
           c10::toString(tensor.scalar_type()));
  }
}

std::byte* memory_of(const Tensor& tensor) { return static_cast<std::byte*>(tensor.data_ptr()); }

/// Its marks are times, and its memory is the host's.
bool is_emulated(const Device& device) { return device.name().starts_with("emulated:"); }

size_t num_values(const Tensor& tensor) { return static_cast<size_t>(tensor.numel()); }

}  // namespace

DeviceCalls::DeviceCalls(const Library& library,
                         std::unique_ptr<Communicator> communicator,
                         Device& device,
                         int rank,
                         int num_ranks)
    : library_(library),
      communicator_(std::move(communicator)),
      device_(device),
      is_emulated_(is_emulated(device)),
      rank_(rank),
      num_ranks_(num_ranks) {}

/// Brackets one call. Emulated chips compute as soon as they are told to, so their memory is up to
/// date, and only the time that a mark of theirs holds counts. A library on the default queue is in
/// order anyway.
template <typename Call>
void DeviceCalls::run(const WorkMark& after, const Call& call) {
  const bool is_in_order =
      library_.facts().reads_host_memory || library_.facts().queue.files.empty();
  if (!is_in_order) device_.synchronize();
  const double begin_s = steady_now_s();
  const WorkMark ready = after ? after : device_.mark();
  std::optional<double> time_s;
  if (is_emulated_ && ready) time_s = *static_cast<const double*>(ready.get());
  communicator_->set_time(time_s ? &*time_s : nullptr);
  call();
  if (!is_in_order) communicator_->finish();
  device_.note_host_wait(begin_s, steady_now_s());
  done_ = time_s ? std::make_shared<double>(*time_s) : device_.mark();
}

bool DeviceCalls::needs_widening(const Tensor& tensor) const {
  return tensor.element_size() == 2 && !library_.facts().sums_16bit_in_f32;
}

void DeviceCalls::all_reduce_sum(const Tensor& tensor, const WorkMark& after) {
  PELAGO_ASSERT(tensor.is_contiguous(), "tensors are summed as they lie in memory");
  if (tensor.numel() == 0) return;
  if (needs_widening(tensor)) {
    const Tensor wide = tensor.to(at::kFloat);
    all_reduce_sum(wide, /*after=*/nullptr);
    tensor.copy_(wide);
    return;
  }
  const ValueType type = value_type_of(tensor);
  run(after, [&] {
    communicator_->all_reduce_sum(memory_of(tensor), memory_of(tensor), num_values(tensor), type);
  });
}

void DeviceCalls::reduce_scatter_sum(const Tensor& tensor, const WorkMark& after) {
  PELAGO_ASSERT(tensor.is_contiguous(), "tensors are summed as they lie in memory");
  if (tensor.numel() == 0) return;
  const bool is_even = tensor.numel() % num_ranks_ == 0;
  if (needs_widening(tensor) || !is_even) {
    const Tensor rows = padded(tensor.view({-1}));
    reduce_scatter_sum(rows, /*after=*/nullptr);
    const auto own = Collective::slice_of(tensor.numel(), num_ranks_, rank_);
    tensor.view({-1})
        .narrow(0, own.begin, own.end - own.begin)
        .copy_(rows[rank_].narrow(0, 0, own.end - own.begin));
    return;
  }
  const ValueType type = value_type_of(tensor);
  const size_t count = num_values(tensor) / static_cast<size_t>(num_ranks_);
  std::byte* const own = memory_of(tensor) + static_cast<size_t>(rank_) * count * bytes_of(type);
  run(after, [&] { communicator_->reduce_scatter_sum(memory_of(tensor), own, count, type); });
}

void DeviceCalls::all_gather_slices(const Tensor& tensor, const WorkMark& after) {
  PELAGO_ASSERT(tensor.is_contiguous(), "tensors are gathered as they lie in memory");
  if (tensor.numel() == 0) return;
  if (tensor.numel() % num_ranks_ != 0) {
    const Tensor rows = padded(tensor.view({-1}));
    all_gather_slices(rows, /*after=*/nullptr);
    take_slices(rows, tensor.view({-1}));
    return;
  }
  const size_t count = tensor.nbytes() / static_cast<size_t>(num_ranks_);
  const std::byte* const own = memory_of(tensor) + static_cast<size_t>(rank_) * count;
  run(after, [&] { communicator_->all_gather(own, memory_of(tensor), count, ValueType::kByte); });
}

void DeviceCalls::broadcast(const Tensor& tensor, int from_rank) {
  PELAGO_ASSERT(tensor.is_contiguous(), "tensors are broadcast as they lie in memory");
  if (tensor.numel() == 0) return;
  run(/*after=*/nullptr, [&] {
    communicator_->broadcast(memory_of(tensor), tensor.nbytes(), ValueType::kByte, from_rank);
  });
}

void DeviceCalls::broadcast_slices(const Tensor& tensor,
                                   const std::vector<Collective::Slice>& slices,
                                   const std::vector<int>& owners) {
  const auto value_bytes = static_cast<size_t>(tensor.element_size());
  run(/*after=*/nullptr, [&] {
    for (size_t i = 0; i < slices.size(); ++i) {
      const auto begin = static_cast<size_t>(slices[i].begin) * value_bytes;
      const auto end = static_cast<size_t>(slices[i].end) * value_bytes;
      if (begin == end) continue;
      communicator_->broadcast(memory_of(tensor) + begin, end - begin, ValueType::kByte, owners[i]);
    }
  });
}

/// flat: [N]. Returns [R, ceil(N/R)]: slice r in row r, f32 if the library would sum 16-bit values;
/// what is behind a shorter slice counts for nothing.
Tensor DeviceCalls::padded(const Tensor& flat) const {
  const int64_t shortest = flat.numel() / num_ranks_, num_longer = flat.numel() % num_ranks_;
  const int64_t row_values = shortest + (num_longer > 0 ? 1 : 0);
  Tensor rows = at::zeros({num_ranks_, row_values},
                          needs_widening(flat) ? flat.options().dtype(at::kFloat) : flat.options());
  const int64_t split = num_longer * row_values;
  if (num_longer > 0) {
    rows.narrow(0, 0, num_longer).copy_(flat.narrow(0, 0, split).view({num_longer, row_values}));
  }
  rows.narrow(0, num_longer, num_ranks_ - num_longer)
      .narrow(1, 0, shortest)
      .copy_(flat.narrow(0, split, flat.numel() - split).view({num_ranks_ - num_longer, shortest}));
  return rows;
}

/// The reverse of padded(): writes every slice.
void DeviceCalls::take_slices(const Tensor& rows, const Tensor& flat) const {
  const int64_t shortest = flat.numel() / num_ranks_, num_longer = flat.numel() % num_ranks_;
  const int64_t split = num_longer * rows.size(1);
  if (num_longer > 0) {
    flat.narrow(0, 0, split).view({num_longer, rows.size(1)}).copy_(rows.narrow(0, 0, num_longer));
  }
  flat.narrow(0, split, flat.numel() - split)
      .view({num_ranks_ - num_longer, shortest})
      .copy_(rows.narrow(0, num_longer, num_ranks_ - num_longer).narrow(1, 0, shortest));
}

std::unique_ptr<Communicator> join_over(Collective& among,
                                        const Library& library,
                                        const CollectiveOptions& options) {
  PELAGO_ASSERT(options.device != nullptr, "a library of chips works on a device");
  const c10::Device device = options.device->torch_device();
  const bool is_host_memory = device.is_cpu() || is_emulated(*options.device);
  if (library.facts().reads_host_memory && !is_host_memory) {
    fail_usage("the collective library {} is for emulated chips, not for {}: name its vendor's",
               library.facts().name,
               options.device->name());
  }
  std::vector<std::byte> unique_id(library.facts().unique_id_bytes);
  if (among.rank() == 0) unique_id = library.make_unique_id();
  among.broadcast(std::span<std::byte>(unique_id), /*from_rank=*/0);
  return library.join(unique_id,
                      {.rank = among.rank(),
                       .num_ranks = among.num_ranks(),
                       .device_idx = device.has_index() ? device.index() : 0,
                       .timeout_s = options.timeout_s,
                       .links = options.links});
}

}  // namespace pelago::chips::native
