// Sources, as of 2026-11 (public repositories on GitHub):
//   nccl   NVIDIA/nccl src/nccl.h.in (2.28): ncclUniqueId of 128 bytes, types 6 to 9, sum 0, max 2.
//   rccl   ROCm/rccl src/nccl.h.in: NCCL's names and numbers in librccl.so.1.
//   mccl   MetaX: flagos-ai/FlagCX flagcx/adaptor/ccl/mccl_adaptor.cc, and the mccl.h that names
//          mcclUniqueId and mcStream_t; NCCL's shape and numbers.
//   mccl   Moore Threads: FlagCX flagcx/adaptor/ccl/musa_mccl_adaptor.cc passes NCCL's numbers on.
//   hccl   hccl_types.h and hccl.h of CANN (HCCL_ROOT_INFO_BYTES 4108, FP16 3, FP32 4, UINT8 7,
//          FP64 10, BFP16 11, MAX 2; HcclSendRecvItem); calls as in FlagCX hccl_adaptor.cc.
//   cncl   Cambricon cncl.h 1.25 (CNCL_CLIQUE_ID_BYTES_SIZE 128 and a 64-bit hash; half 0x10,
//          bfloat16 0x11, float 0x12, uint8 0x30, no f64); calls as in FlagCX cncl_adaptor.cc.
#include "chips/native/facts.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace pelago::chips::native {
namespace {

//                                                  f32  f64  f16  bf16 byte
constexpr std::array<int, kNumValueTypes> kNcclTypes = {7, 8, 6, 9, 1};
constexpr std::array<int, kNumValueTypes> kHcclTypes = {4, 10, 3, 11, 7};
constexpr std::array<int, kNumValueTypes> kCnclTypes = {0x12, kNoType, 0x10, 0x11, 0x30};

constexpr Symbols kNcclSymbols = {.get_unique_id = "ncclGetUniqueId",
                                  .init = "ncclCommInitRank",
                                  .destroy = "ncclCommDestroy",
                                  .abort = "ncclCommAbort",
                                  .all_reduce = "ncclAllReduce",
                                  .reduce_scatter = "ncclReduceScatter",
                                  .all_gather = "ncclAllGather",
                                  .broadcast = "ncclBroadcast",
                                  .send = "ncclSend",
                                  .receive = "ncclRecv",
                                  .group_start = "ncclGroupStart",
                                  .group_end = "ncclGroupEnd",
                                  .error_text = "ncclGetErrorString"};

constexpr Symbols kMcclSymbols = {.get_unique_id = "mcclGetUniqueId",
                                  .init = "mcclCommInitRank",
                                  .destroy = "mcclCommDestroy",
                                  .abort = "mcclCommAbort",
                                  .all_reduce = "mcclAllReduce",
                                  .reduce_scatter = "mcclReduceScatter",
                                  .all_gather = "mcclAllGather",
                                  .broadcast = "mcclBroadcast",
                                  .send = "mcclSend",
                                  .receive = "mcclRecv",
                                  .group_start = "mcclGroupStart",
                                  .group_end = "mcclGroupEnd",
                                  .error_text = "mcclGetErrorString"};

constexpr Symbols kHcclSymbols = {.get_unique_id = "HcclGetRootInfo",
                                  .init = "HcclCommInitRootInfo",
                                  .destroy = "HcclCommDestroy",
                                  .all_reduce = "HcclAllReduce",
                                  .reduce_scatter = "HcclReduceScatter",
                                  .all_gather = "HcclAllGather",
                                  .broadcast = "HcclBroadcast",
                                  .send = "HcclSend",
                                  .receive = "HcclRecv",
                                  .batch_messages = "HcclBatchSendRecv",
                                  .error_text = "HcclGetErrorString"};

constexpr Symbols kCnclSymbols = {.get_unique_id = "cnclGetCliqueId",
                                  .init = "cnclInitComms",
                                  .destroy = "cnclDestroyComms",
                                  .abort = "cnclAbortComm",
                                  .all_reduce = "cnclAllReduce",
                                  .reduce_scatter = "cnclReduceScatter",
                                  .all_gather = "cnclAllGather",
                                  .broadcast = "cnclBroadcast",
                                  .send = "cnclSend",
                                  .receive = "cnclRecv",
                                  .group_start = "cnclGroupStart",
                                  .group_end = "cnclGroupEnd",
                                  .error_text = "cnclGetErrorStr"};

constexpr Symbols kEmucclSymbols = {.get_unique_id = "emucclGetUniqueId",
                                    .init = "emucclCommInitRank",
                                    .init_with_links = "emucclCommInitRankConfig",
                                    .destroy = "emucclCommDestroy",
                                    .abort = "emucclCommAbort",
                                    .all_reduce = "emucclAllReduce",
                                    .reduce_scatter = "emucclReduceScatter",
                                    .all_gather = "emucclAllGather",
                                    .broadcast = "emucclBroadcast",
                                    .send = "emucclSend",
                                    .receive = "emucclRecv",
                                    .group_start = "emucclGroupStart",
                                    .group_end = "emucclGroupEnd",
                                    .error_text = "emucclGetErrorString",
                                    .last_error = "emucclGetLastError"};

const std::vector<LibraryFacts>& table() {
  static const std::vector<LibraryFacts> libraries = {
      {.name = "nccl",
       .files = {"libnccl.so.2", "libnccl.so"},
       .how_to_get = "install NCCL 2 (package libnccl2) or add its folder to LD_LIBRARY_PATH",
       .symbols = kNcclSymbols,
       .dtypes = kNcclTypes},
      {.name = "rccl",
       .files = {"librccl.so.1", "librccl.so"},
       .how_to_get = "install RCCL (package rccl of ROCm) or add ROCm's lib to LD_LIBRARY_PATH",
       .symbols = kNcclSymbols,
       .dtypes = kNcclTypes},
      {.name = "hccl",
       .files = {"libhccl.so"},
       .how_to_get = "install CANN and source its set_env.sh",
       .shape = Shape::kHccl,
       .unique_id_bytes = 4108,
       .symbols = kHcclSymbols,
       .dtypes = kHcclTypes,
       .queue = {.files = {"libascendcl.so"},
                 .create = "aclrtCreateStream",
                 .synchronize = "aclrtSynchronizeStream",
                 .destroy = "aclrtDestroyStream"}},
      {.name = "cncl",
       .files = {"libcncl.so.1", "libcncl.so"},
       .how_to_get = "install CNCL of CNToolkit and add $NEUWARE_HOME/lib64 to LD_LIBRARY_PATH",
       .shape = Shape::kCncl,
       .unique_id_bytes = 136,
       .symbols = kCnclSymbols,
       .dtypes = kCnclTypes,
       .queue = {.files = {"libcnrt.so"},
                 .create = "cnrtQueueCreate",
                 .synchronize = "cnrtQueueSync",
                 .destroy = "cnrtQueueDestroy"}},
      {.name = "mccl-metax",
       .files = {"libmccl.so"},
       .how_to_get = "install MetaX's MACA SDK and add its lib to LD_LIBRARY_PATH",
       .symbols = kMcclSymbols,
       .dtypes = kNcclTypes},
      {.name = "mccl-mthreads",
       .files = {"libmccl.so.2", "libmccl.so"},
       .how_to_get = "install Moore Threads' MUSA SDK and add its lib to LD_LIBRARY_PATH",
       .symbols = kMcclSymbols,
       .dtypes = kNcclTypes},
      {.name = "emuccl",
       .files = {"libpelago_emuccl.so"},
       .how_to_get = "build the target pelago_emuccl and leave it beside the program",
       .symbols = kEmucclSymbols,
       .dtypes = kNcclTypes,
       .reads_host_memory = true,
       .sums_16bit_in_f32 = true},
  };
  return libraries;
}

}  // namespace

std::string_view name_of(ValueType type) {
  constexpr std::string_view kNames[kNumValueTypes] = {"f32", "f64", "f16", "bf16", "byte"};
  return kNames[static_cast<size_t>(type)];
}

size_t bytes_of(ValueType type) {
  constexpr size_t kBytes[kNumValueTypes] = {4, 8, 2, 2, 1};
  return kBytes[static_cast<size_t>(type)];
}

std::span<const LibraryFacts> all_libraries() { return table(); }

const LibraryFacts& find_library(std::string_view name) {
  const auto found = std::ranges::find(table(), name, &LibraryFacts::name);
  if (found != table().end()) return *found;
  std::string known;
  for (const LibraryFacts& facts : table()) {
    known += (known.empty() ? "" : ", ") + std::string(facts.name);
  }
  fail_usage("{} is no collective library that pelago knows; write one of {}", name, known);
}

}  // namespace pelago::chips::native
