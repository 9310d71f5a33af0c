#include "train/across/joint_courier.h"

#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/threads.h"
#include "chips/kernels.h"
#include "chips/torch.h"

namespace pelago::train {

namespace {

constexpr size_t kWaitingMax = 4096;  // messages: more than any schedule has under way

std::span<std::byte> bytes_of(const Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.data_ptr()), static_cast<size_t>(tensor.nbytes())};
}

class JointCourier final : public chips::Courier {
 public:
  JointCourier(chips::Courier* local,
               Bridge& bridge,
               chips::Device& device,
               const JointCourierOptions& options)
      : local_(local),
        bridge_(&bridge),
        device_(&device),
        options_(options),
        orders_(kWaitingMax),
        thread_([this] { work(); }) {}
  ~JointCourier() override { orders_.close(); }

  void send(const Tensor& tensor, int to_rank, uint32_t tag) override;
  void expect(at::IntArrayRef shape, c10::ScalarType dtype, int from_rank, uint32_t tag) override;
  Tensor take(int from_rank, uint32_t tag) override;
  void flush() override;
  double waited_s() override {
    return std::exchange(waited_s_, 0.0) + (local_ == nullptr ? 0 : local_->waited_s());
  }

 private:
  struct Order {
    Tensor host;                            // undefined until the copy is done
    std::unique_ptr<chips::HostCopy> copy;  // null where the tensor lies on the host already
    BridgeKey to;
  };
  bool is_local(int rank) const {
    const int place = rank - options_.first_local_rank;
    return place >= 0 && place < options_.num_local_ranks;
  }
  static BridgeKey key(int rank, uint32_t tag) { return {BridgeChannel::kActivations, rank, tag}; }
  void work();
  void carry_out(Order& order);

  chips::Courier* local_;
  Bridge* bridge_;
  chips::Device* device_;
  JointCourierOptions options_;
  std::map<BridgeKey, std::deque<Tensor>> expected_;  // host memory
  double waited_s_ = 0;
  BoundedQueue<Order> orders_;
  std::mutex open_mutex_;  // guards the two below
  std::condition_variable done_;
  int64_t num_open_ = 0;
  std::string failure_;  // of the thread
  std::jthread thread_;  // last: it uses the members above
};

void JointCourier::send(const Tensor& tensor, int to_rank, uint32_t tag) {
  if (is_local(to_rank)) {
    local_->send(tensor, to_rank - options_.first_local_rank, tag);
    return;
  }
  Order order{.host = {}, .copy = nullptr, .to = key(to_rank, tag)};
  const Tensor values = tensor.detach();
  if (values.is_cpu()) {
    order.host = values;
  } else {
    order.copy = device_->start_copy_to_host(values, device_->mark());
  }
  {
    const std::lock_guard lock(open_mutex_);
    if (!failure_.empty()) throw Failure(failure_);
    ++num_open_;
  }
  orders_.push(std::move(order));
}

void JointCourier::expect(at::IntArrayRef shape,
                          c10::ScalarType dtype,
                          int from_rank,
                          uint32_t tag) {
  if (is_local(from_rank)) {
    local_->expect(shape, dtype, from_rank - options_.first_local_rank, tag);
  } else {
    expected_[key(from_rank, tag)].push_back(device_->make_host_tensor(shape, dtype));
  }
}

Tensor JointCourier::take(int from_rank, uint32_t tag) {
  if (is_local(from_rank)) return local_->take(from_rank - options_.first_local_rank, tag);
  std::deque<Tensor>& queue = expected_[key(from_rank, tag)];
  PELAGO_ASSERT(!queue.empty(), "a message is expected before it is taken");
  Tensor host = std::move(queue.front());
  queue.pop_front();
  std::vector<std::byte> encoded(options_.is_8_bit ? encoded_bytes(host.numel()) : 0);
  const double begin_s = steady_now_s();
  const double arrived_s = bridge_->receive(
      key(from_rank, tag), options_.is_8_bit ? std::span(encoded) : bytes_of(host));
  const double end_s = steady_now_s();
  if (arrived_s > begin_s) {
    waited_s_ += end_s - begin_s;
    device_->note_host_wait(begin_s, end_s);
  }
  if (options_.is_8_bit) decode_activations(encoded, host);
  return device_->copy_to_device(host, arrived_s);
}

