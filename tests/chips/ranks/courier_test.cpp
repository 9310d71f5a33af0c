// Couriers of ranks that are threads, and of a child process that has to die.
#include "chips/courier.h"

#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/rng.h"
#include "chips/chips_support.h"
#include "chips/ranks/ranks_support.h"
#include "chips/torch.h"
#include "patience.h"

namespace pelago::chips {
namespace {

std::vector<std::string> run_couriers(int num_ranks,
                                      const std::function<void(Courier&, int)>& body,
                                      double timeout_s = 60) {
  const auto open = [&](const CollectiveOptions& given) {
    const auto device = open_device("cpu", catalogue());
    CollectiveOptions options = given;
    options.device = device.get();
    const auto courier = open_courier(options);
    body(*courier, options.rank);
  };
  return run_ranks(num_ranks, std::function<void(const CollectiveOptions&)>(open), timeout_s);
}

Tensor numbered_message(int from_rank, uint32_t tag, int64_t message_idx, at::IntArrayRef shape) {
  return torch::full(shape, from_rank * 1000 + static_cast<int64_t>(tag) * 100 + message_idx)
      .to(torch::kFloat32);
}

TEST_CASE("messages arrive whole, with their shape and dtype, in the order of their tag") {
  // 12 MiB is over every border between ways of sending.
  const std::vector<std::vector<int64_t>> shapes = {{0}, {1}, {3, 5}, {1 << 14}, {3, 1 << 20}};
  check_no_failure(run_couriers(2, [&](Courier& courier, int rank) {
    const int peer = 1 - rank;
    for (const uint32_t tag : {0U, 7U}) {
      for (const auto& shape : shapes) courier.expect(shape, torch::kFloat32, peer, tag);
    }
    for (size_t i = 0; i < shapes.size(); ++i) {
      for (const uint32_t tag : {0U, 7U}) {
        courier.send(numbered_message(rank, tag, static_cast<int64_t>(i), shapes[i]), peer, tag);
      }
    }
    for (const uint32_t tag : {7U, 0U}) {  // taken in another order than sent
      for (size_t i = 0; i < shapes.size(); ++i) {
        const Tensor found = courier.take(peer, tag);
        const Tensor expected = numbered_message(peer, tag, static_cast<int64_t>(i), shapes[i]);
        if (!found.equal(expected)) fail("message {} of tag {} differs", i, tag);
      }
    }
    courier.flush();
  }));
}

TEST_CASE("messages sent before they are expected arrive in order") {
  check_no_failure(run_couriers(2, [](Courier& courier, int rank) {
    constexpr int kMessages = 50;
    if (rank == 0) {
      for (int i = 0; i < kMessages; ++i) {
        courier.send(numbered_message(0, 3, i, {i % 2 == 0 ? 10 : 40'000}), 1, 3);
      }
      courier.flush();
    } else {
      for (int i = 0; i < kMessages; ++i) {
        courier.expect({i % 2 == 0 ? 10 : 40'000}, torch::kFloat32, 0, 3);
        const Tensor expected = numbered_message(0, 3, i, {i % 2 == 0 ? 10 : 40'000});
        if (!courier.take(0, 3).equal(expected)) fail("message {} is another", i);
      }
    }
  }));
}

TEST_CASE("three ranks exchange random messages of every dtype without mixing them up") {
  check_no_failure(run_couriers(3, [](Courier& courier, int rank) {
    constexpr c10::ScalarType kSentDtypes[] = {torch::kFloat32, torch::kBFloat16, torch::kLong};
    const auto message = [&](int from, int to, int i) {
      Rng rng = Rng(5).fork("message", static_cast<uint64_t>(from * 1000 + to * 100 + i));
      const auto length = static_cast<int64_t>(rng.next_below(5000));
      const auto first = static_cast<int64_t>(rng.next_below(100));
      return torch::arange(first, first + length).to(kSentDtypes[rng.next_below(3)]);
    };
    for (int i = 0; i < 20; ++i) {
      for (const int peer : {(rank + 1) % 3, (rank + 2) % 3}) {
        const Tensor to_come = message(peer, rank, i);
        courier.expect(to_come.sizes(), to_come.scalar_type(), peer, 0);
        courier.send(message(rank, peer, i), peer, 0);
      }
    }
    for (int i = 0; i < 20; ++i) {
      for (const int peer : {(rank + 1) % 3, (rank + 2) % 3}) {
        if (!courier.take(peer, 0).equal(message(peer, rank, i))) fail("message {} differs", i);
      }
    }
    courier.flush();
  }));
}

TEST_CASE("a peer that dies while take() waits for it is named at once") {
  const TemporaryFolder folder;
  const auto open_as = [&](int rank, Device& device) {
    return open_courier(
        {.rank = rank, .num_ranks = 2, .rendezvous_dir = folder.path(), .device = &device});
  };
  const pid_t child = ::fork();
  if (child == 0) {
    const auto device = open_device("cpu", catalogue());
    const auto courier = open_as(1, *device);
    courier->expect({1}, torch::kFloat32, 0, 0);
    courier->take(0, 0);  // the other is ready
    ::_exit(0);           // dies without a word
  }
  const auto device = open_device("cpu", catalogue());
  const auto courier = open_as(0, *device);
  courier->expect({100'000}, torch::kFloat32, 1, 0);
  courier->send(torch::ones({1}), 1, 0);
  const double start_s = steady_now_s();
  for (int call = 0; call < 2; ++call) {
    try {
      courier->take(1, 0);
      FAIL("took what nobody sent");
    } catch (const Failure& failure) {
      CHECK(std::string(failure.what()).find("rank 1 of 2 is lost") == 0);
    }
  }
  CHECK_THROWS_AS(courier->send(torch::ones({1}), 1, 0), Failure);
  CHECK(steady_now_s() - start_s < 60);  // far below the timeout of 120 s
  int status = -1;
  ::waitpid(child, &status, 0);
  CHECK(status == 0);
}

TEST_CASE("a peer that is silent for the timeout is named, by take() and by flush()") {
  std::vector<std::string> failures;
  // They have as long to meet: a busy machine may need more than 0.2 s.
  CHECK(testing::holds_at_some_pace([&](double scale) {
    failures = run_couriers(
        2,
        [](Courier& courier, int rank) {
          courier.expect({8}, torch::kFloat32, 1 - rank, 0);
          courier.take(1 - rank, 0);
        },
        /*timeout_s=*/0.2 * scale);
    return (failures[0] + failures[1]).find("did not come") == std::string::npos;
  }));
  CHECK((failures[0] + failures[1]).find("it was silent for ") != std::string::npos);
  for (const std::string& failure : failures) CHECK(failure.find("is lost") != std::string::npos);
}

TEST_CASE("a message of another length than expected names its sender") {
  const auto failures = run_couriers(2, [](Courier& courier, int rank) {
    if (rank == 0) {
      courier.send(torch::ones({4}), 1, 0);
      courier.flush();
      courier.expect({1}, torch::kFloat32, 1, 1);
      courier.take(1, 1);
    } else {
      courier.expect({6}, torch::kFloat32, 0, 0);
      courier.take(0, 0);
    }
  });
  CHECK(failures[1].find("it sent 16 bytes where 24 were expected") != std::string::npos);
  CHECK(failures[0].find("rank 1 of 2 is lost") == 0);
}

TEST_CASE("time spent waiting for messages is counted once, and not while they are there") {
  bool was_counted = false;
  const auto wait_for_other = [&](Courier& courier, int rank, double scale) {
    const int peer = 1 - rank;
    courier.expect({1}, torch::kFloat32, peer, 0);
    courier.expect({1}, torch::kFloat32, peer, 0);
    courier.send(torch::ones({1}), peer, 0);
    courier.take(peer, 0);
    const double begin_s = steady_now_s();
    if (rank == 0) {
      sleep_until_s(begin_s + 0.05 * scale);  // the other waits for this one
      courier.send(torch::ones({1}), peer, 0);
      courier.take(peer, 0);
      courier.flush();
    } else {
      courier.waited_s();
      courier.send(torch::ones({1}), peer, 0);
      courier.take(peer, 0);
      const double waited_s = courier.waited_s();
      was_counted = waited_s > 0.02 * scale;
      if (waited_s > steady_now_s() - begin_s) fail("waited {}", waited_s);
      if (courier.waited_s() != 0) fail("counted twice");
    }
  };
  CHECK(testing::holds_at_some_pace([&](double scale) {
    check_no_failure(
        run_couriers(2, [&](Courier& courier, int rank) { wait_for_other(courier, rank, scale); }));
    return was_counted;
  }));
}

TEST_CASE("a rank alone opens a courier without a rendezvous folder") {
  const auto device = open_device("cpu", catalogue());
  const auto courier = open_courier({.device = device.get()});
  courier->flush();
  CHECK(courier->waited_s() == 0);
}

}  // namespace
}  // namespace pelago::chips
