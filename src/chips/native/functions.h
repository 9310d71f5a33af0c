// The C functions of an opened library, by the shapes that facts.h tells of. Enumerations are ints
// in all of them.
#pragma once

#include <cstdint>
#include <string>

#include "chips/native/library.h"

namespace pelago::chips::native {

using Handle = void*;  // of a communicator or a queue

struct NcclUniqueId {
  char internal[128];
};

/// HcclSendRecvItem of hccl_types.h.
struct HcclItem {
  int32_t is_receive;
  void* address;
  uint64_t count;
  int32_t dtype;
  uint32_t peer;
};

/// emucclConfig of chips/emuccl/emuccl.h.
struct LinksConfig {
  uint32_t struct_bytes = sizeof(LinksConfig);
  int32_t is_mesh = 0;
  double timeout_s = 120;
  double group_bytes_per_s = 0;
  double pair_bytes_per_s = 0;
  double latency_s = 0;
};

using UniqueIdFunction = int (*)(void* id);
using NcclInitFunction = int (*)(Handle*, int num_ranks, NcclUniqueId id, int rank);
using LinksInitFunction =
    int (*)(Handle*, int num_ranks, NcclUniqueId id, int rank, const LinksConfig*);
using HcclInitFunction = int (*)(uint32_t num_ranks, const void* id, uint32_t rank, Handle*);
using CnclInitFunction = int (*)(
    Handle*, int num_handles, const int* devices, const int* ranks, int num_ranks, const void* id);
using HandleFunction = int (*)(Handle);
using CnclDestroyFunction = int (*)(Handle*, int num_handles);
using ReduceFunction =
    int (*)(const void* send, void* receive, size_t, int dtype, int op, Handle, Handle queue);
using GatherFunction =
    int (*)(const void* send, void* receive, size_t, int dtype, Handle, Handle queue);
using BroadcastFunction =
    int (*)(const void* send, void* receive, size_t, int dtype, int root, Handle, Handle queue);
using HcclBroadcastFunction =
    int (*)(void* memory, uint64_t, int dtype, uint32_t root, Handle, Handle queue);
using MessageFunction = int (*)(void* memory, size_t, int dtype, int peer, Handle, Handle queue);
using GroupFunction = int (*)();
using BatchFunction = int (*)(HcclItem*, uint32_t num_items, Handle, Handle queue);
using ErrorTextFunction = const char* (*)(int);
using LastErrorFunction = const char* (*)(Handle);
using CreateQueueFunction = int (*)(Handle*);

struct Library::Functions {
  const LibraryFacts* facts = nullptr;
  std::string path;  // the file that was opened
  // Where shapes differ, the pointer is cast to the one of facts->shape when it is called.
  UniqueIdFunction get_unique_id = nullptr;
  void* init = nullptr;
  LinksInitFunction init_with_links = nullptr;
  void* destroy = nullptr;
  HandleFunction abort = nullptr;
  ReduceFunction all_reduce = nullptr, reduce_scatter = nullptr;
  GatherFunction all_gather = nullptr;
  void* broadcast = nullptr;
  MessageFunction send = nullptr, receive = nullptr;
  GroupFunction group_start = nullptr, group_end = nullptr;
  BatchFunction batch_messages = nullptr;
  ErrorTextFunction error_text = nullptr;
  LastErrorFunction last_error = nullptr;
  CreateQueueFunction create_queue = nullptr;
  HandleFunction synchronize_queue = nullptr, destroy_queue = nullptr;

  /// Throws Failure with the library's own words unless the result is 0.
  void check(int result, const char* call, Handle comm, const CommunicatorOptions& options) const;
};

}  // namespace pelago::chips::native
