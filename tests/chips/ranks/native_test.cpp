// The table of vendors' libraries, and the emulator's library through it. Its ranks are threads on
// host memory, and processes where one has to die.
#include <doctest/doctest.h>
#include <torch/cuda.h>

#include <cmath>
#include <fstream>
#include <optional>

#include "base/clock.h"
#include "base/rng.h"
#include "chips/collective.h"
#include "chips/native/library.h"
#include "chips/ranks/child.h"
#include "chips/ranks/rank_values.h"
#include "chips/ranks/ranks_support.h"
#include "chips/torch.h"
#include "patience.h"

namespace pelago::chips::native {
namespace {

std::string failure_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "";
}

/// Added in f32 (f64 for f64) in rank order and rounded once.
Tensor sum_in_rank_order(int num_ranks, int64_t num_values, c10::ScalarType dtype) {
  const c10::ScalarType wide = dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  Tensor sum = rank_values(0, num_values, dtype).to(wide);
  for (int rank = 1; rank < num_ranks; ++rank) sum += rank_values(rank, num_values, dtype).to(wide);
  return sum.to(dtype);
}

ValueType type_of(c10::ScalarType dtype) {
  if (dtype == torch::kFloat64) return ValueType::kF64;
  if (dtype == torch::kHalf) return ValueType::kF16;
  return dtype == torch::kBFloat16 ? ValueType::kBf16 : ValueType::kF32;
}

/// Runs body as every rank of one communicator.
std::vector<std::string> run_ranks(int num_ranks,
                                   const std::function<void(Communicator&, int rank)>& body,
                                   double timeout_s = 60) {
  const Library library("emuccl");
  const std::vector<std::byte> id = library.make_unique_id();
  return run_threads(num_ranks, [&](int rank) {
    const auto communicator =
        library.join(id, {.rank = rank, .num_ranks = num_ranks, .timeout_s = timeout_s});
    body(*communicator, rank);
  });
}

TEST_CASE("sums over any number of ranks have the bits of adding in turn, whatever the dtype") {
  for (const int num_ranks : {1, 2, 3, 4}) {
    check_no_failure(run_ranks(num_ranks, [&](Communicator& communicator, int rank) {
      for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf, torch::kFloat64}) {
        for (const int64_t count : {0, 1, 3, 1000, 70'001}) {
          Tensor values = rank_values(rank, count, dtype);
          communicator.all_reduce_sum(
              values.data_ptr(), values.data_ptr(), static_cast<size_t>(count), type_of(dtype));
          if (!has_bits_of(values, sum_in_rank_order(num_ranks, count, dtype))) {
            fail("{} values of {}", count, c10::toString(dtype));
          }
        }
      }
    }));
  }
}

TEST_CASE("16-bit sums of special values are those of libtorch") {
  check_no_failure(run_ranks(2, [](Communicator& communicator, int rank) {
    for (const auto dtype : {torch::kHalf, torch::kBFloat16}) {
      // Every 16-bit pattern, plus a small number of the other rank's.
      Tensor bits = torch::arange(65536, torch::kInt32).to(torch::kInt16);
      Tensor values = bits.view(dtype).clone();
      if (rank == 1) values = torch::full({65536}, 0.001, dtype);
      const Tensor expected = (bits.view(dtype).to(torch::kFloat32) +
                               torch::full({65536}, 0.001, dtype).to(torch::kFloat32))
                                  .to(dtype);
      communicator.all_reduce_sum(values.data_ptr(), values.data_ptr(), 65536, type_of(dtype));
      const Tensor is_same = values.eq(expected).logical_or(
          values.to(torch::kFloat32).isnan().logical_and(expected.to(torch::kFloat32).isnan()));
      if (!is_same.all().item<bool>()) fail("{}", c10::toString(dtype));
    }
  }));
}

