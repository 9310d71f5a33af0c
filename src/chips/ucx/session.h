// A worker's connections to the other workers of its site, over UCX tag messages.
//
// Waiting does not burn the processor, because several emulated chips share few cores: a wait polls
// for kPollSeconds, long enough to catch a peer that answers at once, and then sleeps on UCX's
// event file until something arrives.
//
// A lost peer is found in two ways: UCX reports a broken connection, or a peer stays silent for
// timeout_s. Both end in a Failure that names the rank. After it the session is closed for good:
// nothing is under way any more that could write to the memory of a caller who has gone.
#pragma once

#include <ucp/api/ucp.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <unordered_set>
#include <vector>

#include "chips/collective.h"
#include "chips/ucx/rendezvous.h"

namespace pelago::chips {

/// One message under way; belongs to the Session that made it. Wait for it exactly once.
struct PendingMessage {
  void* request = nullptr;    // null: complete already
  int peer = 0;               // the other rank
  size_t expected_bytes = 0;  // a receive; 0 for a send
  size_t received_bytes = 0;  // a receive, once complete
  bool is_receive = false;
  bool may_be_shorter = false;  // a receive: expected_bytes are the most
};

class UcxSession {
 public:
  /// Connects to every other rank. Throws Failure if one does not come within timeout_s, or if
  /// gives_up, asked meanwhile, says that to wait is of no use.
  explicit UcxSession(const CollectiveOptions& options, std::function<bool()> gives_up = {});
  UcxSession(const UcxSession&) = delete;
  UcxSession& operator=(const UcxSession&) = delete;
  ~UcxSession();

  int rank() const { return options_.rank; }
  int num_ranks() const { return options_.num_ranks; }

  /// Messages of one sender and tag arrive in the order they were sent. The memory must live until
  /// wait() returned or threw. tag: the lowest 48 bits are the caller's.
  PendingMessage post_send(std::span<const std::byte> bytes, int to_rank, uint64_t tag);
  PendingMessage post_receive(std::span<std::byte> bytes, int from_rank, uint64_t tag);
  /// A message of bytes.size() or fewer; received_bytes says how many once is_done().
  PendingMessage post_receive_up_to(std::span<std::byte> bytes, int from_rank, uint64_t tag);

  /// Throws Failure naming the rank if the peer is gone, silent for timeout_s, or sent another
  /// number of bytes than was expected.
  void wait(PendingMessage& message);
  void wait_all(std::span<PendingMessage> messages);

  /// For a thread that watches many messages at once, each until is_done() was true or threw.
  /// Throws as wait() does, but for silence, which only the caller can tell from patience.
  bool is_done(PendingMessage& message);
  /// Lets UCX work. Returns false if there was nothing to do.
  bool progress();
  /// Sleeps until something arrives, the other file can be read (-1: none), or longest_s is over.
  void nap(double longest_s, int other_fd = -1);
  /// Closes the session for good and throws the Failure that names the rank.
  [[noreturn]] void lose(int peer, const std::string& why);

 private:
  struct Endpoint {
    ucp_ep_h handle = nullptr;  // null for this rank itself
    bool is_broken = false;     // set by UCX's error handler
    bool may_read = false;      // the kernel lets us read that process's memory
  };
  static void on_endpoint_error(void* endpoint, ucp_ep_h handle, ucs_status_t status);

  void meet();
  void open_worker();
  void connect();
  RendezvousOptions rendezvous() const;
  bool is_complete(PendingMessage& message, ucs_status_t& status);
  void check_outcome(const PendingMessage& message, ucs_status_t status);
  void close_endpoints(bool flush);

  CollectiveOptions options_;
  std::function<bool()> gives_up_;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int event_fd_ = -1;
  std::vector<Endpoint> endpoints_;          // by rank; never resized, UCX holds pointers into it
  std::unordered_set<void*> open_requests_;  // given to UCX and not yet freed
  std::string failure_;                      // why the session is closed; empty while it is open
};

}  // namespace pelago::chips
