// Collectives between devices: of one vendor group and of several, against sums made by hand. The
// ranks are threads on CPU devices, whose memory the emulator's library reads as it does a chip's.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "base/clock.h"
#include "base/rng.h"
#include "chips/hierarchical/hierarchical_collective.h"
#include "chips/hierarchical/host_share.h"
#include "chips/hierarchical/vendor_groups.h"
#include "chips/ranks/child.h"
#include "chips/ranks/rank_values.h"
#include "chips/ranks/ranks_support.h"
#include "chips/torch.h"
#include "patience.h"

namespace pelago::chips {
namespace {

Tensor sum_of_ranks(const std::vector<int>& ranks, int64_t num_values, c10::ScalarType dtype) {
  Tensor sum = rank_values(ranks[0], num_values, dtype).to(torch::kFloat32);
  for (size_t i = 1; i < ranks.size(); ++i) {
    sum += rank_values(ranks[i], num_values, dtype).to(torch::kFloat32);
  }
  return sum;
}

std::vector<int> all_ranks(size_t num_ranks) {
  std::vector<int> ranks(num_ranks);
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

constexpr int64_t kShortValues = (64 << 10) / 4;  // f32: shorter ones go over the hosts
constexpr int64_t kChunkValues = 1 << 20;

/// The sum in the documented order: within groups, then of groups; on the hosts in rank order.
Tensor expected_sum(const std::vector<int>& groups, int64_t num_values, c10::ScalarType dtype) {
  const VendorGroups vendor_groups(groups);
  const Tensor in_turn = sum_of_ranks(all_ranks(groups.size()), num_values, dtype);
  const bool is_hierarchical =
      vendor_groups.groups().size() > 1 && vendor_groups.groups().size() < groups.size();
  const int64_t value_bytes = dtype == torch::kFloat32 ? 4 : 2;
  if (!is_hierarchical || num_values * value_bytes < kShortValues * 4) return in_turn.to(dtype);
  Tensor sum = torch::zeros({num_values});
  bool is_first = true;
  for (const std::vector<int>& group : vendor_groups.groups()) {
    const Tensor group_sum = sum_of_ranks(group, num_values, dtype);
    sum = is_first ? group_sum : sum + group_sum;
    is_first = false;
  }
  const int64_t num_odd = num_values % vendor_groups.num_units();
  sum.narrow(0, num_values - num_odd, num_odd)
      .copy_(in_turn.narrow(0, num_values - num_odd, num_odd));
  return sum.to(dtype);
}

/// Runs body as every rank over collectives between CPU devices in these vendor groups.
std::vector<std::string> run_devices(const std::vector<int>& groups,
                                     const std::function<void(Collective&)>& body,
                                     const native::Links& links = {}) {
  return run_ranks(
      static_cast<int>(groups.size()),
      [&](const CollectiveOptions& given) {
        const auto device = open_device("cpu", Catalogue::built_in());
        CollectiveOptions options = given;
        options.device = device.get();
        options.native_library = "emuccl";
        options.vendor_groups = groups;
        options.links = links;
        body(*open_collective(options));
      },
      /*timeout_s=*/20);
}

void check_ranks_sums(const std::vector<int>& groups,
                      c10::ScalarType dtype,
                      const std::vector<int64_t>& lengths) {
  std::vector<Tensor> expected;
  std::vector<std::vector<Tensor>> values(groups.size());  // by rank and length
  for (const int64_t num_values : lengths) {
    expected.push_back(expected_sum(groups, num_values, dtype));
    for (size_t rank = 0; rank < groups.size(); ++rank) {
      values[rank].push_back(rank_values(static_cast<int>(rank), num_values, dtype));
    }
  }
  check_no_failure(run_devices(groups, [&](Collective& collective) {
    for (size_t i = 0; i < lengths.size(); ++i) {
      Tensor& own = values[static_cast<size_t>(collective.rank())][i];
      collective.all_reduce_sum(own);
      if (!has_bits_of(own, expected[i])) fail("another sum of {} values", lengths[i]);
    }
  }));
}

TEST_CASE("a vendor group adds in rank order, whatever the length and dtype") {
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    check_ranks_sums({0, 0}, dtype, {0, 1, 5, 40'001});
    check_ranks_sums({4, 4, 4}, dtype, {1, 2, 30'000});
  }
}

TEST_CASE("two groups of two add their sums, and every rank has the same bits") {
  check_ranks_sums({0, 0, 1, 1},
                   torch::kFloat32,
                   {0, 3, kShortValues - 1, kShortValues, kShortValues + 1, kChunkValues + 77'777});
  check_ranks_sums({0, 0, 1, 1}, torch::kBFloat16, {7, 2 * kShortValues + 1});
  check_ranks_sums({0, 0, 1, 1}, torch::kHalf, {7, 2 * kShortValues + 3});
}

TEST_CASE("groups of unlike sizes, in any order of ranks, add in the order of their first ranks") {
  check_ranks_sums({7, 3, 3}, torch::kFloat32, {kShortValues + 1, 50'003});
  check_ranks_sums({1, 0, 1, 0, 1}, torch::kFloat32, {kShortValues + 5, 100'003});
  check_ranks_sums({0, 0, 0, 1, 1, 2}, torch::kFloat32, {kShortValues + 11});
}

TEST_CASE("random groups and lengths give the documented sum") {
  Rng rng(2024);
  for (int round = 0; round < 6; ++round) {
    std::vector<int> groups(2 + rng.next_below(4));
    for (int& group : groups) group = static_cast<int>(rng.next_below(3));
    CAPTURE(round);
    check_ranks_sums(
        groups,
        torch::kFloat32,
        {static_cast<int64_t>(rng.next_below(100)), static_cast<int64_t>(rng.next_below(120'000))});
  }
}

TEST_CASE("slices are reduced and gathered alike over the hosts and the chips' links") {
  for (const std::vector<int>& groups :
       std::vector<std::vector<int>>{{0, 0, 0}, {0, 0, 1, 1}, {0, 1, 1}, {0, 1}}) {
    check_no_failure(run_devices(groups, [&](Collective& collective) {
      for (const int64_t num_values : {int64_t{1}, int64_t{10}, kShortValues + 3}) {
        Tensor values = rank_values(collective.rank(), num_values, torch::kFloat32);
        collective.reduce_scatter_sum(values);
        const Tensor expected = expected_sum(groups, num_values, torch::kFloat32);
        const auto own = collective.own_slice(num_values);
        const int64_t own_values = own.end - own.begin;
        if (!values.narrow(0, own.begin, own_values)
                 .equal(expected.narrow(0, own.begin, own_values))) {
          fail("rank {}: another slice of {} values", collective.rank(), num_values);
        }
        Tensor gathered = torch::zeros({num_values});
        gathered.narrow(0, own.begin, own_values).copy_(values.narrow(0, own.begin, own_values));
        collective.all_gather_slices(gathered);
        if (!gathered.equal(expected)) fail("rank {}: gathered", collective.rank());
      }
    }));
  }
}

TEST_CASE("a tensor of any dtype reaches all groups from any rank") {
  check_no_failure(run_devices({0, 0, 1, 1, 1}, [](Collective& collective) {
    for (const int from_rank : {0, 3}) {
      for (const int64_t num_values : {int64_t{9}, int64_t{100'001}}) {
        Tensor values = torch::full({num_values}, collective.rank(), torch::kInt64);
        collective.broadcast(values, from_rank);
        if (!values.eq(from_rank).all().item<bool>()) fail("rank {}", collective.rank());
      }
    }
  }));
}

TEST_CASE("a group of some ranks keeps their vendors, and host calls work beside it") {
  const std::vector<int> groups = {0, 0, 1, 1};
  check_no_failure(run_devices(groups, [&](Collective& collective) {
    const int rank = collective.rank();
    if (rank != 3) {
      const auto three = collective.group({0, 1, 2});  // a vendor group of two, and one of one
      Tensor values = rank_values(three->rank(), 60'001, torch::kFloat32);
      three->all_reduce_sum(values);
      if (!has_bits_of(values, expected_sum({0, 0, 1}, 60'001, torch::kFloat32))) {
        fail("rank {}: the sum of three", rank);
      }
    }
    if (rank >= 2) {
      const auto pair = collective.group({3, 2});  // one vendor
      Tensor values = rank_values(pair->rank(), 30'001, torch::kFloat32);
      pair->all_reduce_sum(values);
      if (!has_bits_of(values, expected_sum({0, 0}, 30'001, torch::kFloat32))) {
        fail("rank {}: the sum of a pair", rank);
      }
    }
    std::vector<double> most = {static_cast<double>(rank)};
    collective.all_reduce_max(most);
    if (most[0] != 3) fail("rank {}: the maximum", rank);
    collective.barrier();
  }));
}

TEST_CASE("borders of groups of 2 and 3 ranks are four, and cover every unit once") {
  const VendorGroups groups({5, 5, 8, 8, 8});
  CHECK(groups.num_units() == 6);
  std::vector<std::vector<int>> ranks;
  int64_t next_unit = 0;
  for (const Border& border : groups.borders()) {
    CHECK(border.first_unit == next_unit);
    next_unit += border.num_units;
    ranks.push_back(border.ranks);
  }
  CHECK(next_unit == 6);
  CHECK(ranks == std::vector<std::vector<int>>{{0, 2}, {0, 3}, {1, 3}, {1, 4}});
  CHECK(groups.receivers(0) == std::vector<int>{0, 1, 0, 1, 0});
}

TEST_CASE("what goes over the hosts is what lets the slowest rank end soonest") {
  // Links far above the way to the host, or unknown: all of it takes the links.
  CHECK(best_host_parts(std::vector<RankRates>(4, {2, 240e9, 25e9})) == 0);
  CHECK(best_host_parts(std::vector<RankRates>(4, {2, 0, 25e9})) == 0);
  // Links far below: all of it goes over the hosts.
  CHECK(best_host_parts(std::vector<RankRates>(4, {2, 1e9, 50e9})) == 16);
  // Balanced where (1 + f) / 2 / 25 = (1 - f) / 22, f = 0.39: 6/16.
  CHECK(best_host_parts(std::vector<RankRates>(4, {2, 22e9, 25e9})) == 6);
  // A rank alone sends everything over its host anyway: the others need not end before it, and
  // (1 - f) / 22 = 1 / 25 at f = 0.12, which 2/16 reaches.
  CHECK(best_host_parts(std::vector<RankRates>{{1, 0, 25e9}, {2, 22e9, 50e9}, {2, 22e9, 50e9}}) ==
        2);
  int num_over_hosts = 0;
  for (int64_t chunk = 0; chunk < 32; ++chunk) num_over_hosts += goes_over_hosts(chunk, 6) ? 1 : 0;
  CHECK(num_over_hosts == 12);
  CHECK(goes_over_hosts(0, kShareParts));
}

TEST_CASE("with slow links a long vector goes over the hosts, in rank order") {
  const std::vector<int> groups = {0, 0, 1, 1};
  check_no_failure(run_devices(
      groups,
      [&](Collective& collective) {
        Tensor values = rank_values(collective.rank(), kShortValues * 2, torch::kFloat32);
        collective.all_reduce_sum(values);
        const Tensor in_turn = sum_of_ranks(all_ranks(4), kShortValues * 2, torch::kFloat32);
        if (!has_bits_of(values, in_turn)) fail("another order of adding");
      },
      {.group_bytes_per_s = 1}));  // the way to the host of a CPU is no way at all
}

TEST_CASE("emulated chips are charged what their links take, when somebody waits for it") {
  // Two chips that add 4 MB at 1 GB/s send 4 MB each: 4 ms, 40 ms at a tenth of their pace.
  const auto run_rank = [](int rank, double scale, const TemporaryFolder& folder) {
    const double expected_s = 0.04 * scale;
    at::set_num_threads(1);
    const auto device =
        open_device("emulated:a100", Catalogue::built_in(), {.slowdown = 10 * scale});
    const auto collective = open_collective({.rank = rank,
                                             .num_ranks = 2,
                                             .rendezvous_dir = folder.path(),
                                             .timeout_s = 60,
                                             .device = device.get(),
                                             .native_library = "emuccl",
                                             .links = {.group_bytes_per_s = 1e9, .latency_s = 0}});
    const Tensor host = rank_values(rank, 1'000'000, torch::kFloat32);
    Tensor values = host.to(device->torch_device());
    device->synchronize();
    collective->barrier();
    const double begin_s = steady_now_s();
    collective->all_reduce_sum(values);
    const double called_s = steady_now_s() - begin_s;
    device->synchronize();
    const double done_s = steady_now_s() - begin_s;
    const Tensor sum = values.cpu();
    if (!has_bits_of(sum, expected_sum({0, 0}, 1'000'000, torch::kFloat32))) fail("another sum");
    if (done_s < expected_s) fail("it took {} s only", done_s);
    if (called_s > expected_s) fail("the clock: the call waited {} s for the chip", called_s);
    if (done_s > 3 * expected_s) fail("the clock: it took {} s", done_s);
  };
  CHECK(testing::holds_at_some_pace([&](double scale) {
    const TemporaryFolder folder;
    Child first([&] { run_rank(0, scale, folder); });
    Child second([&] { run_rank(1, scale, folder); });
    const std::string failures[] = {first.wait(), second.wait()};
    for (const std::string& failure : failures) {
      if (failure.find("the clock: ") != std::string::npos) return false;
      CHECK(failure == "");
    }
    return true;
  }));
}

TEST_CASE("options that contradict each other are refused in one line") {
  const auto failure_with = [](const std::function<void(CollectiveOptions&)>& change) {
    return run_ranks(
        2,
        [&](const CollectiveOptions& given) {
          const auto device = open_device("cpu", Catalogue::built_in());
          CollectiveOptions options = given;
          options.device = device.get();
          options.native_library = "emuccl";
          change(options);
          open_collective(options);
        },
        /*timeout_s=*/20)[0];
  };
  CHECK(failure_with([](CollectiveOptions& options) {
          options.vendor_groups = {0, 0, 0};
        }).find("vendor groups are given for 3 ranks where 2 meet") == 0);
  CHECK(failure_with([](CollectiveOptions& options) {
          options.device = nullptr;
        }).find("a collective between devices needs a device") == 0);
  CHECK(failure_with([](CollectiveOptions& options) {
          options.vendor_groups = {0, 0};
          options.native_library = "";
        }).find("rank 0 is one of 2 in its vendor group, which names no collective library") == 0);
  CHECK(failure_with([](CollectiveOptions& options) {
          options.native_library = "nickel";
        }).find("nickel is no collective library that pelago knows") == 0);
}

}  // namespace
}  // namespace pelago::chips
