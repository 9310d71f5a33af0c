#include "chips/emuccl/communicator.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "chips/emuccl/sums.h"

namespace pelago::emuccl {
namespace {

constexpr size_t kChunkValues = 32
                                << 10;  // a chunk and its partial sums fit the second-level cache

const char* name_of(uint32_t kind) {
  switch (static_cast<Kind>(kind)) {
    case Kind::kAllReduce:
      return "an all-reduce";
    case Kind::kReduceScatter:
      return "a reduce-scatter";
    case Kind::kAllGather:
      return "an all-gather";
    case Kind::kBroadcast:
      return "a broadcast";
  }
  return "an unknown call";
}

std::string told(const Call& call) {
  return std::string(name_of(call.kind)) + " of " + std::to_string(call.count) +
         " values of dtype " + std::to_string(call.dtype) + ", op " + std::to_string(call.op) +
         ", root " + std::to_string(call.root);
}

const std::byte* bytes(const void* memory) { return static_cast<const std::byte*>(memory); }
std::byte* bytes(void* memory) { return static_cast<std::byte*>(memory); }

}  // namespace

LinkClock::LinkClock()
    : begin_(reinterpret_cast<BeginFunction>(::dlsym(RTLD_DEFAULT, "pelago_emulator_link_begin"))),
      charge_(
          reinterpret_cast<ChargeFunction>(::dlsym(RTLD_DEFAULT, "pelago_emulator_charge_link"))) {}

double LinkClock::begin_s(const double* ready_s) const {
  return begin_ != nullptr ? begin_(ready_s) : 0;
}

void LinkClock::charge(double begin_s, double seconds, double* time_s) const {
  if (charge_ == nullptr) return;
  const double end_s = seconds > 0 ? charge_(begin_s, seconds) : begin_s;
  if (time_s != nullptr) *time_s = end_s;
}

Communicator::Communicator(const BoardAddress& address,
                           int rank,
                           int num_ranks,
                           const emucclConfig& config)
    : seat_(address, rank, num_ranks, config.timeout_s), config_(config) {}

void Communicator::check_rank(int rank) const {
  if (rank >= 0 && rank < seat_.num_ranks()) return;
  throw CallFailure(emucclInvalidArgument,
                    "rank " + std::to_string(rank) + " of " + std::to_string(seat_.num_ranks()) +
                        " does not exist");
}

void Communicator::check_peer(int rank) const {
  check_rank(rank);
  if (rank == seat_.rank()) {
    throw CallFailure(emucclInvalidArgument, "a rank sends messages to others, not to itself");
  }
}

Communicator::Range Communicator::slice(size_t count, int idx) const {
  const auto num_slices = static_cast<size_t>(seat_.num_ranks());
  const auto at = static_cast<size_t>(idx);
  const size_t shortest = count / num_slices, num_longer = count % num_slices;
  return {.first = at * shortest + std::min(at, num_longer),
          .count = shortest + (at < num_longer ? 1 : 0)};
}

void Communicator::meet(
    Kind kind, Call call, const void* send, void* receive, const double* time_s) {
  seat_.check_open();
  call.kind = static_cast<uint32_t>(kind);
  call.send_address = reinterpret_cast<uint64_t>(send);
  call.receive_address = reinterpret_cast<uint64_t>(receive);
  call.begin_s = clock_.begin_s(time_s);
  seat_.own().call = call;
  seat_.step_together();
  begin_s_ = 0;
  for (int peer = 0; peer < seat_.num_ranks(); ++peer) {
    check_same(call, peer, seat_.of(peer).call);
    begin_s_ = std::max(begin_s_, seat_.of(peer).call.begin_s);
  }
}

void Communicator::check_same(const Call& mine, int peer, const Call& other) {
  if (mine.kind == other.kind && mine.dtype == other.dtype && mine.op == other.op &&
      mine.root == other.root && mine.count == other.count) {
    return;
  }
  seat_.give_up(emucclInvalidUsage,
                "rank " + std::to_string(peer) + " calls " + told(other) + ", where rank " +
                    std::to_string(seat_.rank()) + " calls " + told(mine));
}

void Communicator::finish(Kind kind, size_t num_bytes, double* time_s) {
  seat_.step_together();  // nobody reads from this rank any more
  clock_.charge(begin_s_,
                collective_s(kind, seat_.num_ranks(), static_cast<double>(num_bytes), config_),
                time_s);
}

void Communicator::add_slices(const Call& call,
                              Range range,
                              const std::byte* send,
                              std::byte* receive) {
  const auto dtype = static_cast<emucclDataType_t>(call.dtype);
  const auto op = static_cast<emucclRedOp_t>(call.op);
  const size_t value_bytes = bytes_of(dtype);
  part_.resize(kChunkValues * value_bytes);
  partials_.resize(kChunkValues * bytes_of_partial(dtype));
  for (size_t done = 0; done < range.count; done += kChunkValues) {
    const size_t count = std::min(kChunkValues, range.count - done);
    const size_t offset = (range.first + done) * value_bytes;
    for (int peer = 0; peer < seat_.num_ranks(); ++peer) {
      const std::byte* values = send + offset;
      if (peer != seat_.rank()) {
        seat_.read(
            peer, seat_.of(peer).call.send_address + offset, part_.data(), count * value_bytes);
        values = part_.data();
      }
      add_values(dtype, op, /*is_first_rank=*/peer == 0, values, count, partials_.data());
    }
    round_values(dtype, partials_.data(), count, receive + done * value_bytes);
  }
}

void Communicator::all_reduce(const void* send, void* receive, Call call, double* time_s) {
  meet(Kind::kAllReduce, call, send, receive, time_s);
  const size_t value_bytes = bytes_of(static_cast<emucclDataType_t>(call.dtype));
  const Range own = slice(call.count, seat_.rank());
  add_slices(call, own, bytes(send), bytes(receive) + own.first * value_bytes);
  seat_.step_together();  // every slice of the sum lies in its owner's receive
  for (int peer = 0; peer < seat_.num_ranks(); ++peer) {
    const Range theirs = slice(call.count, peer);
    if (peer == seat_.rank() || theirs.count == 0) continue;
    const size_t offset = theirs.first * value_bytes;
    seat_.read(peer,
               seat_.of(peer).call.receive_address + offset,
               bytes(receive) + offset,
               theirs.count * value_bytes);
  }
  finish(Kind::kAllReduce, call.count * value_bytes, time_s);
}

void Communicator::reduce_scatter(const void* send, void* receive, Call call, double* time_s) {
  meet(Kind::kReduceScatter, call, send, receive, time_s);
  const auto rank = static_cast<size_t>(seat_.rank());
  add_slices(call, {.first = rank * call.count, .count = call.count}, bytes(send), bytes(receive));
  finish(Kind::kReduceScatter,
         static_cast<size_t>(seat_.num_ranks()) * call.count *
             bytes_of(static_cast<emucclDataType_t>(call.dtype)),
         time_s);
}

void Communicator::all_gather(const void* send, void* receive, Call call, double* time_s) {
  meet(Kind::kAllGather, call, send, receive, time_s);
  const size_t row_bytes = call.count * bytes_of(static_cast<emucclDataType_t>(call.dtype));
  for (int peer = 0; peer < seat_.num_ranks(); ++peer) {
    std::byte* const row = bytes(receive) + static_cast<size_t>(peer) * row_bytes;
    if (peer != seat_.rank()) {
      seat_.read(peer, seat_.of(peer).call.send_address, row, row_bytes);
    } else if (row != bytes(send)) {
      std::memmove(row, send, row_bytes);
    }
  }
  finish(Kind::kAllGather, static_cast<size_t>(seat_.num_ranks()) * row_bytes, time_s);
}

void Communicator::broadcast(const void* send, void* receive, Call call, double* time_s) {
  const size_t num_bytes = call.count * bytes_of(static_cast<emucclDataType_t>(call.dtype));
  meet(Kind::kBroadcast, call, send, receive, time_s);
  if (call.root != seat_.rank()) {
    seat_.read(call.root, seat_.of(call.root).call.send_address, receive, num_bytes);
  } else if (send != receive) {
    std::memmove(receive, send, num_bytes);
  }
  finish(Kind::kBroadcast, num_bytes, time_s);
}

}  // namespace pelago::emuccl
