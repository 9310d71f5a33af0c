// Ranks are threads with a UCX context each, and child processes where one has to die.
#include "chips/collective.h"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/rng.h"
#include "chips/ranks/ranks_support.h"
#include "patience.h"

namespace pelago::chips {
namespace {

/// Values over nine powers of ten, so that another order of adding gives other bits.
template <typename T>
std::vector<T> drawn_numbers(int rank, size_t num_values) {
  Rng rng = Rng(7).fork("values", static_cast<uint64_t>(rank));
  std::vector<T> values(num_values);
  for (T& value : values) {
    value = static_cast<T>(rng.next_normal() * std::pow(10.0, rng.next_uniform() * 9));
  }
  return values;
}

template <typename T>
std::vector<T> numbers_in_turn(int num_ranks, size_t num_values) {
  std::vector<T> sum = drawn_numbers<T>(0, num_values);
  for (int rank = 1; rank < num_ranks; ++rank) {
    const std::vector<T> values = drawn_numbers<T>(rank, num_values);
    for (size_t i = 0; i < num_values; ++i) sum[i] += values[i];
  }
  return sum;
}

template <typename T>
void check_sum(int num_ranks, const std::vector<size_t>& lengths) {
  std::vector<std::vector<std::vector<T>>> results(static_cast<size_t>(num_ranks));
  check_no_failure(run_ranks(num_ranks, [&](Collective& collective) {
    for (const size_t num_values : lengths) {
      std::vector<T> values = drawn_numbers<T>(collective.rank(), num_values);
      collective.all_reduce_sum(std::span<T>(values));
      results[static_cast<size_t>(collective.rank())].push_back(std::move(values));
    }
  }));
  for (size_t i = 0; i < lengths.size(); ++i) {
    CAPTURE(lengths[i]);
    const std::vector<T> expected = numbers_in_turn<T>(num_ranks, lengths[i]);
    for (const auto& result : results) CHECK(result.at(i) == expected);
  }
}

// Empty, fewer values than ranks, gathered whole, one chunk, uneven slices of several windows.
const std::vector<size_t> kLengths = {0, 1, 2, 1000, 4097, 30'001, 1'200'007};

TEST_CASE("two ranks get the bits of a sum in rank order, whatever the length") {
  check_sum<float>(2, kLengths);
  check_sum<double>(2, {1, 3, 5000});
}

TEST_CASE("three ranks get the bits of a sum in rank order, whatever the length") {
  check_sum<float>(3, kLengths);
  check_sum<double>(3, {1, 2, 200'003});
}

TEST_CASE("maxima, gathered bytes, broadcasts and direct messages reach every rank unchanged") {
  const auto failures = run_ranks(3, [](Collective& collective) {
    const int rank = collective.rank();
    std::vector<double> values = {static_cast<double>(rank), -static_cast<double>(rank)};
    collective.all_reduce_max(values);
    if (values != std::vector<double>{2, 0}) fail("rank {} has another maximum", rank);

    const auto gathered = collective.all_gather(std::vector<std::byte>(5, std::byte(rank)));
    for (size_t i = 0; i < 15; ++i) {
      if (gathered.at(i) != std::byte(i / 5)) fail("rank {} gathered another byte {}", rank, i);
    }
    std::vector<std::byte> bytes(9 << 20, std::byte(rank));
    collective.broadcast(bytes, /*from_rank=*/1);
    if (bytes != std::vector<std::byte>(9 << 20, std::byte(1))) fail("rank {}: broadcast", rank);

    std::vector<std::byte> from_before(3);
    const int after = (rank + 1) % 3, before = (rank + 2) % 3;
    collective.send(std::vector<std::byte>(3, std::byte(rank)), after, /*tag=*/9);
    collective.receive(from_before, before, /*tag=*/9);
    if (from_before != std::vector<std::byte>(3, std::byte(before))) fail("rank {}: ring", rank);
  });
  check_no_failure(failures);
}

TEST_CASE("a rank alone needs no rendezvous folder and changes nothing") {
  const auto collective = open_collective({});
  std::vector<float> values = {1, 2};
  collective->all_reduce_sum(std::span<float>(values));
  collective->barrier();
  CHECK(values == std::vector<float>{1, 2});
  CHECK(collective->all_gather(std::vector<std::byte>(2)).size() == 2);
}

TEST_CASE("a rank that does not come is named") {
  const TemporaryFolder folder;
  try {
    open_collective(
        {.rank = 0, .num_ranks = 2, .rendezvous_dir = folder.path(), .timeout_s = 0.05});
    FAIL("opened without rank 1");
  } catch (const Failure& failure) {
    CHECK(std::string(failure.what()).find("rank 1 of 2 did not come to") == 0);
  }
}

TEST_CASE("a rank that dies is named by all others, at once and in every later call") {
  const TemporaryFolder folder;
  const auto open_as = [&](int rank) {
    return open_collective({.rank = rank, .num_ranks = 3, .rendezvous_dir = folder.path()});
  };
  std::vector<pid_t> children;
  for (const int rank : {1, 2}) {
    children.push_back(::fork());
    if (children.back() != 0) continue;
    int exit_code = 1;
    try {
      const auto collective = open_as(rank);
      if (rank == 2) ::_exit(0);  // dies without a word
      std::vector<float> values(100'000, 1.0F);
      collective->all_reduce_sum(std::span<float>(values));
    } catch (const Failure& failure) {
      exit_code = std::string(failure.what()).find("rank 2 of 3 is lost") == 0 ? 0 : 2;
    }
    ::_exit(exit_code);
  }
  const auto collective = open_as(0);
  std::vector<float> values(100'000, 1.0F);
  const double start_s = steady_now_s();
  for (int call = 0; call < 2; ++call) {
    try {
      collective->all_reduce_sum(std::span<float>(values));
      FAIL("summed without rank 2");
    } catch (const Failure& failure) {
      CHECK(std::string(failure.what()).find("rank 2 of 3 is lost") == 0);
    }
  }
  CHECK(steady_now_s() - start_s < 60);  // far below the timeout of 120 s
  for (const pid_t child : children) {
    int status = -1;
    ::waitpid(child, &status, 0);
    CHECK(status == 0);
  }
}

TEST_CASE("a rank that is silent for the timeout is named") {
  std::vector<std::string> failures;
  // They have as long to meet: a busy machine may need more than 0.2 s.
  CHECK(testing::holds_at_some_pace([&](double scale) {
    failures = run_ranks(
        2,
        [](Collective& collective) {
          std::byte word{};
          if (collective.rank() == 0) collective.receive({&word, 1}, /*from_rank=*/1, /*tag=*/0);
          if (collective.rank() == 1) collective.receive({&word, 1}, /*from_rank=*/0, /*tag=*/0);
        },
        /*timeout_s=*/0.2 * scale);
    return (failures[0] + failures[1]).find("did not come") == std::string::npos;
  }));
  // Both wait for the other; whoever gives up first is blamed by the second for going away.
  const bool blames_1 = failures[0].find("rank 1 of 2 is lost") == 0;
  const bool blames_0 = failures[1].find("rank 0 of 2 is lost") == 0;
  CHECK((blames_0 || blames_1));
  CHECK((failures[0] + failures[1]).find("it was silent for ") != std::string::npos);
}

TEST_CASE("ranks that disagree about the number of values find out") {
  const auto failures = run_ranks(2, [](Collective& collective) {
    std::vector<double> values(collective.rank() == 0 ? 4 : 6, 1.0);
    collective.all_reduce_sum(std::span<double>(values));
  });
  CHECK(failures[1].find("it sent 32 bytes where 48 were expected") != std::string::npos);
}

}  // namespace
}  // namespace pelago::chips
