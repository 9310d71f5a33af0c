#include "train/across/joint_collective.h"

#include <algorithm>

#include "base/clock.h"
#include "base/error.h"
#include "chips/torch.h"

namespace pelago::train {

namespace {

std::span<std::byte> bytes_of(const Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.data_ptr()), static_cast<size_t>(tensor.nbytes())};
}

// An embedding's gradient has rows of the tokens that were there, and the others are zero: what is
// all zero in so many values does not cross the line. A small step of a large vocabulary has few.
constexpr size_t kZeroBlock = 64;

std::span<float> floats_of(const Tensor& tensor) {
  return {tensor.data_ptr<float>(), static_cast<size_t>(tensor.numel())};
}

template <typename T>
std::span<T> block_of(std::span<T> values, size_t block) {
  const size_t begin = block * kZeroBlock;
  return values.subspan(begin, std::min(kZeroBlock, values.size() - begin));
}

/// Tells the messages of one group of ranks from another's.
uint32_t group_tag(const std::vector<int>& ranks) {
  uint32_t tag = 2166136261U;  // FNV-1a
  for (const int rank : ranks) tag = (tag ^ static_cast<uint32_t>(rank)) * 16777619U;
  return tag & 0x7fffffffU;
}

class JointCollective final : public chips::Collective {
 public:
  JointCollective(chips::Collective& local,
                  Bridge& bridge,
                  BridgeChannel channel,
                  chips::Device& device,
                  const JointMembers& members)
      : local_(&local),
        bridge_(&bridge),
        channel_(channel),
        device_(&device),
        members_(members),
        tag_(group_tag(members.ranks)) {
    const auto own = std::find(members_.ranks.begin(), members_.ranks.end(), bridge.rank());
    PELAGO_ASSERT(own != members_.ranks.end(), "a rank opens the groups that it is in");
    rank_ = static_cast<int>(own - members_.ranks.begin());
  }

  int rank() const override { return rank_; }
  int num_ranks() const override { return static_cast<int>(members_.ranks.size()); }
  void all_reduce_sum(std::span<float> values) override { sum_small(values); }
  void all_reduce_sum(std::span<double> values) override { sum_small(values); }
  void all_reduce_max(std::span<double> values) override;
  void broadcast(std::span<std::byte> bytes, int from_rank) override;
  std::vector<std::byte> all_gather(std::span<const std::byte> bytes) override;
  void send(std::span<const std::byte> bytes, int to_rank, uint32_t tag) override {
    bridge_->send(direct_key(to_rank, tag), bytes);
  }
  void receive(std::span<std::byte> bytes, int from_rank, uint32_t tag) override {
    bridge_->receive(direct_key(from_rank, tag), bytes);
  }
  void barrier() override {
    const std::byte here{1};
    all_gather(std::span(&here, 1));
  }

  std::unique_ptr<Collective> group(const std::vector<int>& ranks) override;
  void all_reduce_sum(Tensor& tensor, const chips::WorkMark& after) override;
  void reduce_scatter_sum(Tensor&, const chips::WorkMark&) override { refuse_slices(); }
  void all_gather_slices(Tensor&, const chips::WorkMark&) override { refuse_slices(); }
  void broadcast(Tensor& tensor, int from_rank) override;

 private:
  BridgeKey key(int rank) const {
    return {channel_, members_.ranks[static_cast<size_t>(rank)], tag_};
  }
  BridgeKey direct_key(int rank, uint32_t tag) const {
    return {channel_, members_.ranks[static_cast<size_t>(rank)], 0x80000000U | tag};
  }
  static void refuse_slices() { PELAGO_ASSERT(false, "no optimizer is sliced over several sites"); }
  /// As the bridge does it, and the device learns that nobody gave it work meanwhile.
  void take(int from_rank, std::span<std::byte> bytes) const {
    const double begin_s = steady_now_s();
    bridge_->receive(key(from_rank), bytes);
    device_->note_host_wait(begin_s, steady_now_s());
  }
  template <typename T>
  void sum_small(std::span<T> values);
  void send_without_zeros(const Tensor& values) const;
  void take_without_zeros(const Tensor& values) const;
  Tensor sum_of_slices(const Tensor& own) const;

  chips::Collective* local_;
  Bridge* bridge_;
  BridgeChannel channel_;
  chips::Device* device_;
  JointMembers members_;
  uint32_t tag_;
  int rank_ = 0;
};

std::vector<std::byte> JointCollective::all_gather(std::span<const std::byte> bytes) {
  for (int other = 0; other < num_ranks(); ++other) {
    if (other != rank_) bridge_->send(key(other), bytes);
  }
  std::vector<std::byte> all(bytes.size() * members_.ranks.size());
  for (int other = 0; other < num_ranks(); ++other) {
    const auto place =
        std::span(all).subspan(static_cast<size_t>(other) * bytes.size(), bytes.size());
    if (other == rank_) {
      std::copy(bytes.begin(), bytes.end(), place.begin());
    } else {
      take(other, place);
    }
  }
  return all;
}

template <typename T>
void JointCollective::sum_small(std::span<T> values) {
  const std::vector<std::byte> all = all_gather(std::as_bytes(values));
  const auto* gathered = reinterpret_cast<const T*>(all.data());
  std::copy_n(gathered, values.size(), values.begin());
  for (size_t other = 1; other < members_.ranks.size(); ++other) {
    for (size_t i = 0; i < values.size(); ++i) values[i] += gathered[other * values.size() + i];
  }
}

void JointCollective::all_reduce_max(std::span<double> values) {
  const std::vector<std::byte> all = all_gather(std::as_bytes(values));
  const auto* gathered = reinterpret_cast<const double*>(all.data());
  for (size_t other = 0; other < members_.ranks.size(); ++other) {
    for (size_t i = 0; i < values.size(); ++i) {
      const double value = gathered[other * values.size() + i];
      if (!(value <= values[i])) values[i] = value;  // NaN goes to all
    }
  }
}

