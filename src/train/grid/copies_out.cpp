#include "train/grid/copies_out.h"

#include <utility>

#include "chips/torch.h"

namespace pelago::train {

CopiesOut::CopiesOut(chips::Device& device, chips::WorkMark after)
    : device_(&device), after_(std::move(after)) {}

void CopiesOut::add(const Tensor& values, std::function<void(const Tensor& host)> take) {
  constexpr int64_t kBytesMax = int64_t{256} << 20;  // of the host's memory
  const auto num_bytes = static_cast<int64_t>(values.nbytes());
  while (!copies_.empty() && num_bytes_ + num_bytes > kBytesMax) take_first();
  num_bytes_ += num_bytes;
  copies_.push_back(
      {values, device_->start_copy_to_host(values, after_), std::move(take), num_bytes});
}

void CopiesOut::finish() {
  while (!copies_.empty()) take_first();
}

void CopiesOut::take_first() {
  const Copy copy = std::move(copies_.front());
  copies_.pop_front();
  num_bytes_ -= copy.num_bytes;
  copy.take(copy.on_its_way->wait());
}

}  // namespace pelago::train
