// The calls of a communicator, in the shape of each library.
#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"
#include "chips/native/functions.h"
#include "chips/native/library.h"

namespace pelago::chips::native {

class LoadedCommunicator final : public Communicator {
 public:
  LoadedCommunicator(std::shared_ptr<const Library::Functions> functions,
                     std::span<const std::byte> unique_id,
                     const CommunicatorOptions& options)
      : functions_(std::move(functions)), options_(options) {
    if (functions_->create_queue != nullptr) {
      check(functions_->create_queue(&queue_), facts().queue.create);
    }
    try {
      init(unique_id);
    } catch (...) {
      if (queue_ != nullptr) functions_->destroy_queue(queue_);
      throw;
    }
  }
  LoadedCommunicator(const LoadedCommunicator&) = delete;
  LoadedCommunicator& operator=(const LoadedCommunicator&) = delete;

  ~LoadedCommunicator() override {
    if (has_failed_ && functions_->abort != nullptr) {
      functions_->abort(comm_);
    } else if (facts().shape == Shape::kCncl) {
      reinterpret_cast<CnclDestroyFunction>(functions_->destroy)(&comm_, 1);
    } else {
      reinterpret_cast<HandleFunction>(functions_->destroy)(comm_);
    }
    if (queue_ != nullptr) functions_->destroy_queue(queue_);
  }

  void all_reduce_sum(const void* send, void* receive, size_t count, ValueType type) override {
    check(functions_->all_reduce(send, receive, count, dtype(type), facts().sum, comm_, queue()),
          facts().symbols.all_reduce);
  }

  void reduce_scatter_sum(const void* send, void* receive, size_t count, ValueType type) override {
    check(
        functions_->reduce_scatter(send, receive, count, dtype(type), facts().sum, comm_, queue()),
        facts().symbols.reduce_scatter);
  }

  void all_gather(const void* send, void* receive, size_t count, ValueType type) override {
    check(functions_->all_gather(send, receive, count, dtype(type), comm_, queue()),
          facts().symbols.all_gather);
  }

  void broadcast(void* memory, size_t count, ValueType type, int from_rank) override {
    int result = 0;
    if (facts().shape == Shape::kHccl) {
      result = reinterpret_cast<HcclBroadcastFunction>(functions_->broadcast)(
          memory, count, dtype(type), static_cast<uint32_t>(from_rank), comm_, queue());
    } else {
      result = reinterpret_cast<BroadcastFunction>(functions_->broadcast)(
          memory, memory, count, dtype(type), from_rank, comm_, queue());
    }
    check(result, facts().symbols.broadcast);
  }

  void exchange(std::span<const Message> messages) override {
    if (messages.empty()) return;
    if (functions_->batch_messages != nullptr) return exchange_in_batch(messages);
    check(functions_->group_start(), facts().symbols.group_start);
    for (const Message& message : messages) {
      const auto call = message.is_send ? functions_->send : functions_->receive;
      check(call(message.address, message.count, dtype(message.type), message.peer, comm_, queue()),
            message.is_send ? facts().symbols.send : facts().symbols.receive);
    }
    check(functions_->group_end(), facts().symbols.group_end);
  }

  void set_time(double* time_s) override { time_s_ = time_s; }

  void finish() override {
    if (queue_ != nullptr) check(functions_->synchronize_queue(queue_), facts().queue.synchronize);
  }

 private:
  const LibraryFacts& facts() const { return *functions_->facts; }

  /// The library's own queue, the default one, or for emulated chips the time.
  Handle queue() const { return facts().reads_host_memory ? time_s_ : queue_; }

  void init(std::span<const std::byte> unique_id) {
    PELAGO_ASSERT(unique_id.size() == facts().unique_id_bytes,
                  "a unique id comes from the library that it is for");
    check(call_init(unique_id), facts().symbols.init);
  }

  int call_init(std::span<const std::byte> unique_id) {
    if (facts().shape == Shape::kHccl) {
      return reinterpret_cast<HcclInitFunction>(functions_->init)(
          static_cast<uint32_t>(options_.num_ranks),
          unique_id.data(),
          static_cast<uint32_t>(options_.rank),
          &comm_);
    }
    if (facts().shape == Shape::kCncl) {
      return reinterpret_cast<CnclInitFunction>(functions_->init)(
          &comm_, 1, &options_.device_idx, &options_.rank, options_.num_ranks, unique_id.data());
    }
    NcclUniqueId id;
    std::memcpy(id.internal, unique_id.data(), sizeof id.internal);
    if (functions_->init_with_links == nullptr) {
      return reinterpret_cast<NcclInitFunction>(functions_->init)(
          &comm_, options_.num_ranks, id, options_.rank);
    }
    const LinksConfig config = {.is_mesh = options_.links.is_mesh ? 1 : 0,
                                .timeout_s = options_.timeout_s,
                                .group_bytes_per_s = options_.links.group_bytes_per_s,
                                .pair_bytes_per_s = options_.links.pair_bytes_per_s,
                                .latency_s = options_.links.latency_s};
    return functions_->init_with_links(&comm_, options_.num_ranks, id, options_.rank, &config);
  }

  void exchange_in_batch(std::span<const Message> messages) {
    std::vector<HcclItem> items;
    for (const Message& message : messages) {
      items.push_back({.is_receive = message.is_send ? 0 : 1,
                       .address = message.address,
                       .count = message.count,
                       .dtype = dtype(message.type),
                       .peer = static_cast<uint32_t>(message.peer)});
    }
    check(functions_->batch_messages(
              items.data(), static_cast<uint32_t>(items.size()), comm_, queue()),
          facts().symbols.batch_messages);
  }

  int dtype(ValueType type) const {
    const int number = facts().dtypes[static_cast<size_t>(type)];
    if (number == kNoType) {
      fail("the collective library {} has no dtype {}: convert before, or reduce by UCX",
           facts().name,
           name_of(type));
    }
    return number;
  }

  void check(int result, const char* call) {
    if (result != 0) has_failed_ = true;
    functions_->check(result, call, comm_, options_);
  }

  std::shared_ptr<const Library::Functions> functions_;  // with the library, which may go first
  const CommunicatorOptions options_;
  Handle comm_ = nullptr;
  Handle queue_ = nullptr;    // of its own, or null: the default one
  double* time_s_ = nullptr;  // outlives the calls that it is set for
  bool has_failed_ = false;
};

std::unique_ptr<Communicator> Library::join(std::span<const std::byte> unique_id,
                                            const CommunicatorOptions& options) const {
  return std::make_unique<LoadedCommunicator>(functions_, unique_id, options);
}

}  // namespace pelago::chips::native
