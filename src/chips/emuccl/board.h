// What the ranks of one communicator share: a few pages of memory without a name in the file
// system, on which each rank writes how far it is and where its data lies. The data itself is read
// straight from the other process (cross-memory attach), never copied through here.
//
// Waiting sleeps on a futex, because several emulated chips share few cores. Every kNapSeconds it
// looks whether the other process still runs. Whoever finds a rank lost writes that down first, so
// that ranks which then fall over one after another all name that one.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "chips/emuccl/emuccl.h"

namespace pelago::emuccl {

inline constexpr int kRanksMax = 64;
inline constexpr double kNapSeconds = 0.1;

/// A failed call: the result and the line that says why.
struct CallFailure : std::runtime_error {
  CallFailure(emucclResult_t call_result, const std::string& why)
      : std::runtime_error(why), result(call_result) {}
  emucclResult_t result;
};

enum class RankState : uint32_t { kAbsent = 0, kPresent = 1, kLeft = 2, kAborted = 3 };

/// What a rank asks of the others in the collective under way. All but addresses and time must be
/// the same on all ranks.
struct Call {
  uint32_t kind = 0;
  int32_t dtype = 0;
  int32_t op = 0;
  int32_t root = 0;
  uint64_t count = 0;
  uint64_t send_address = 0, receive_address = 0;
  double begin_s = 0;  // when this rank's chip could start
};

/// Written by its own rank, read by all.
struct alignas(64) RankSlot {
  std::atomic<uint32_t> steps;  // how many waits of the others this rank has satisfied
  std::atomic<RankState> state;
  int32_t process = 0;
  uint64_t word_address = 0;  // where a known word lies, to try reading
  Call call;
};

/// A message that was posted and not yet taken.
struct Posted {
  uint64_t address = 0, num_bytes = 0;
  double begin_s = 0;  // when the sender's chip could start; after taking: when both could
};

/// Messages from one rank to one other: the sender posts, the receiver takes.
struct alignas(64) Channel {
  static constexpr uint32_t kMessagesMax = 8;  // under way at once
  std::atomic<uint32_t> num_posted, num_taken;
  Posted messages[kMessagesMax];
};

struct Board {
  std::atomic<uint32_t> num_ranks;      // 0 until the first rank came
  std::atomic<int32_t> lost_rank_plus;  // the first rank found lost, plus 1; 0: none
  RankSlot ranks[kRanksMax];
  Channel channels[kRanksMax][kRanksMax];  // [from][to]
};

/// Where a board is found, as the unique id carries it.
struct BoardAddress {
  int32_t process = 0;
  int32_t file = -1;   // of that process
  uint64_t nonce = 0;  // tells a board from another in a file of the same number
  uint64_t magic = 0;  // of an id that this library made
};

/// Makes an empty board that lives as long as this process or a rank that joined it.
BoardAddress make_board();

/// One rank's view of the board. Throws CallFailure; after that all ranks' calls fail.
class Seat {
 public:
  Seat(const BoardAddress& address, int rank, int num_ranks, double timeout_s);
  Seat(const Seat&) = delete;
  Seat& operator=(const Seat&) = delete;
  ~Seat();

  int rank() const { return rank_; }
  int num_ranks() const { return num_ranks_; }
  RankSlot& own() { return board_->ranks[rank_]; }
  const RankSlot& of(int rank) const { return board_->ranks[rank]; }
  Channel& channel(int from_rank, int to_rank) { return board_->channels[from_rank][to_rank]; }

  /// Says that this rank has come one step further, and waits until all have.
  void step_together();
  /// Waits until the word of a peer reaches target (they count up and may wrap around).
  void wait_for(std::atomic<uint32_t>& word, uint32_t target, int peer);
  static void wake(std::atomic<uint32_t>& word);

  /// Copies memory of a rank, which may be this one.
  void read(int from_rank, uint64_t address, void* to, size_t num_bytes);

  /// Throws if the communicator has ended.
  void check_open() const;
  /// Ends the communicator for all ranks.
  [[noreturn]] void give_up(emucclResult_t result, const std::string& why);
  void leave(RankState state);

 private:
  void map(const BoardAddress& address);
  void sit_down();
  void meet_peers(const BoardAddress& address);
  void check_alive(int peer, double silent_since_s);
  [[noreturn]] void lose(int peer, const std::string& why);

  const int rank_, num_ranks_;
  const double timeout_s_;
  Board* board_ = nullptr;
  bool is_seated_ = false;          // the slot is this rank's, and not one that came before
  std::vector<int> process_files_;  // by rank; -1 for ranks of this process
  std::string failure_;             // why the communicator has ended; empty while it is open
};

}  // namespace pelago::emuccl
