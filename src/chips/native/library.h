// A vendor's collective library, opened at run time, and one rank of a communicator in it.
//
// All ranks make the same calls in the same order. Addresses are those of the rank's device. A call
// is queued; finish() waits for it where the library works on a queue of its own. Every failure
// names the library, the call and the rank.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "chips/native/facts.h"
#include "chips/native/links.h"

namespace pelago::chips::native {

struct CommunicatorOptions {
  int rank = 0;
  int num_ranks = 1;
  int device_idx = 0;  // of the process; for libraries that are told
  double timeout_s = 120;
  Links links = {};
};

struct Message {
  bool is_send = false;
  void* address = nullptr;
  size_t count = 0;
  ValueType type = ValueType::kByte;
  int peer = 0;
};

/// Sums are added in an order that is the library's own but the same on every rank.
class Communicator {
 public:
  virtual ~Communicator() = default;
  /// send: [count]; receive: [count], may be send.
  virtual void all_reduce_sum(const void* send, void* receive, size_t count, ValueType type) = 0;
  /// send: [num_ranks, count]; receive: [count], may be this rank's row of send.
  virtual void reduce_scatter_sum(const void* send,
                                  void* receive,
                                  size_t count,
                                  ValueType type) = 0;
  /// send: [count], may be this rank's row of receive; receive: [num_ranks, count].
  virtual void all_gather(const void* send, void* receive, size_t count, ValueType type) = 0;
  /// memory: [count].
  virtual void broadcast(void* memory, size_t count, ValueType type, int from_rank) = 0;
  /// Messages that go together, so that ranks may swap.
  virtual void exchange(std::span<const Message> messages) = 0;
  /// For emulated chips: where the time stands at which a call's input is ready, and is replaced by
  /// that of its result. Null: all work given.
  virtual void set_time(double* time_s) = 0;
  /// Waits until what was queued is done, where nothing else orders it before later work.
  virtual void finish() = 0;
};

/// Cheap to copy: copies share the opened library.
class Library {
 public:
  /// Opens the library by its name in facts.h. folder: where to look first; empty: beside the
  /// program. Throws Failure naming the files looked for and how to get them, or the library and
  /// the symbol that it lacks.
  explicit Library(std::string_view name, const std::filesystem::path& folder = {});
  Library(const LibraryFacts& facts, const std::filesystem::path& folder);

  const LibraryFacts& facts() const;
  /// Called by one rank, which gives the bytes to the others.
  std::vector<std::byte> make_unique_id() const;
  /// All ranks call it together. Throws Failure if one does not come.
  std::unique_ptr<Communicator> join(std::span<const std::byte> unique_id,
                                     const CommunicatorOptions& options) const;

 private:
  struct Functions;
  friend class LoadedCommunicator;
  std::shared_ptr<const Functions> functions_;  // shared with copies and communicators
};

}  // namespace pelago::chips::native
