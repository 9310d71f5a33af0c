// The C symbols: arguments checked, failures turned into results and a line of text.
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "chips/emuccl/communicator.h"
#include "chips/emuccl/sums.h"

using pelago::emuccl::BoardAddress;
using pelago::emuccl::Call;
using pelago::emuccl::CallFailure;
using pelago::emuccl::Communicator;
using pelago::emuccl::Message;

struct emucclComm : Communicator {
  using Communicator::Communicator;
};

namespace {

static_assert(sizeof(BoardAddress) <= kEmucclUniqueIdBytes);
constexpr int kVersion = 10000;

thread_local std::string thread_error;  // of calls without a communicator

struct GroupedMessage {
  emucclComm_t comm;
  Message message;
};
thread_local int group_depth = 0;
thread_local std::vector<GroupedMessage> group_messages;

emucclResult_t note(emucclComm_t comm, emucclResult_t result, const std::string& why) {
  (comm != nullptr ? comm->last_error : thread_error) = why;
  return result;
}

/// Runs a call; what it throws becomes its result.
template <typename Action>
emucclResult_t guarded(emucclComm_t comm, const Action& action) {
  try {
    action();
    return emucclSuccess;
  } catch (const CallFailure& failure) {
    return note(comm, failure.result, failure.what());
  } catch (const std::exception& error) {
    return note(comm, emucclInternalError, error.what());
  }
}

void check_arguments(emucclComm_t comm, bool has_memory, size_t count, emucclDataType_t dtype) {
  if (comm == nullptr) throw CallFailure(emucclInvalidArgument, "the communicator is null");
  if (!has_memory && count > 0) throw CallFailure(emucclInvalidArgument, "an address is null");
  if (pelago::emuccl::bytes_of(dtype) == 0) {
    throw CallFailure(emucclInvalidArgument, "dtype " + std::to_string(dtype) + " is unknown");
  }
}

void check_reduction(emucclDataType_t dtype, emucclRedOp_t op) {
  if (pelago::emuccl::bytes_of_partial(dtype) == 0) {
    throw CallFailure(emucclInvalidArgument, "dtype " + std::to_string(dtype) + " has no sums");
  }
  if (op != emucclSum && op != emucclMax) {
    throw CallFailure(emucclInvalidArgument, "reduction " + std::to_string(op) + " is unknown");
  }
}

Call call_of(size_t count, emucclDataType_t dtype, emucclRedOp_t op = emucclSum, int root = 0) {
  return {.dtype = dtype, .op = op, .root = root, .count = count};
}

double* time_of(void* stream) { return static_cast<double*>(stream); }

void add_to_group(emucclComm_t comm, const Message& message) {
  group_messages.push_back({comm, message});
}

emucclResult_t run_group() {
  std::vector<GroupedMessage> all = std::move(group_messages);
  group_messages.clear();
  while (!all.empty()) {
    const emucclComm_t comm = all.front().comm;
    std::vector<Message> messages;
    std::erase_if(all, [&](const GroupedMessage& grouped) {
      if (grouped.comm != comm) return false;
      messages.push_back(grouped.message);
      return true;
    });
    const emucclResult_t result = guarded(comm, [&] { comm->exchange(messages); });
    if (result != emucclSuccess) return result;
  }
  return emucclSuccess;
}

emucclResult_t message(emucclComm_t comm, const Message& message) {
  const emucclResult_t result = guarded(comm, [&] { comm->check_peer(message.peer); });
  if (result != emucclSuccess) return result;
  add_to_group(comm, message);
  return group_depth > 0 ? emucclSuccess : run_group();
}

}  // namespace