void JointCourier::flush() {
  if (local_ != nullptr) local_->flush();
  std::unique_lock lock(open_mutex_);
  done_.wait(lock, [&] { return num_open_ == 0 || !failure_.empty(); });
  if (!failure_.empty()) throw Failure(failure_);
}

void JointCourier::work() {
  while (std::optional<Order> order = orders_.pop()) {
    std::string failure;
    try {
      carry_out(*order);
    } catch (const std::exception& error) {
      failure = error.what();
    }
    const std::lock_guard lock(open_mutex_);
    --num_open_;
    if (failure_.empty()) failure_ = failure;
    done_.notify_all();
  }
}

void JointCourier::carry_out(Order& order) {
  if (order.copy) order.host = order.copy->wait();
  if (options_.is_8_bit) {
    const auto encoded = std::make_shared<std::vector<std::byte>>(encode_activations(order.host));
    bridge_->send(order.to, std::span<const std::byte>(*encoded), encoded);
  } else {
    const auto owner = std::make_shared<Tensor>(order.host);
    bridge_->send(order.to, bytes_of(*owner), owner);
  }
}

}  // namespace

size_t encoded_bytes(int64_t num_values) {
  const auto count = static_cast<size_t>(num_values);
  const auto block = static_cast<size_t>(chips::kQuantBlock);
  return (count + block - 1) / block * sizeof(float) + count;
}

std::vector<std::byte> encode_activations(const Tensor& values) {
  const Tensor f32 = values.to(torch::kFloat32).contiguous();
  const std::span<const float> flat(f32.data_ptr<float>(), static_cast<size_t>(f32.numel()));
  std::vector<std::byte> encoded(encoded_bytes(f32.numel()));
  chips::QuantisedVector quantised;
  try {
    quantised = chips::quantise(flat, 8);
  } catch (const Failure&) {
    // A step with such a value is skipped by all ranks: the next stage must see that there is one.
    const size_t num_scales = (encoded.size() - flat.size()) / sizeof(float);
    quantised.scales.assign(num_scales, std::numeric_limits<float>::quiet_NaN());
    quantised.payload.assign(flat.size(), 1);
  }
  const size_t scale_bytes = quantised.scales.size() * sizeof(float);
  std::memcpy(encoded.data(), quantised.scales.data(), scale_bytes);
  std::memcpy(encoded.data() + scale_bytes, quantised.payload.data(), quantised.payload.size());
  return encoded;
}

void decode_activations(std::span<const std::byte> encoded, Tensor& out) {
  const auto count = static_cast<size_t>(out.numel());
  const size_t scale_bytes = encoded.size() - count;
  chips::QuantisedVector quantised{
      .bits = 8, .num_values = out.numel(), .scales = {}, .payload = {}};
  quantised.scales.resize(scale_bytes / sizeof(float));
  std::memcpy(quantised.scales.data(), encoded.data(), scale_bytes);
  quantised.payload.resize(count);
  std::memcpy(quantised.payload.data(), encoded.data() + scale_bytes, count);
  Tensor f32 = torch::empty({out.numel()}, torch::kFloat32);
  chips::dequantise(quantised, std::span(f32.data_ptr<float>(), count));
  out.copy_(f32.view(out.sizes()));
}

std::unique_ptr<chips::Courier> open_joint_courier(chips::Courier* local,
                                                   Bridge& bridge,
                                                   chips::Device& device,
                                                   const JointCourierOptions& options) {
  return std::make_unique<JointCourier>(local, bridge, device, options);
}

}  // namespace pelago::train
