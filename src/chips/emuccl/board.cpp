#include "chips/emuccl/board.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <ctime>

namespace pelago::emuccl {
namespace {

constexpr uint64_t kMagic = 0x70656c61676f6363;  // also the known word that peers try to read
const uint64_t readable_word = kMagic;

double now_s() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::string reason() { return std::strerror(errno); }

std::string text_of(double seconds) {
  std::string text = std::to_string(seconds);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

/// Sleeps until the word is not `seen` any more, something wakes it, or kNapSeconds have passed.
void nap(std::atomic<uint32_t>& word, uint32_t seen) {
  static_assert(sizeof word == sizeof(uint32_t), "a futex is a plain 32-bit word");
  const timespec longest = {.tv_sec = 0, .tv_nsec = static_cast<long>(kNapSeconds * 1e9)};
  ::syscall(SYS_futex, &word, FUTEX_WAIT, seen, &longest, nullptr, 0);
}

bool has_reached(uint32_t value, uint32_t target) {
  return static_cast<int32_t>(value - target) >= 0;
}

}  // namespace

BoardAddress make_board() {
  BoardAddress address = {.process = ::getpid(), .file = -1, .nonce = 0, .magic = kMagic};
  if (::getrandom(&address.nonce, sizeof address.nonce, 0) != sizeof address.nonce) {
    throw CallFailure(emucclSystemError, "no random number for a unique id: " + reason());
  }
  address.file = ::memfd_create("pelago-emuccl", MFD_CLOEXEC);
  if (address.file < 0 || ::ftruncate(address.file, sizeof(Board)) != 0) {
    throw CallFailure(emucclSystemError, "no shared memory for a communicator: " + reason());
  }
  return address;
}

Seat::Seat(const BoardAddress& address, int rank, int num_ranks, double timeout_s)
    : rank_(rank), num_ranks_(num_ranks), timeout_s_(timeout_s) {
  if (num_ranks < 1 || num_ranks > kRanksMax || rank < 0 || rank >= num_ranks) {
    throw CallFailure(emucclInvalidArgument,
                      "rank " + std::to_string(rank) + " of " + std::to_string(num_ranks) +
                          " does not exist: ranks count from 0 to at most " +
                          std::to_string(kRanksMax - 1));
  }
  if (address.magic != kMagic) {
    throw CallFailure(emucclInvalidArgument, "the unique id is not one of emucclGetUniqueId");
  }
  process_files_.assign(static_cast<size_t>(num_ranks), -1);
  map(address);
  try {
    sit_down();
    meet_peers(address);
  } catch (...) {
    leave(RankState::kAborted);
    throw;
  }
}

Seat::~Seat() { leave(RankState::kLeft); }

void Seat::map(const BoardAddress& address) {
  const std::string path =
      "/proc/" + std::to_string(address.process) + "/fd/" + std::to_string(address.file);
  const int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) {
    throw CallFailure(emucclRemoteError,
                      "the process " + std::to_string(address.process) +
                          " that made the unique id cannot be reached (" + reason() +
                          "): it must still run, on this machine, for this user");
  }
  void* const memory = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  ::close(file);
  if (memory == MAP_FAILED) {
    throw CallFailure(emucclSystemError, "the communicator's memory: " + reason());
  }
  board_ = static_cast<Board*>(memory);  // all zero is a board before anybody came
}

void Seat::sit_down() {
#ifdef PR_SET_PTRACER
  ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);  // fails where there is no Yama: no matter
#endif
  uint32_t agreed_ranks = 0;
  const auto asked_ranks = static_cast<uint32_t>(num_ranks_);
  if (!board_->num_ranks.compare_exchange_strong(agreed_ranks, asked_ranks) &&
      agreed_ranks != asked_ranks) {
    throw CallFailure(emucclInvalidUsage,
                      "ranks disagree how many they are: " + std::to_string(agreed_ranks) +
                          " and " + std::to_string(asked_ranks));
  }
  RankSlot& slot = own();
  RankState state = RankState::kAbsent;
  if (!slot.state.compare_exchange_strong(state, RankState::kPresent)) {
    throw CallFailure(
        emucclInvalidUsage,
        "rank " + std::to_string(rank_) + " is taken: each rank joins once, by an id of its own");
  }
  is_seated_ = true;
  slot.process = ::getpid();
  slot.word_address = reinterpret_cast<uint64_t>(&readable_word);
}

