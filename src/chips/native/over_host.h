// What a collective between devices leaves to one between hosts: every call that is not about a
// tensor on the device.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "chips/collective.h"

namespace pelago::chips {

class OverHost : public Collective {
 public:
  int rank() const override { return host_->rank(); }
  int num_ranks() const override { return host_->num_ranks(); }
  void all_reduce_sum(std::span<float> values) override { host_->all_reduce_sum(values); }
  void all_reduce_sum(std::span<double> values) override { host_->all_reduce_sum(values); }
  void all_reduce_max(std::span<double> values) override { host_->all_reduce_max(values); }
  void broadcast(std::span<std::byte> bytes, int from_rank) override {
    host_->broadcast(bytes, from_rank);
  }
  std::vector<std::byte> all_gather(std::span<const std::byte> bytes) override {
    return host_->all_gather(bytes);
  }
  void send(std::span<const std::byte> bytes, int to_rank, uint32_t tag) override {
    host_->send(bytes, to_rank, tag);
  }
  void receive(std::span<std::byte> bytes, int from_rank, uint32_t tag) override {
    host_->receive(bytes, from_rank, tag);
  }
  void barrier() override { host_->barrier(); }

 protected:
  /// device: outlives me.
  OverHost(std::unique_ptr<Collective> host, Device& device)
      : host_(std::move(host)), device_(device) {}
  Collective& host() { return *host_; }
  Device& device() { return device_; }
  bool is_on_device(const Tensor& tensor) const;

 private:
  std::unique_ptr<Collective> host_;
  Device& device_;
};

}  // namespace pelago::chips
