// Tensors of emulated chips between ranks. A process has one chip, so each rank is a child process.
#include <cmath>

#include "base/clock.h"
#include "base/rng.h"
#include "chips/courier.h"
#include "chips/ranks/child.h"
#include "chips/ranks/ranks_support.h"
#include "chips/torch.h"
#include "patience.h"

namespace pelago::chips {
namespace {

constexpr const char* kChips[] = {"emulated:a100", "emulated:h20", "emulated:910b"};

/// Runs body on a chip a rank; options name it. Returns what each threw ("" if nothing).
std::vector<std::string> failures_on_chips(
    int num_ranks, double slowdown, const std::function<void(Device&, CollectiveOptions)>& body) {
  const TemporaryFolder folder;
  std::vector<Child> children;
  for (int rank = 0; rank < num_ranks; ++rank) {
    children.emplace_back([&, rank] {
      at::set_num_threads(1);  // threads of libtorch's do not survive a fork
      const Catalogue catalogue = Catalogue::built_in();
      const auto device = open_device(kChips[rank], catalogue, {.slowdown = slowdown});
      body(*device,
           {.rank = rank,
            .num_ranks = num_ranks,
            .rendezvous_dir = folder.path(),
            .timeout_s = 60,
            .device = device.get()});
    });
  }
  std::vector<std::string> failures;
  for (Child& child : children) failures.push_back(child.wait());
  return failures;
}

void run_on_chips(int num_ranks,
                  double slowdown,
                  const std::function<void(Device&, CollectiveOptions)>& body) {
  check_no_failure(failures_on_chips(num_ranks, slowdown, body));
}

/// Whether no failure says these words, which a busy machine may bring about. Others are the
/// test's.
bool none_says(const std::vector<std::string>& failures, const std::string& words) {
  for (const std::string& failure : failures) {
    if (failure.find(words) != std::string::npos) return false;
  }
  check_no_failure(failures);
  return true;
}

Tensor device_part(int rank, int64_t num_values, c10::ScalarType dtype) {
  Rng rng = Rng(3).fork("part", static_cast<uint64_t>(rank));
  Tensor values = torch::empty({num_values}, torch::kFloat32);  // [N]
  auto* const data = values.data_ptr<float>();
  for (int64_t i = 0; i < num_values; ++i) {
    const uint64_t draw = rng.next_u64();
    data[i] = static_cast<float>(static_cast<int64_t>(draw >> 40) - (1 << 23)) *
              std::ldexp(1.0F, static_cast<int>(draw % 20) - 30);
  }
  return values.to(dtype);
}

void check_collectives(Device& device, Collective& collective, c10::ScalarType dtype) {
  constexpr int64_t kValues = 3'000'001;  // several pieces, the last one odd
  Tensor sum = device_part(0, kValues, dtype).to(torch::kFloat32);
  for (int rank = 1; rank < collective.num_ranks(); ++rank) {
    sum += device_part(rank, kValues, dtype).to(torch::kFloat32);
  }
  sum = sum.to(dtype);  // [N]
  const Tensor own = device_part(collective.rank(), kValues, dtype);
  const auto slice = collective.own_slice(kValues);

  Tensor on_chip = own.to(device.torch_device());
  collective.all_reduce_sum(on_chip, device.mark());
  if (!on_chip.cpu().equal(sum)) fail("all_reduce differs");

  Tensor scattered = own.to(device.torch_device());
  collective.reduce_scatter_sum(scattered);
  Tensor expected = own.clone();
  expected.slice(0, slice.begin, slice.end).copy_(sum.slice(0, slice.begin, slice.end));
  if (!scattered.cpu().equal(expected)) fail("reduce_scatter differs");

  collective.all_gather_slices(scattered, device.mark());
  if (!scattered.cpu().equal(sum)) fail("all_gather differs");

  Tensor copied = own.to(device.torch_device());
  collective.broadcast(copied, /*from_rank=*/1);
  if (!copied.cpu().equal(device_part(1, kValues, dtype))) fail("broadcast differs");
}

TEST_CASE("tensors of unlike chips are summed, scattered, gathered and broadcast bit for bit") {
  run_on_chips(3, 1e-6, [](Device& device, const CollectiveOptions& options) {
    const auto collective = open_collective(options);
    check_collectives(device, *collective, torch::kBFloat16);
    const auto group = collective->group({2, 0, 1});
    Tensor rank = torch::full({5}, group->rank(), torch::device(device.torch_device()));
    group->broadcast(rank, 0);
    if (!rank.cpu().equal(torch::zeros({5}))) fail("the group's broadcast differs");
  });
}

TEST_CASE("couriers carry tensors from chip to chip") {
  run_on_chips(2, 1e-6, [](Device& device, const CollectiveOptions& options) {
    const auto courier = open_courier(options);
    const int peer = 1 - options.rank;
    for (int i = 0; i < 3; ++i) courier->expect({300, 40 + i}, torch::kBFloat16, peer, 5);
    const auto message = [](int from, int i) {
      return device_part(from + 10 * i, 300 * (40 + i), torch::kBFloat16).view({300, 40 + i});
    };
    for (int i = 0; i < 3; ++i) {
      courier->send(message(options.rank, i).to(device.torch_device()), peer, 5);
    }
    for (int i = 0; i < 3; ++i) {
      const Tensor found = courier->take(peer, 5);
      if (found.device() != device.torch_device()) fail("message {} is not on the chip", i);
      if (!found.cpu().equal(message(peer, i))) fail("message {} differs", i);
    }
    courier->flush();
  });
}

TEST_CASE("the pieces of a long sum are copied out, added and copied in at the same time") {
  constexpr int64_t kValues = 8 << 20;  // eight pieces
  const auto sum_within = [](double one_way_s, Device& device, const CollectiveOptions& options) {
    const auto collective = open_collective(options);
    Tensor sum = torch::ones({kValues}, torch::device(device.torch_device()));
    device.synchronize();
    collective->barrier();
    const double begin_s = steady_now_s();
    collective->all_reduce_sum(sum);
    device.synchronize();
    const double took_s = steady_now_s() - begin_s;
    // One way out, and one piece more in; twice one way if nothing overlapped.
    if (!sum.slice(0, 0, 100).cpu().equal(torch::full({100}, 2.0F))) fail("another sum");
    if (options.rank != 0) return;
    if (took_s < one_way_s * 9 / 8) fail("it took {} s only", took_s);
    if (took_s > one_way_s * 1.8) fail("the clock: it took {} s", took_s);
  };
  CHECK(testing::holds_at_some_pace([&](double scale) {
    const double one_way_s = 0.2 * scale;  // of the slower link, a100's
    const auto body = [&](Device& device, const CollectiveOptions& options) {
      sum_within(one_way_s, device, options);
    };
    return none_says(failures_on_chips(2, one_way_s * 25.2e9 / (4.0 * kValues), body),
                     "the clock: ");
  }));
}

TEST_CASE("a rank whose own chip is stuck blames the chip, not the rank it sends to") {
  const auto blame = [](double timeout_s, Device& device, CollectiveOptions options) {
    options.timeout_s = options.rank == 0 ? timeout_s : 60;
    const auto courier = open_courier(options);
    courier->expect({4}, torch::kFloat32, 1 - options.rank, 0);
    std::string message;
    try {
      if (options.rank == 0) {
        order_fault(device, parse_fault("stuck@s=0"));
        courier->send(torch::ones({4}, torch::device(device.torch_device())), 1, 0);
        courier->flush();
      } else {
        courier->take(0, 0);
      }
    } catch (const Failure& failure) {
      message = failure.what();
    }
    const char* const expected =
        options.rank == 0 ? "emulated:a100 has not finished its work" : "rank 0 of 2 is lost";
    if (message.find(expected) != 0) fail("it says \"{}\"", message);
  };
  // It has as long to meet the other: a busy machine may need more than 0.2 s.
  CHECK(testing::holds_at_some_pace([&](double scale) {
    const auto body = [&](Device& device, const CollectiveOptions& options) {
      blame(0.2 * scale, device, options);
    };
    return none_says(failures_on_chips(2, 1e-6, body), "did not come");
  }));
}

TEST_CASE("a message leaves when the chip would have it, and neither sender nor receiver is late") {
  const auto pass_on = [](double scale, Device& device, const CollectiveOptions& options) {
    const auto courier = open_courier(options);
    const auto collective = open_collective({.rank = options.rank,
                                             .num_ranks = 2,
                                             .rendezvous_dir = options.rendezvous_dir / "control"});
    Tensor x = torch::ones({64}, torch::device(device.torch_device()));
    device.synchronize();
    if (options.rank == 1) courier->expect({64}, torch::kFloat32, 0, 0);
    collective->barrier();
    device.reset_stats();
    const double begin_s = steady_now_s();
    x.add_(1);
    if (options.rank == 0) {
      for (int i = 0; i < 20; ++i) x = x.add(1);
      courier->send(x, 1, 0);
      if (steady_now_s() - begin_s > 0.03 * scale) fail("the clock: send waited for the chip");
      courier->flush();
      if (steady_now_s() - begin_s < 0.047 * scale) fail("it left before the chip had it");
    } else {
      const Tensor message = courier->take(0, 0);
      if (steady_now_s() - begin_s < 0.04 * scale) fail("it came before the chip had it");
      x.add_(message);
      device.synchronize();
      if (!x.cpu().equal(torch::full({64}, 24.0F))) fail("another message");
    }
    const double late_s = device.stats().late_s;
    collective->barrier();
    if (late_s > 0.01 * scale) fail("the clock: late by {} s", late_s);
  };
  CHECK(testing::holds_at_some_pace([&](double scale) {
    const auto body = [&](Device& device, const CollectiveOptions& options) {
      pass_on(scale, device, options);
    };
    // At this slowdown an operator takes 2 ms, a copy's start 5 ms.
    return none_says(failures_on_chips(2, 1000 * scale, body), "the clock: ");
  }));
}

}  // namespace
}  // namespace pelago::chips
