// One rank of a communicator: what its calls do. An all-reduce is a reduce-scatter, in which each
// rank adds its own slice of all ranks' vectors, and an all-gather, in which it reads the others'.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "chips/emuccl/board.h"
#include "chips/emuccl/cost.h"
#include "chips/emuccl/emuccl.h"

namespace pelago::emuccl {

/// The emulated chip's clock, reached through the emulator if this process has loaded it.
class LinkClock {
 public:
  LinkClock();
  /// When the links could start work that is ready at ready_s (null: all given so far).
  double begin_s(const double* ready_s) const;
  /// The links are busy from begin_s for so many seconds of the real chip. time_s receives the end.
  void charge(double begin_s, double seconds, double* time_s) const;

 private:
  using BeginFunction = double (*)(const double*);
  using ChargeFunction = double (*)(double, double);
  BeginFunction begin_ = nullptr;
  ChargeFunction charge_ = nullptr;
};

/// A message of a group, until the group ends.
struct Message {
  bool is_send = false;
  const void* send = nullptr;
  void* receive = nullptr;
  size_t num_bytes = 0;
  int peer = 0;
  double* time_s = nullptr;
};

/// Methods throw CallFailure. time_s: what emuccl.h says of streams.
class Communicator {
 public:
  Communicator(const BoardAddress& address, int rank, int num_ranks, const emucclConfig& config);

  void all_reduce(const void* send, void* receive, Call call, double* time_s);
  void reduce_scatter(const void* send, void* receive, Call call, double* time_s);
  void all_gather(const void* send, void* receive, Call call, double* time_s);
  void broadcast(const void* send, void* receive, Call call, double* time_s);
  void exchange(const std::vector<Message>& messages);
  /// Throw for a rank that does not exist, and for this rank itself.
  void check_rank(int rank) const;
  void check_peer(int rank) const;
  void abort() { seat_.leave(RankState::kAborted); }

  std::string last_error;

 private:
  struct Range {
    size_t first = 0, count = 0;
  };
  Range slice(size_t count, int idx) const;
  void meet(Kind kind, Call call, const void* send, void* receive, const double* time_s);
  void finish(Kind kind, size_t num_bytes, double* time_s);
  void check_same(const Call& mine, int peer, const Call& other);
  void post(const Message& message);
  void take(const Message& message);
  void await_taken(const Message& message, uint32_t num_posted);
  void add_slices(const Call& call, Range range, const std::byte* send, std::byte* receive);

  Seat seat_;
  emucclConfig config_;
  LinkClock clock_;
  double begin_s_ = 0;               // of the collective under way: the last chip's
  std::vector<std::byte> part_;      // of another rank's vector, on its way into the sum
  std::vector<std::byte> partials_;  // of one chunk
};

}  // namespace pelago::emuccl