extern "C" {

emucclResult_t emucclGetVersion(int* version) {
  *version = kVersion;
  return emucclSuccess;
}

emucclResult_t emucclGetUniqueId(emucclUniqueId* id) {
  return guarded(nullptr, [&] {
    const BoardAddress address = pelago::emuccl::make_board();
    *id = {};
    std::memcpy(id->internal, &address, sizeof address);
  });
}

emucclResult_t emucclCommInitRank(emucclComm_t* comm, int num_ranks, emucclUniqueId id, int rank) {
  return emucclCommInitRankConfig(comm, num_ranks, id, rank, nullptr);
}

emucclResult_t emucclCommInitRankConfig(
    emucclComm_t* comm, int num_ranks, emucclUniqueId id, int rank, const emucclConfig* config) {
  return guarded(nullptr, [&] {
    if (config != nullptr && config->struct_bytes != sizeof(emucclConfig)) {
      throw CallFailure(emucclInvalidArgument,
                        "emucclConfig is of another version; build both anew");
    }
    BoardAddress address;
    std::memcpy(&address, id.internal, sizeof address);
    *comm = new emucclComm(address, rank, num_ranks, config != nullptr ? *config : emucclConfig());
  });
}

emucclResult_t emucclCommDestroy(emucclComm_t comm) {
  delete comm;
  return emucclSuccess;
}

emucclResult_t emucclCommAbort(emucclComm_t comm) {
  if (comm != nullptr) comm->abort();
  delete comm;
  return emucclSuccess;
}

const char* emucclGetErrorString(emucclResult_t result) {
  switch (result) {
    case emucclSuccess:
      return "no error";
    case emucclSystemError:
      return "the system refused";
    case emucclInternalError:
      return "internal error";
    case emucclInvalidArgument:
      return "invalid argument";
    case emucclInvalidUsage:
      return "invalid usage";
    case emucclRemoteError:
      return "another rank is gone or silent";
  }
  return "unknown result";
}

const char* emucclGetLastError(emucclComm_t comm) {
  return (comm != nullptr ? comm->last_error : thread_error).c_str();
}

emucclResult_t emucclAllReduce(const void* send,
                               void* receive,
                               size_t count,
                               emucclDataType_t dtype,
                               emucclRedOp_t op,
                               emucclComm_t comm,
                               void* stream) {
  return guarded(comm, [&] {
    check_arguments(comm, send != nullptr && receive != nullptr, count, dtype);
    check_reduction(dtype, op);
    comm->all_reduce(send, receive, call_of(count, dtype, op), time_of(stream));
  });
}

emucclResult_t emucclReduceScatter(const void* send,
                                   void* receive,
                                   size_t count,
                                   emucclDataType_t dtype,
                                   emucclRedOp_t op,
                                   emucclComm_t comm,
                                   void* stream) {
  return guarded(comm, [&] {
    check_arguments(comm, send != nullptr && receive != nullptr, count, dtype);
    check_reduction(dtype, op);
    comm->reduce_scatter(send, receive, call_of(count, dtype, op), time_of(stream));
  });
}

emucclResult_t emucclAllGather(const void* send,
                               void* receive,
                               size_t count,
                               emucclDataType_t dtype,
                               emucclComm_t comm,
                               void* stream) {
  return guarded(comm, [&] {
    check_arguments(comm, send != nullptr && receive != nullptr, count, dtype);
    comm->all_gather(send, receive, call_of(count, dtype), time_of(stream));
  });
}

emucclResult_t emucclBroadcast(const void* send,
                               void* receive,
                               size_t count,
                               emucclDataType_t dtype,
                               int root,
                               emucclComm_t comm,
                               void* stream) {
  return guarded(comm, [&] {
    check_arguments(comm, receive != nullptr, count, dtype);
    comm->check_rank(root);
    comm->broadcast(send, receive, call_of(count, dtype, emucclSum, root), time_of(stream));
  });
}

emucclResult_t emucclSend(const void* send,
                          size_t count,
                          emucclDataType_t dtype,
                          int to_rank,
                          emucclComm_t comm,
                          void* stream) {
  const emucclResult_t result =
      guarded(comm, [&] { check_arguments(comm, send != nullptr, count, dtype); });
  if (result != emucclSuccess) return result;
  return message(comm,
                 {.is_send = true,
                  .send = send,
                  .num_bytes = count * pelago::emuccl::bytes_of(dtype),
                  .peer = to_rank,
                  .time_s = time_of(stream)});
}

emucclResult_t emucclRecv(void* receive,
                          size_t count,
                          emucclDataType_t dtype,
                          int from_rank,
                          emucclComm_t comm,
                          void* stream) {
  const emucclResult_t result =
      guarded(comm, [&] { check_arguments(comm, receive != nullptr, count, dtype); });
  if (result != emucclSuccess) return result;
  return message(comm,
                 {.receive = receive,
                  .num_bytes = count * pelago::emuccl::bytes_of(dtype),
                  .peer = from_rank,
                  .time_s = time_of(stream)});
}

emucclResult_t emucclGroupStart() {
  ++group_depth;
  return emucclSuccess;
}

emucclResult_t emucclGroupEnd() {
  if (group_depth == 0) {
    return note(nullptr, emucclInvalidUsage, "a group ends that was never started");
  }
  return --group_depth > 0 ? emucclSuccess : run_group();
}

}  // extern "C"
