// Collectives and couriers between ranks that are threads of the test, over memory they share.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <barrier>
#include <condition_variable>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "chips/collective.h"
#include "chips/courier.h"
#include "chips/torch.h"

namespace pelago::train {

/// Meeting place of the ranks.
struct ThreadGroup {
  explicit ThreadGroup(int ranks)
      : num_ranks(ranks), meet(ranks), places(static_cast<size_t>(ranks)) {}
  int num_ranks;
  std::barrier<> meet;
  std::vector<std::span<std::byte>> places;  // what each rank gave to the collective under way

  /// The meeting place of some of the ranks, made by whoever comes first.
  ThreadGroup& part(const std::vector<int>& ranks) {
    const std::lock_guard lock(parts_mutex);
    std::unique_ptr<ThreadGroup>& found = parts[ranks];
    if (!found) found = std::make_unique<ThreadGroup>(static_cast<int>(ranks.size()));
    return *found;
  }
  std::mutex parts_mutex;  // guards parts
  std::map<std::vector<int>, std::unique_ptr<ThreadGroup>> parts;
};

class ThreadCollective final : public chips::Collective {
 public:
  ThreadCollective(ThreadGroup& group, int rank) : group_(&group), rank_(rank) {}
  using Collective::all_reduce_sum;
  using Collective::broadcast;
  int rank() const override { return rank_; }
  int num_ranks() const override { return group_->num_ranks; }
  void all_reduce_sum(std::span<float> values) override {
    reduce(values, [](float a, float b) { return a + b; });
  }
  void all_reduce_sum(std::span<double> values) override {
    reduce(values, [](double a, double b) { return a + b; });
  }
  void all_reduce_max(std::span<double> values) override {
    reduce(values, [](double a, double b) { return std::max(a, b); });
  }
  void broadcast(std::span<std::byte> bytes, int from_rank) override {
    give(bytes);
    const auto& source = group_->places[static_cast<size_t>(from_rank)];
    if (rank_ != from_rank) std::copy(source.begin(), source.end(), bytes.begin());
    group_->meet.arrive_and_wait();
  }
  std::vector<std::byte> all_gather(std::span<const std::byte> bytes) override {
    std::vector<std::byte> own(bytes.begin(), bytes.end()), all;
    give(own);
    for (const auto& place : group_->places) all.insert(all.end(), place.begin(), place.end());
    group_->meet.arrive_and_wait();
    return all;
  }
  void send(std::span<const std::byte> /*bytes*/, int /*to*/, uint32_t /*tag*/) override {}
  void receive(std::span<std::byte> /*bytes*/, int /*from*/, uint32_t /*tag*/) override {}
  void barrier() override { group_->meet.arrive_and_wait(); }

  std::unique_ptr<Collective> group(const std::vector<int>& ranks) override {
    const auto found = std::find(ranks.begin(), ranks.end(), rank_);
    return std::make_unique<ThreadCollective>(group_->part(ranks),
                                              static_cast<int>(found - ranks.begin()));
  }
  void all_reduce_sum(Tensor& tensor, const chips::WorkMark& /*after*/) override {
    Tensor sum = tensor.to(torch::kFloat32).clone();  // [N]
    all_reduce_sum(std::span<float>(sum.data_ptr<float>(), static_cast<size_t>(sum.numel())));
    tensor.copy_(sum);
  }
  void reduce_scatter_sum(Tensor& tensor, const chips::WorkMark& after) override {
    Tensor sum = tensor.clone();
    all_reduce_sum(sum, after);
    const Slice slice = own_slice(tensor.numel());
    const int64_t length = slice.end - slice.begin;
    // The other slices hold nothing that anyone may use.
    tensor.fill_(std::numeric_limits<float>::quiet_NaN());
    tensor.view({-1})
        .narrow(0, slice.begin, length)
        .copy_(sum.view({-1}).narrow(0, slice.begin, length));
  }
  void all_gather_slices(Tensor& tensor, const chips::WorkMark& /*after*/) override {
    const Slice slice = own_slice(tensor.numel());
    Tensor flat = tensor.view({-1});
    Tensor own = torch::zeros({flat.numel()}, torch::kFloat32);
    own.narrow(0, slice.begin, slice.end - slice.begin)
        .copy_(flat.narrow(0, slice.begin, slice.end - slice.begin));
    all_reduce_sum(std::span<float>(own.data_ptr<float>(), static_cast<size_t>(own.numel())));
    flat.copy_(own);
  }
  void broadcast(Tensor& tensor, int from_rank) override {
    broadcast(std::span(static_cast<std::byte*>(tensor.data_ptr()), tensor.nbytes()), from_rank);
  }

 private:
  void give(std::span<std::byte> bytes) {
    group_->places[static_cast<size_t>(rank_)] = bytes;
    group_->meet.arrive_and_wait();
  }
  template <typename T, typename Join>
  void reduce(std::span<T> values, const Join& join) {
    give(std::as_writable_bytes(values));
    std::vector<T> total(values.size());
    for (size_t rank = 0; rank < group_->places.size(); ++rank) {
      const auto* given = reinterpret_cast<const T*>(group_->places[rank].data());
      for (size_t i = 0; i < total.size(); ++i) {
        total[i] = rank == 0 ? given[i] : join(total[i], given[i]);
      }
    }
    group_->meet.arrive_and_wait();
    std::copy(total.begin(), total.end(), values.begin());
    group_->meet.arrive_and_wait();
  }

  ThreadGroup* group_;
  int rank_;
};

/// Letter boxes between the ranks.
struct ThreadPost {
  std::mutex mutex;  // guards boxes
  std::condition_variable changed;
  std::map<std::tuple<int, int, uint32_t>, std::deque<Tensor>> boxes;  // from, to, tag
};

class ThreadCourier final : public chips::Courier {
 public:
  ThreadCourier(ThreadPost& post, int rank) : post_(&post), rank_(rank) {}
  void send(const Tensor& tensor, int to_rank, uint32_t tag) override {
    const std::lock_guard lock(post_->mutex);
    post_->boxes[{rank_, to_rank, tag}].push_back(tensor.clone());
    post_->changed.notify_all();
  }
  void expect(at::IntArrayRef shape, c10::ScalarType dtype, int from_rank, uint32_t tag) override {
    expected_[{from_rank, tag}].push_back(torch::empty(shape, dtype));
  }
  Tensor take(int from_rank, uint32_t tag) override {
    std::unique_lock lock(post_->mutex);
    auto& box = post_->boxes[{from_rank, rank_, tag}];
    post_->changed.wait(lock, [&] { return !box.empty(); });
    const Tensor came = box.front();
    box.pop_front();
    auto& expected = expected_.at({from_rank, tag});
    CHECK(expected.front().sizes().equals(came.sizes()));
    CHECK((expected.front().scalar_type() == came.scalar_type()));
    expected.pop_front();
    return came;
  }
  void flush() override {}
  double waited_s() override { return 0; }

 private:
  ThreadPost* post_;
  int rank_;
  std::map<std::pair<int, uint32_t>, std::deque<Tensor>> expected_;
};

}  // namespace pelago::train
