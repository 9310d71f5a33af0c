// The collective library of emulated chips: what NCCL is to NVIDIA's. Its C symbols have NCCL's
// shape and numbers (nccl.h of NVIDIA/nccl), so that whoever opens a vendor's library by dlopen
// opens this one by the same way. Ranks are processes, or threads, of one machine.
//
// Sums are added in rank order, in f32 (f64 for f64), and rounded once: every rank gets the same
// bits. A call returns when its result lies in memory; a stream is not a queue here but tells of
// the chips' clocks: null, or the address of a double that holds the time (as CLOCK_MONOTONIC, in
// seconds) at which what the call reads is ready on the chip, and receives the one at which its
// result is. It lives until the call, or the group it stands in, has ended.
//
// Nothing waits for ever: a rank whose process ended is found within a second, a silent one after
// timeout_s. Both end the communicator for all ranks, and emucclGetLastError names the rank.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define EMUCCL_EXPORT __attribute__((visibility("default")))

extern "C" {

struct emucclComm;
using emucclComm_t = emucclComm*;

constexpr size_t kEmucclUniqueIdBytes = 128;
struct emucclUniqueId {
  char internal[kEmucclUniqueIdBytes];
};

enum emucclResult_t : int32_t {
  emucclSuccess = 0,
  emucclSystemError = 2,      // the kernel refused something
  emucclInternalError = 3,    // a bug of this library
  emucclInvalidArgument = 4,  // of one rank
  emucclInvalidUsage = 5,     // ranks disagree, or the communicator has ended
  emucclRemoteError = 6,      // another rank is gone or silent
};

enum emucclRedOp_t : int32_t { emucclSum = 0, emucclMax = 2 };

enum emucclDataType_t : int32_t {
  emucclUint8 = 1,
  emucclFloat16 = 6,
  emucclFloat32 = 7,
  emucclFloat64 = 8,
  emucclBfloat16 = 9,
};

/// What the emulated chips' clocks are charged for. All zero: nothing.
struct emucclConfig {
  uint32_t struct_bytes = sizeof(emucclConfig);
  int32_t is_mesh = 0;           // every pair has a link of its own: one hop instead of a ring's
  double timeout_s = 120;        // the longest silence that is not yet a failure
  double group_bytes_per_s = 0;  // that a rank sends to all others of the group together
  double pair_bytes_per_s = 0;   // that a rank sends to one other
  double latency_s = 0;          // of one hop
};

EMUCCL_EXPORT emucclResult_t emucclGetVersion(int* version);
/// Called by one rank; the others get the bytes by other means. Belongs to this process, which
/// lives until all ranks have joined.
EMUCCL_EXPORT emucclResult_t emucclGetUniqueId(emucclUniqueId* id);
/// All ranks call it, and wait for one another.
EMUCCL_EXPORT emucclResult_t emucclCommInitRank(emucclComm_t* comm,
                                                int num_ranks,
                                                emucclUniqueId id,
                                                int rank);
EMUCCL_EXPORT emucclResult_t emucclCommInitRankConfig(
    emucclComm_t* comm, int num_ranks, emucclUniqueId id, int rank, const emucclConfig* config);
EMUCCL_EXPORT emucclResult_t emucclCommDestroy(emucclComm_t comm);
/// As Destroy, and lets ranks that wait for this one fail at once.
EMUCCL_EXPORT emucclResult_t emucclCommAbort(emucclComm_t comm);
EMUCCL_EXPORT const char* emucclGetErrorString(emucclResult_t result);
/// One line about what went wrong last on this communicator; null: on this thread without one.
EMUCCL_EXPORT const char* emucclGetLastError(emucclComm_t comm);

/// send: [count]; receive: [count], may be send.
EMUCCL_EXPORT emucclResult_t emucclAllReduce(const void* send,
                                             void* receive,
                                             size_t count,
                                             emucclDataType_t dtype,
                                             emucclRedOp_t op,
                                             emucclComm_t comm,
                                             void* stream);
/// send: [num_ranks, count]; receive: [count], may be this rank's row of send.
EMUCCL_EXPORT emucclResult_t emucclReduceScatter(const void* send,
                                                 void* receive,
                                                 size_t count,
                                                 emucclDataType_t dtype,
                                                 emucclRedOp_t op,
                                                 emucclComm_t comm,
                                                 void* stream);
/// send: [count], may be this rank's row of receive; receive: [num_ranks, count].
EMUCCL_EXPORT emucclResult_t emucclAllGather(const void* send,
                                             void* receive,
                                             size_t count,
                                             emucclDataType_t dtype,
                                             emucclComm_t comm,
                                             void* stream);
/// send: [count], read on root only; receive: [count], may be send.
EMUCCL_EXPORT emucclResult_t emucclBroadcast(const void* send,
                                             void* receive,
                                             size_t count,
                                             emucclDataType_t dtype,
                                             int root,
                                             emucclComm_t comm,
                                             void* stream);
/// Outside a group, waits for the other rank. Messages of a pair arrive in order.
EMUCCL_EXPORT emucclResult_t emucclSend(const void* send,
                                        size_t count,
                                        emucclDataType_t dtype,
                                        int to_rank,
                                        emucclComm_t comm,
                                        void* stream);
EMUCCL_EXPORT emucclResult_t emucclRecv(void* receive,
                                        size_t count,
                                        emucclDataType_t dtype,
                                        int from_rank,
                                        emucclComm_t comm,
                                        void* stream);
/// Messages between the two calls of one thread go together, so that ranks may swap. Collectives
/// inside a group run at once.
EMUCCL_EXPORT emucclResult_t emucclGroupStart();
EMUCCL_EXPORT emucclResult_t emucclGroupEnd();

}  // extern "C"