void Seat::meet_peers(const BoardAddress& address) {
  own().steps.fetch_add(1, std::memory_order_release);
  wake(own().steps);
  const double deadline_s = now_s() + timeout_s_;
  for (int peer = 0; peer < num_ranks_; ++peer) {
    std::atomic<uint32_t>& steps = board_->ranks[peer].steps;
    while (steps.load(std::memory_order_acquire) == 0) {
      check_open();
      if (now_s() > deadline_s) {
        give_up(emucclRemoteError,
                "rank " + std::to_string(peer) + " of " + std::to_string(num_ranks_) +
                    " did not join within " + text_of(timeout_s_) +
                    " s: see that worker's log for why it did not start");
      }
      nap(steps, 0);
    }
    const RankSlot& slot = of(peer);
    if (slot.process == ::getpid()) continue;
    process_files_[static_cast<size_t>(peer)] =
        static_cast<int>(::syscall(SYS_pidfd_open, slot.process, 0));
    uint64_t word = 0;
    read(peer, slot.word_address, &word, sizeof word);
    if (word != kMagic) {
      give_up(emucclInvalidUsage,
              "rank " + std::to_string(peer) + " runs another version of this library");
    }
  }
  step_together();
  // All have the memory mapped: the file that led to it can go.
  if (rank_ == 0 && address.process == ::getpid()) ::close(address.file);
}

void Seat::step_together() {
  check_open();
  const uint32_t target = own().steps.fetch_add(1, std::memory_order_release) + 1;
  wake(own().steps);
  for (int peer = 0; peer < num_ranks_; ++peer) {
    if (peer != rank_) wait_for(board_->ranks[peer].steps, target, peer);
  }
}

void Seat::wait_for(std::atomic<uint32_t>& word, uint32_t target, int peer) {
  const double since_s = now_s();
  for (;;) {
    const uint32_t value = word.load(std::memory_order_acquire);
    if (has_reached(value, target)) return;
    check_alive(peer, since_s);
    nap(word, value);
  }
}

void Seat::wake(std::atomic<uint32_t>& word) {
  ::syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void Seat::check_alive(int peer, double silent_since_s) {
  const RankState state = of(peer).state.load(std::memory_order_acquire);
  if (state == RankState::kLeft) lose(peer, "it left while others waited for it");
  if (state == RankState::kAborted) lose(peer, "it gave up");
  pollfd process = {
      .fd = process_files_[static_cast<size_t>(peer)], .events = POLLIN, .revents = 0};
  if (process.fd >= 0 && ::poll(&process, 1, 0) == 1) lose(peer, "its process ended");
  if (now_s() - silent_since_s > timeout_s_) {
    lose(peer, "it was silent for " + text_of(timeout_s_) + " s");
  }
}

void Seat::read(int from_rank, uint64_t address, void* to, size_t num_bytes) {
  const RankSlot& slot = of(from_rank);
  if (slot.process == ::getpid()) {
    std::memcpy(to, reinterpret_cast<const void*>(address), num_bytes);
    return;
  }
  auto* place = static_cast<char*>(to);
  while (num_bytes > 0) {
    const iovec here = {.iov_base = place, .iov_len = num_bytes};
    const iovec there = {.iov_base = reinterpret_cast<void*>(address), .iov_len = num_bytes};
    const ssize_t num_read = ::process_vm_readv(slot.process, &here, 1, &there, 1, 0);
    if (num_read < 0 && errno == EPERM) {
      give_up(emucclSystemError,
              "the kernel forbids to read the memory of rank " + std::to_string(from_rank) +
                  " (cross-memory attach): allow ptrace between the workers, or reduce by UCX");
    }
    if (num_read <= 0) lose(from_rank, "its memory cannot be read: " + reason());
    place += num_read;
    address += static_cast<uint64_t>(num_read);
    num_bytes -= static_cast<size_t>(num_read);
  }
}

void Seat::check_open() const {
  if (!failure_.empty()) throw CallFailure(emucclInvalidUsage, failure_);
}

void Seat::lose(int peer, const std::string& why) {
  int32_t noted = 0;
  board_->lost_rank_plus.compare_exchange_strong(noted, peer + 1);
  const int lost_rank = noted == 0 ? peer : noted - 1;
  const std::string of_all = " of " + std::to_string(num_ranks_) + " is lost";
  if (lost_rank == peer || lost_rank == rank_) {
    give_up(emucclRemoteError,
            "rank " + std::to_string(peer) + of_all + ": " + why +
                "; restart the workers of this site");
  }
  give_up(emucclRemoteError,
          "rank " + std::to_string(lost_rank) + of_all + ", and rank " + std::to_string(peer) +
              " with it; restart the workers of this site");
}

void Seat::give_up(emucclResult_t result, const std::string& why) {
  failure_ = why;
  own().state.store(RankState::kAborted, std::memory_order_release);
  throw CallFailure(result, why);
}

void Seat::leave(RankState state) {
  if (board_ == nullptr) return;
  if (is_seated_) {
    RankState present = RankState::kPresent;
    own().state.compare_exchange_strong(present, state);
    wake(
        own().steps);  // whoever waits for this rank looks at its state; for a message: after a nap
  }
  for (int& file : process_files_) {
    if (file >= 0) ::close(file);
    file = -1;
  }
  ::munmap(board_, sizeof(Board));
  board_ = nullptr;
}

}  // namespace pelago::emuccl