void JointCollective::broadcast(std::span<std::byte> bytes, int from_rank) {
  if (bytes.empty()) return;
  if (rank_ != from_rank) {
    take(from_rank, bytes);
    return;
  }
  for (int other = 0; other < num_ranks(); ++other) {
    if (other != rank_) bridge_->send(key(other), bytes);
  }
}

void JointCollective::broadcast(Tensor& tensor, int from_rank) {
  Tensor host = tensor.to(torch::kCPU).contiguous();
  broadcast(bytes_of(host), from_rank);
  if (rank_ != from_rank) tensor.copy_(host);
}

std::unique_ptr<chips::Collective> JointCollective::group(const std::vector<int>& ranks) {
  JointMembers members = members_;
  members.ranks.clear();
  std::vector<int> local_ranks;
  for (const int rank : ranks) {
    members.ranks.push_back(members_.ranks[static_cast<size_t>(rank)]);
    const int local_rank = members.ranks.back() - members_.first_local_rank;
    if (local_rank >= 0 && local_rank < members_.num_local_ranks) local_ranks.push_back(local_rank);
  }
  if (local_ranks.size() == ranks.size()) return local_->group(local_ranks);
  return std::make_unique<JointCollective>(*local_, *bridge_, channel_, *device_, members);
}

void JointCollective::all_reduce_sum(Tensor& tensor, const chips::WorkMark& after) {
  const torch::NoGradGuard no_grad;
  const Tensor own = device_->start_copy_to_host(tensor, after)->wait().to(torch::kFloat32);  // [N]
  Tensor sum;
  if (num_ranks() == 2) {
    send_without_zeros(own);
    const Tensor theirs = torch::zeros_like(own);
    take_without_zeros(theirs);
    sum = rank_ == 0 ? own + theirs : theirs + own;
  } else {
    sum = sum_of_slices(own);
  }
  device_->copy_into(tensor, sum.to(tensor.scalar_type()), steady_now_s());
}

/// Which blocks there are goes first: the other rank learns from it what is to come. values: f32
/// [N] on the host.
void JointCollective::send_without_zeros(const Tensor& values) const {
  const std::span<const float> flat = floats_of(values);
  std::vector<std::byte> is_there((flat.size() + kZeroBlock - 1) / kZeroBlock);
  const auto packed = std::make_shared<std::vector<float>>();
  for (size_t block = 0; block < is_there.size(); ++block) {
    const auto part = block_of(flat, block);
    if (std::all_of(part.begin(), part.end(), [](float value) { return value == 0; })) continue;
    is_there[block] = std::byte{1};
    packed->insert(packed->end(), part.begin(), part.end());
  }
  bridge_->send(key(1 - rank_), is_there);
  if (!packed->empty()) {
    bridge_->send(key(1 - rank_), std::as_bytes(std::span<const float>(*packed)), packed);
  }
}

/// values: zeros before, the other rank's after.
void JointCollective::take_without_zeros(const Tensor& values) const {
  const std::span<float> flat = floats_of(values);
  std::vector<std::byte> is_there((flat.size() + kZeroBlock - 1) / kZeroBlock);
  take(1 - rank_, is_there);
  size_t num_packed = 0;
  for (size_t block = 0; block < is_there.size(); ++block) {
    if (is_there[block] != std::byte{0}) num_packed += block_of(flat, block).size();
  }
  if (num_packed == 0) return;
  std::vector<float> packed(num_packed);
  take(1 - rank_, std::as_writable_bytes(std::span(packed)));
  auto next = packed.begin();
  for (size_t block = 0; block < is_there.size(); ++block) {
    if (is_there[block] == std::byte{0}) continue;
    const auto part = block_of(flat, block);
    std::copy_n(next, part.size(), part.begin());
    next += static_cast<std::ptrdiff_t>(part.size());
  }
}

/// own: f32 [N] on the host.
Tensor JointCollective::sum_of_slices(const Tensor& own) const {
  const auto num_values = own.numel();
  const auto slice = [&](const Tensor& values, int rank) {
    const Slice range = slice_of(num_values, num_ranks(), rank);
    return values.narrow(0, range.begin, range.end - range.begin);
  };
  for (int other = 0; other < num_ranks(); ++other) {
    const Tensor part = slice(own, other);
    if (other != rank_ && part.numel() > 0) bridge_->send(key(other), bytes_of(part));
  }
  Tensor sum = torch::empty_like(own);
  Tensor own_sum;
  for (int other = 0; other < num_ranks() && slice(own, rank_).numel() > 0; ++other) {
    Tensor part = slice(own, rank_);
    if (other != rank_) {
      part = torch::empty_like(part);
      take(other, bytes_of(part));
    }
    own_sum = other == 0 ? part.clone() : own_sum.add_(part);
  }
  if (own_sum.defined()) slice(sum, rank_).copy_(own_sum);
  for (int other = 0; other < num_ranks(); ++other) {
    if (other != rank_ && own_sum.defined()) bridge_->send(key(other), bytes_of(own_sum));
  }
  for (int other = 0; other < num_ranks(); ++other) {
    const Tensor part = slice(sum, other);
    if (other != rank_ && part.numel() > 0) take(other, bytes_of(part));
  }
  return sum;
}

}  // namespace

std::unique_ptr<chips::Collective> open_joint_collective(chips::Collective& local,
                                                         Bridge& bridge,
                                                         BridgeChannel channel,
                                                         chips::Device& device,
                                                         const JointMembers& members) {
  return std::make_unique<JointCollective>(local, bridge, channel, device, members);
}

}  // namespace pelago::train