TEST_CASE("reduce-scatter, all-gather, broadcast and swapped messages reach every rank") {
  check_no_failure(run_ranks(3, [](Communicator& communicator, int rank) {
    constexpr int64_t kCount = 4097;
    Tensor rows = rank_values(rank, 3 * kCount, torch::kFloat32);
    float* const own = rows.data_ptr<float>() + rank * kCount;
    communicator.reduce_scatter_sum(rows.data_ptr(), own, kCount, ValueType::kF32);
    const Tensor sum = sum_in_rank_order(3, 3 * kCount, torch::kFloat32);
    if (!rows.narrow(0, rank * kCount, kCount).equal(sum.narrow(0, rank * kCount, kCount))) {
      fail("rank {}: reduce-scatter", rank);
    }
    communicator.all_gather(own, rows.data_ptr(), kCount, ValueType::kF32);
    if (!rows.equal(sum)) fail("rank {}: all-gather", rank);

    Tensor bytes = torch::full({70'001}, rank, torch::kUInt8);
    communicator.broadcast(bytes.data_ptr(), 70'001, ValueType::kByte, /*from_rank=*/1);
    if (!bytes.eq(1).all().item<bool>()) fail("rank {}: broadcast", rank);

    int32_t mine[2] = {rank, 10 + rank}, from_before[2] = {}, from_after = 0;
    const int after = (rank + 1) % 3, before = (rank + 2) % 3;
    const std::vector<Message> messages = {
        {.is_send = true, .address = &mine[0], .count = 4, .peer = after},
        {.is_send = true, .address = &mine[1], .count = 4, .peer = after},
        {.is_send = true, .address = &mine[0], .count = 4, .peer = before},
        {.address = &from_before[0], .count = 4, .peer = before},
        {.address = &from_before[1], .count = 4, .peer = before},
        {.address = &from_after, .count = 4, .peer = after}};
    communicator.exchange(messages);
    if (from_before[0] != before || from_before[1] != 10 + before || from_after != after) {
      fail("rank {}: messages", rank);
    }
  }));
}

TEST_CASE("processes read one another's memory, and one that is killed is named within a second") {
  const Library library("emuccl");
  const std::vector<std::byte> id = library.make_unique_id();
  const auto join = [&](int rank) {
    return library.join(id, {.rank = rank, .num_ranks = 3, .timeout_s = 60});
  };
  const auto add_up = [](Communicator& communicator, int rank) {
    std::vector<float> values(100'000, static_cast<float>(rank + 1));
    communicator.all_reduce_sum(values.data(), values.data(), values.size(), ValueType::kF32);
    if (values != std::vector<float>(values.size(), 6.0F)) fail("rank {}: another sum", rank);
  };
  Child one([&] {
    const auto communicator = join(1);
    add_up(*communicator, 1);
    add_up(*communicator, 1);
  });
  Child two([&] {
    const auto communicator = join(2);
    add_up(*communicator, 2);
    ::_exit(0);  // without a word, as if killed
  });
  const auto communicator = join(0);
  add_up(*communicator, 0);
  const double start_s = steady_now_s();
  const std::string failure = failure_of([&] { add_up(*communicator, 0); });
  CHECK(failure.find("rank 2 of 3 is lost: its process ended") == 0);
  CHECK(failure.find("emucclAllReduce of emuccl") != std::string::npos);
  CHECK(steady_now_s() - start_s < 30);  // far below the timeout of 60 s
  CHECK(one.wait().find("rank 2 of 3 is lost") == 0);
  CHECK(failure_of([&] { add_up(*communicator, 0); }).find("rank 2 of 3 is lost") == 0);
}

TEST_CASE("a silent rank is named after the timeout, and ends nobody's wait for ever") {
  std::vector<std::string> failures;
  // They have as long to join: a busy machine may need more than 0.2 s.
  CHECK(testing::holds_at_some_pace([&](double scale) {
    failures = run_ranks(
        2,
        [](Communicator& communicator, int rank) {
          int32_t word = 0;
          const Message receive = {.address = &word, .count = 4, .peer = 1 - rank};
          communicator.exchange(std::span(&receive, 1));  // both wait for the other
        },
        /*timeout_s=*/0.2 * scale);
    return (failures[0] + failures[1]).find("did not join") == std::string::npos;
  }));
  CHECK((failures[0] + failures[1]).find("it was silent for ") != std::string::npos);
  for (const std::string& failure : failures) CHECK(failure.find(" of 2 is lost: ") == 6);
}

TEST_CASE("ranks that disagree about a call are told what each calls") {
  const auto failures = run_ranks(2, [](Communicator& communicator, int rank) {
    std::vector<float> values(8);
    communicator.all_reduce_sum(values.data(), values.data(), rank == 0 ? 4 : 6, ValueType::kF32);
  });
  CHECK(failures[0].find("rank 1 calls an all-reduce of 6 values") == 0);
  CHECK(failures[1].find("rank 0 calls an all-reduce of 4 values") == 0);
}

TEST_CASE("a rank that does not join is named, one that joins twice is refused") {
  const Library library("emuccl");
  const std::vector<std::byte> id = library.make_unique_id();
  CHECK(failure_of([&] {
          library.join(id, {.rank = 0, .num_ranks = 2, .timeout_s = 0.05});
        }).find("rank 1 of 2 did not join within 0.05 s") == 0);
  CHECK(failure_of([&] {
          library.join(id, {.rank = 0, .num_ranks = 2});
        }).find("rank 0 is taken") == 0);
  CHECK(failure_of([&] {
          library.join(id, {.rank = 1, .num_ranks = 3});
        }).find("ranks disagree how many they are: 2 and 3") == 0);
  CHECK(failure_of([&] {
          library.join(id, {.rank = 7, .num_ranks = 2});
        }).find("rank 7 of 2 does not exist") == 0);
  const std::vector<std::byte> zeros(library.facts().unique_id_bytes);
  CHECK(failure_of([&] {
          library.join(zeros, {.rank = 0, .num_ranks = 1});
        }).find("the unique id is not one of emucclGetUniqueId") == 0);
}

TEST_CASE("a library that is missing is named with the files looked for and how to get them") {
  const TemporaryFolder folder;
  for (const char* name : {"hccl", "cncl", "rccl", "mccl-metax", "mccl-mthreads"}) {
    const LibraryFacts& facts = find_library(name);
    const std::string failure = failure_of([&] { Library library(name, folder.path()); });
    CHECK(failure.find(fmt::format("the collective library {} cannot be opened", name)) == 0);
    for (const char* file : facts.files) CHECK(failure.find(file) != std::string::npos);
    CHECK(failure.find(facts.how_to_get) != std::string::npos);
  }
  CHECK(failure_of([] { find_library("ncll"); }).find("write one of nccl, rccl, hccl") !=
        std::string::npos);
}

TEST_CASE("a library without a symbol is named with it") {
  LibraryFacts facts = find_library("emuccl");
  facts.symbols.all_gather = "emucclAllGatherV";
  const std::string failure = failure_of([&] { Library library(facts, {}); });
  CHECK(failure.find("the collective library emuccl (") == 0);
  CHECK(failure.find("lacks the symbol emucclAllGatherV") != std::string::npos);
}

TEST_CASE("a file that is no library is an error, not a crash") {
  const TemporaryFolder folder;
  std::ofstream(folder.path() / "libbroken_ccl.so") << "not a library";
  LibraryFacts facts = find_library("emuccl");
  facts.files = {"libbroken_ccl.so"};
  const std::string failure = failure_of([&] { Library library(facts, folder.path()); });
  CHECK(failure.find("the collective library emuccl cannot be opened") == 0);
}

TEST_CASE("a dtype that the library lacks is named with it") {
  LibraryFacts facts = find_library("emuccl");
  facts.dtypes[static_cast<size_t>(ValueType::kF64)] = kNoType;  // as CNCL
  const Library library(facts, {});
  const auto communicator = library.join(library.make_unique_id(), {});
  double value = 1;
  CHECK(failure_of([&] {
          communicator->all_reduce_sum(&value, &value, 1, ValueType::kF64);
        }).find("the collective library emuccl has no dtype f64") == 0);
}

TEST_CASE("every library of the table has what the calls need") {
  for (const LibraryFacts& facts : all_libraries()) {
    CAPTURE(std::string(facts.name));
    const Symbols& symbols = facts.symbols;
    for (const char* symbol : {symbols.get_unique_id,
                               symbols.init,
                               symbols.destroy,
                               symbols.all_reduce,
                               symbols.reduce_scatter,
                               symbols.all_gather,
                               symbols.broadcast,
                               symbols.error_text}) {
      CHECK(std::string(symbol) != "");
    }
    const bool has_groups = *symbols.group_start != '\0' && *symbols.group_end != '\0';
    CHECK((has_groups || *symbols.batch_messages != '\0'));
    CHECK(facts.unique_id_bytes >= 128);
  }
}

/// What one rank can check of NCCL: that it opens, and with a GPU that it copies a vector.
TEST_CASE("NCCL opened at run time passes with one rank, where it is installed") {
  std::optional<Library> library;
  const std::string missing = failure_of([&] { library.emplace("nccl"); });
  if (!library) {
    MESSAGE("skipped: " << missing);
    return;
  }
  if (!torch::cuda::is_available()) {
    MESSAGE("NCCL opened and all its symbols found; calls skipped: this libtorch sees no GPU");
    return;
  }
  const auto communicator = library->join(library->make_unique_id(), {});
  const Tensor values = torch::arange(1000, torch::dtype(torch::kFloat32).device(torch::kCUDA));
  Tensor sum = torch::zeros_like(values);
  communicator->all_reduce_sum(values.data_ptr(), sum.data_ptr(), 1000, ValueType::kF32);
  CHECK(sum.cpu().equal(values.cpu()));
}

}  // namespace
}  // namespace pelago::chips::native
