// Tensor calls of collectives and of their groups, against plain sums in rank order.
#include <cmath>
#include <numeric>
#include <optional>

#include "base/rng.h"
#include "chips/ranks/ranks_support.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace {

constexpr int64_t kLongest = 1'700'001;

/// Values over six powers of ten, so that another order of adding gives other bits.
const std::vector<float>& draws() {
  static const std::vector<float> values = [] {
    Rng rng = Rng(7).fork("values");
    std::vector<float> drawn(kLongest);
    for (float& value : drawn) {
      value = static_cast<float>(rng.next_normal() * std::pow(10.0, rng.next_uniform() * 6 - 2));
    }
    return drawn;
  }();
  return values;
}

/// A rank's part of call call_idx: the values from some place on, turned round.
Tensor part_of(int rank, int64_t num_values, c10::ScalarType dtype, uint64_t call_idx = 0) {
  const auto first = static_cast<int64_t>(call_idx * 31 + static_cast<uint64_t>(rank) * 1009) %
                     (kLongest - num_values + 1);
  Tensor values = torch::empty({num_values}, torch::kFloat32);  // [N]
  std::copy_n(draws().begin() + first, num_values, values.data_ptr<float>());
  return (rank % 2 == 0 ? values : values.flip(0)).to(dtype);
}

/// The parts of these ranks added one after the other in f32 (f64 for f64) and rounded once.
Tensor sum_in_turn(const std::vector<int>& ranks,
                   int64_t num_values,
                   c10::ScalarType dtype,
                   uint64_t call_idx = 0) {
  const c10::ScalarType wide = dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  Tensor sum = part_of(ranks[0], num_values, dtype, call_idx).to(wide);
  for (size_t i = 1; i < ranks.size(); ++i) {
    sum += part_of(ranks[i], num_values, dtype, call_idx).to(wide);
  }
  return sum.to(dtype);
}

