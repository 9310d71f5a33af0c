// What differs between the vendors' collective libraries: names, numbers and three shapes of call.
// Nothing of a vendor's SDK is needed to build: the libraries are opened at run time. Where each
// fact was read stands beside it in facts.cpp.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace pelago::chips::native {

enum class ValueType { kF32, kF64, kF16, kBf16, kByte };
inline constexpr size_t kNumValueTypes = 5;
std::string_view name_of(ValueType type);
size_t bytes_of(ValueType type);

/// How arguments are laid out.
///   kNccl: the unique id goes by value; broadcast has two addresses.
///   kHccl: the unique id goes by address, broadcast has one; messages go in batches.
///   kCncl: a communicator is one of a list, the unique id goes by address.
enum class Shape { kNccl, kHccl, kCncl };

/// Names of C functions; empty where the library has none.
struct Symbols {
  const char* get_unique_id = "";
  const char* init = "";
  const char* init_with_links = "";  // of the emulator's library alone
  const char* destroy = "";
  const char* abort = "";
  const char* all_reduce = "";
  const char* reduce_scatter = "";
  const char* all_gather = "";
  const char* broadcast = "";
  const char* send = "";
  const char* receive = "";
  const char* group_start = "";
  const char* group_end = "";
  const char* batch_messages = "";
  const char* error_text = "";
  const char* last_error = "";  // of a communicator; more than the result's name says
};

/// Where calls that need a queue of their own get one. Elsewhere the default queue serves, which is
/// also libtorch's, so that work given before and after is in order.
struct QueueSymbols {
  std::vector<const char*> files = {};
  const char* create = "";
  const char* synchronize = "";
  const char* destroy = "";
};

struct LibraryFacts {
  std::string_view name;                // as CollectiveOptions has it
  std::vector<const char*> files = {};  // tried in this order
  const char* how_to_get = "";          // the remedy where none is found
  Shape shape = Shape::kNccl;
  size_t unique_id_bytes = 128;
  Symbols symbols = {};
  std::array<int, kNumValueTypes> dtypes = {};  // by ValueType; kNoType where the library lacks it
  int sum = 0, max = 2;
  QueueSymbols queue = {};         // no files: the default queue
  bool reads_host_memory = false;  // the emulator's: chip memory is host memory
  bool sums_16bit_in_f32 = false;  // else 16-bit values are widened before they are summed
};
inline constexpr int kNoType = -1;

/// "nccl", "rccl", "hccl", "cncl", "mccl-metax", "mccl-mthreads", "emuccl".
std::span<const LibraryFacts> all_libraries();
/// Throws Failure (exit 2) that names the known ones.
const LibraryFacts& find_library(std::string_view name);

}  // namespace pelago::chips::native