std::vector<int> first_ranks(int num_ranks) {
  std::vector<int> ranks(static_cast<size_t>(num_ranks));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

constexpr c10::ScalarType kSummedDtypes[] = {
    torch::kFloat32, torch::kBFloat16, torch::kHalf, torch::kFloat64};

// Empty, fewer than ranks, gathered whole, one chunk, uneven slices, several windows.
constexpr int64_t kTensorLengths[] = {0, 1, 2, 7, 1000, 8193, 300'007, kLongest};

void check_sums(Collective& collective, int64_t num_values, c10::ScalarType dtype) {
  const Tensor expected =
      sum_in_turn(first_ranks(collective.num_ranks()), num_values, dtype);  // [N]
  Tensor sum = part_of(collective.rank(), num_values, dtype);
  collective.all_reduce_sum(sum);
  if (!sum.equal(expected)) fail("all_reduce of {} values differs", num_values);

  const Tensor before = part_of(collective.rank(), num_values, dtype);
  Tensor scattered = before.clone();
  collective.reduce_scatter_sum(scattered);
  const auto own = collective.own_slice(num_values);
  Tensor own_sum = before.clone();  // only the own slice changes
  own_sum.slice(0, own.begin, own.end).copy_(expected.slice(0, own.begin, own.end));
  if (!scattered.equal(own_sum)) fail("reduce_scatter of {} values differs", num_values);

  collective.all_gather_slices(scattered);
  if (!scattered.equal(expected)) fail("all_gather of {} values differs", num_values);
}

TEST_CASE("tensor sums have the bits of a plain sum in rank order, whatever length and dtype") {
  for (const int num_ranks : {2, 3}) {
    check_no_failure(run_ranks(num_ranks, [](Collective& collective) {
      for (const int64_t num_values : kTensorLengths) {
        for (const c10::ScalarType dtype : kSummedDtypes) check_sums(collective, num_values, dtype);
      }
    }));
  }
}

TEST_CASE("slices cover a vector once, and their lengths differ by one at most") {
  for (const int64_t num_values : {0, 1, 5, 6, 1001}) {
    for (const int num_slices : {1, 2, 3, 7}) {
      int64_t end = 0;
      for (int i = 0; i < num_slices; ++i) {
        const auto slice = Collective::slice_of(num_values, num_slices, i);
        CHECK(slice.begin == end);
        const int64_t length = slice.end - slice.begin;
        CHECK((length == num_values / num_slices || length == num_values / num_slices + 1));
        end = slice.end;
      }
      CHECK(end == num_values);
    }
  }
}

TEST_CASE("tensors of any shape are summed and broadcast in place") {
  check_no_failure(run_ranks(2, [](Collective& collective) {
    Tensor sum = torch::full({3, 5}, collective.rank() + 1.0, torch::kFloat32);  // [3,5]
    sum.requires_grad_(true);
    collective.all_reduce_sum(sum);
    if (!sum.equal(torch::full({3, 5}, 3.0))) fail("the sum is not 3");
    Tensor copied = torch::full({7}, collective.rank(), torch::kBFloat16);  // [7]
    collective.broadcast(copied, /*from_rank=*/1);
    if (!copied.equal(torch::ones({7}, torch::kBFloat16))) fail("the copy is not rank 1's");
  }));
}

TEST_CASE("a dtype that ranks do not sum is named") {
  check_no_failure(run_ranks(2, [](Collective& collective) {
    Tensor integers = torch::ones({4}, torch::kLong);
    std::string message;
    try {
      collective.all_reduce_sum(integers);
    } catch (const c10::Error& error) {
      message = error.what_without_backtrace();
    }
    if (message.find("not Long") == std::string::npos) fail("integers: {}", message);
  }));
}

/// The ranks of group group_idx among num_ranks, in an order of its own; every rank draws the same.
std::vector<int> draw_group(Rng& rng, int num_ranks) {
  std::vector<int> ranks;
  for (int rank = 0; rank < num_ranks; ++rank) {
    if (rng.next_uniform() < 0.6) ranks.push_back(rank);
  }
  for (size_t i = ranks.size(); i > 1; --i) std::swap(ranks[i - 1], ranks[rng.next_below(i)]);
  return ranks;
}

void check_group(Collective& group, const std::vector<int>& ranks, uint64_t call_idx, Rng& rng) {
  const int own = ranks[static_cast<size_t>(group.rank())];
  const auto num_values =
      static_cast<int64_t>(rng.next_below(2) == 0 ? rng.next_below(9) : rng.next_below(60'000));
  const c10::ScalarType dtype = kSummedDtypes[rng.next_below(4)];
  Tensor sum = part_of(own, num_values, dtype, call_idx);
  group.all_reduce_sum(sum);
  if (!sum.equal(sum_in_turn(ranks, num_values, dtype, call_idx))) {
    fail("group {} of {} ranks: another sum of {} values", call_idx, ranks.size(), num_values);
  }
  const auto from = static_cast<int>(rng.next_below(ranks.size()));
  Tensor copied = part_of(own, num_values, dtype, call_idx);
  group.broadcast(copied, from);
  if (!copied.equal(part_of(ranks[static_cast<size_t>(from)], num_values, dtype, call_idx))) {
    fail("group {}: broadcast from {} differs", call_idx, from);
  }
}

TEST_CASE("random groups over one session give the sums of their own ranks in their own order") {
  for (const uint64_t seed : {1, 2, 3}) {
    CAPTURE(seed);
    check_no_failure(run_ranks(4, [seed](Collective& collective) {
      std::vector<std::pair<std::unique_ptr<Collective>, std::vector<int>>> groups;
      Rng rng = Rng(seed).fork("groups");
      for (int i = 0; i < 8; ++i) {
        std::vector<int> ranks = draw_group(rng, 4);
        const auto own = std::ranges::find(ranks, collective.rank());
        if (own == ranks.end()) {
          groups.emplace_back();
          continue;
        }
        groups.emplace_back(collective.group(ranks), ranks);
        if (groups.back().first->rank() != own - ranks.begin()) fail("another place in the group");
      }
      // Calls of different groups interleave, and some ranks are in several.
      for (uint64_t call = 0; call < 3 * groups.size(); ++call) {
        const auto& [group, ranks] = groups[call % groups.size()];
        Rng call_rng = Rng(seed).fork("call", call);
        if (group) check_group(*group, ranks, call, call_rng);
      }
      collective.barrier();
    }));
  }
}

TEST_CASE("a group of a group and a group of one rank know their ranks") {
  check_no_failure(run_ranks(3, [](Collective& collective) {
    if (collective.group({collective.rank()})->num_ranks() != 1) fail("one rank is not alone");
    if (collective.rank() == 1) return collective.barrier();
    const auto outer = collective.group({2, 0});
    const auto inner = outer->group({1, 0});  // 0 and 2 again, the other way round
    Tensor sum = torch::full({1}, collective.rank() == 0 ? 1e8F : 1.0F);
    inner->all_reduce_sum(sum);
    if (inner->rank() != (collective.rank() == 0 ? 0 : 1)) fail("another place");
    if (sum.item<float>() != 1e8F + 1.0F) fail("another sum");
    collective.barrier();
  }));
}

TEST_CASE("a rank alone sums, scatters and gathers to what it had") {
  const auto collective = open_collective({});
  Tensor values = torch::arange(5, torch::kFloat32);
  const auto group = collective->group({0});
  for (Collective* alone : {collective.get(), group.get()}) {
    alone->all_reduce_sum(values);
    alone->reduce_scatter_sum(values);
    alone->all_gather_slices(values);
    alone->broadcast(values, 0);
  }
  CHECK(values.equal(torch::arange(5, torch::kFloat32)));
  CHECK(collective->own_slice(5).end == 5);
}

}  // namespace
}  // namespace pelago::chips
