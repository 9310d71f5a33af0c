#include "chips/ucx/session.h"

#include <poll.h>
#include <ucs/config/global_opts.h>
#include <ucs/debug/debug.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <csignal>
#include <cstdlib>

#include "base/clock.h"
#include "base/error.h"
#include "chips/ucx/direct_copy.h"

namespace pelago::chips {
namespace {

// Catches the answer of a peer that is on a core of its own; a sleep and a wake-up cost as much.
constexpr double kPollSeconds = 40e-6;
// UCX looks for dead peers only while it is being driven.
constexpr double kLongestNapSeconds = 0.1;
constexpr double kFlushSeconds = 2.0;    // the last messages of a healthy session
constexpr double kAbandonSeconds = 0.1;  // what is under way when a peer is lost
constexpr int kSenderShift = 48;         // the sender's rank stands in the 16 highest bits of a tag

void check(ucs_status_t status, const char* what) {
  if (status != UCS_OK) {
    fail("UCX cannot {}: {}; `ucx_info -d` lists the transports it finds",
         what,
         ucs_status_string(status));
  }
}

/// UCX catches crashes and SIGHUP and prints warnings on its own. A library must do neither. It
/// reads both settings from the environment when it is loaded, before any code of ours, so they are
/// set again: here, before main, so that a handler which the program installs itself stays in
/// place.
bool quieten_ucx() {
  for (const int signal_number : {SIGHUP, SIGILL, SIGBUS, SIGFPE, SIGSEGV}) {
    ucs_debug_disable_signal(signal_number);
  }
  if (std::getenv("UCX_LOG_LEVEL") == nullptr) ucs_global_opts_set_value("LOG_LEVEL", "fatal");
  ucs_global_opts_set_value("WARN_UNUSED_ENV_VARS", "n");
  return true;
}
[[maybe_unused]] const bool kUcxIsQuiet = quieten_ucx();

/// What the person set in the environment wins: only they know their cluster's network.
void set_default(ucp_config_t* config, const char* name, const char* value) {
  if (std::getenv((std::string("UCX_") + name).c_str()) != nullptr) return;
  check(ucp_config_modify(config, name, value), "be configured");
}

ucp_context_h open_context(bool may_read_neighbours) {
  ucp_config_t* config = nullptr;
  check(ucp_config_read(nullptr, nullptr, &config), "read its configuration");
  // Without posix and sysv: UCX gives no event when room appears in a full shared-memory queue, so
  // a sender that sleeps on events stalls (a 40 MB sum: 20 to 700 ms). Loopback TCP with direct
  // copies for large messages is steady (23 ms; 60 us for a few bytes).
  set_default(config, "TLS", may_read_neighbours ? "^posix,sysv" : "^posix,sysv,cma");
  set_default(config, "KEEPALIVE_INTERVAL", "1s");  // the default leaves a dead peer for 20 s
  ucp_params_t params = {};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP;
  params.name = "pelago";
  ucp_context_h context = nullptr;
  const ucs_status_t status = ucp_init(&params, config, &context);
  ucp_config_release(config);
  check(status, "start");
  return context;
}

}  // namespace

UcxSession::UcxSession(const CollectiveOptions& options, std::function<bool()> gives_up)
    : options_(options),
      gives_up_(std::move(gives_up)),
      endpoints_(static_cast<size_t>(options.num_ranks)) {
  try {
    meet();
    open_worker();
    connect();
  } catch (...) {
    close_endpoints(/*flush=*/false);
    if (worker_ != nullptr) ucp_worker_destroy(worker_);
    if (context_ != nullptr) ucp_cleanup(context_);
    throw;
  }
}

UcxSession::~UcxSession() {
  close_endpoints(/*flush=*/failure_.empty());
  ucp_worker_destroy(worker_);
  ucp_cleanup(context_);
}

RendezvousOptions UcxSession::rendezvous() const {
  return {.folder = options_.rendezvous_dir,
          .rank = rank(),
          .num_ranks = num_ranks(),
          .timeout_s = options_.timeout_s,
          .gives_up = gives_up_};
}

void UcxSession::meet() {
  const std::vector<std::string> memories =
      exchange_files(rendezvous(), "memory", describe_own_memory());
  for (int peer = 0; peer < num_ranks(); ++peer) {
    endpoints_[static_cast<size_t>(peer)].may_read =
        peer != rank() && can_read_memory_of(memories[static_cast<size_t>(peer)]);
  }
}

void UcxSession::open_worker() {
  context_ = open_context(std::ranges::any_of(endpoints_, &Endpoint::may_read));
  ucp_worker_params_t params = {};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;  // one thread at a time, not always the same
  check(ucp_worker_create(context_, &params, &worker_), "open a worker");
  check(ucp_worker_get_efd(worker_, &event_fd_), "offer an event file to wait on");
}

void UcxSession::connect() {
  ucp_address_t* address = nullptr;
  size_t address_bytes = 0;
  check(ucp_worker_get_address(worker_, &address, &address_bytes), "tell its address");
  const std::string own_address(reinterpret_cast<const char*>(address), address_bytes);
  ucp_worker_release_address(worker_, address);
  const std::vector<std::string> addresses = exchange_files(rendezvous(), "address", own_address);
  for (int peer = 0; peer < num_ranks(); ++peer) {
    if (peer == rank()) continue;
    Endpoint& endpoint = endpoints_[static_cast<size_t>(peer)];
    ucp_ep_params_t params = {};
    params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                        UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params.address =
        reinterpret_cast<const ucp_address_t*>(addresses[static_cast<size_t>(peer)].data());
    // UCX 1.13 makes no direct copies where it must survive a lost peer. It does survive one on the
    // same machine: the TCP connection beside the copies breaks, and the handler is called.
    params.err_mode = endpoint.may_read ? UCP_ERR_HANDLING_MODE_NONE : UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler = {.cb = on_endpoint_error, .arg = &endpoint};
    check(ucp_ep_create(worker_, &params, &endpoint.handle), "connect to a worker of this site");
  }
}

void UcxSession::on_endpoint_error(void* endpoint, ucp_ep_h, ucs_status_t) {
  static_cast<Endpoint*>(endpoint)->is_broken = true;
}

PendingMessage UcxSession::post_send(std::span<const std::byte> bytes, int to_rank, uint64_t tag) {
  if (!failure_.empty()) throw Failure(failure_);
  PELAGO_ASSERT(to_rank != rank() && to_rank >= 0 && to_rank < num_ranks(),
                "messages go to another rank of the site");
  ucp_request_param_t param = {};
  const uint64_t full_tag = (static_cast<uint64_t>(rank()) << kSenderShift) | tag;
  const ucs_status_ptr_t request = ucp_tag_send_nbx(endpoints_[static_cast<size_t>(to_rank)].handle,
                                                    bytes.data(),
                                                    bytes.size(),
                                                    full_tag,
                                                    &param);
  if (UCS_PTR_IS_ERR(request)) lose(to_rank, ucs_status_string(UCS_PTR_STATUS(request)));
  if (request != nullptr) open_requests_.insert(request);
  return {.request = request, .peer = to_rank};
}

PendingMessage UcxSession::post_receive(std::span<std::byte> bytes, int from_rank, uint64_t tag) {
  if (!failure_.empty()) throw Failure(failure_);
  PELAGO_ASSERT(from_rank != rank() && from_rank >= 0 && from_rank < num_ranks(),
                "messages come from another rank of the site");
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FLAG_NO_IMM_CMPL;  // so that wait() can ask for the length
  const uint64_t full_tag = (static_cast<uint64_t>(from_rank) << kSenderShift) | tag;
  const ucs_status_ptr_t request = ucp_tag_recv_nbx(
      worker_, bytes.data(), bytes.size(), full_tag, /*tag_mask=*/~uint64_t{0}, &param);
  if (UCS_PTR_IS_ERR(request)) lose(from_rank, ucs_status_string(UCS_PTR_STATUS(request)));
  open_requests_.insert(request);
  return {
      .request = request, .peer = from_rank, .expected_bytes = bytes.size(), .is_receive = true};
}

PendingMessage UcxSession::post_receive_up_to(std::span<std::byte> bytes,
                                              int from_rank,
                                              uint64_t tag) {
  PendingMessage message = post_receive(bytes, from_rank, tag);
  message.may_be_shorter = true;
  return message;
}

bool UcxSession::is_complete(PendingMessage& message, ucs_status_t& status) {
  status = UCS_OK;
  if (message.request == nullptr) return true;
  if (message.is_receive) {
    ucp_tag_recv_info_t info = {};
    status = ucp_tag_recv_request_test(message.request, &info);
    message.received_bytes = info.length;
  } else {
    status = ucp_request_check_status(message.request);
  }
  if (status == UCS_INPROGRESS) return false;
  open_requests_.erase(message.request);
  ucp_request_free(message.request);
  message.request = nullptr;
  return true;
}

void UcxSession::wait(PendingMessage& message) {
  if (!failure_.empty()) throw Failure(failure_);
  const double deadline_s = steady_now_s() + options_.timeout_s;
  double poll_until_s = deadline_s - options_.timeout_s + kPollSeconds;
  ucs_status_t status = UCS_OK;
  while (!is_complete(message, status)) {
    if (ucp_worker_progress(worker_) != 0) continue;
    if (endpoints_[static_cast<size_t>(message.peer)].is_broken) {
      if (is_complete(message, status)) break;  // its last words came before it went
      lose(message.peer, "its connection broke");
    }
    const double now_s = steady_now_s();
    if (now_s < poll_until_s) continue;
    if (now_s >= deadline_s) {
      lose(message.peer, fmt::format("it was silent for {} s", options_.timeout_s));
    }
    nap(std::min(deadline_s - now_s, kLongestNapSeconds));
    poll_until_s = steady_now_s() + kPollSeconds;
  }
  check_outcome(message, status);
}

bool UcxSession::is_done(PendingMessage& message) {
  if (!failure_.empty()) throw Failure(failure_);
  ucs_status_t status = UCS_OK;
  if (!is_complete(message, status)) {
    if (!endpoints_[static_cast<size_t>(message.peer)].is_broken) return false;
    while (progress()) {
    }
    if (!is_complete(message, status)) lose(message.peer, "its connection broke");
  }
  check_outcome(message, status);
  return true;
}

bool UcxSession::progress() { return ucp_worker_progress(worker_) != 0; }

void UcxSession::check_outcome(const PendingMessage& message, ucs_status_t status) {
  if (status != UCS_OK) lose(message.peer, ucs_status_string(status));
  if (message.is_receive && !message.may_be_shorter &&
      message.received_bytes != message.expected_bytes) {
    lose(message.peer,
         fmt::format("it sent {} bytes where {} were expected",
                     message.received_bytes,
                     message.expected_bytes));
  }
}

void UcxSession::wait_all(std::span<PendingMessage> messages) {
  for (PendingMessage& message : messages) wait(message);
}

void UcxSession::nap(double longest_s, int other_fd) {
  const ucs_status_t status = ucp_worker_arm(worker_);
  if (status == UCS_ERR_BUSY) return;  // something came while we looked away
  check(status, "wait for events");
  std::array<pollfd, 2> events = {pollfd{.fd = event_fd_, .events = POLLIN, .revents = 0},
                                  pollfd{.fd = other_fd, .events = POLLIN, .revents = 0}};
  const double seconds = std::floor(longest_s);
  const timespec longest = {.tv_sec = static_cast<time_t>(seconds),
                            .tv_nsec = static_cast<long>((longest_s - seconds) * 1e9)};
  ::ppoll(events.data(), events.size(), &longest, nullptr);  // passes over a file of -1
}

void UcxSession::lose(int peer, const std::string& why) {
  const int lost_rank = note_lost_rank(options_.rendezvous_dir, peer);
  if (lost_rank == peer || lost_rank == rank()) {
    failure_ = fmt::format(
        "rank {} of {} is lost: {}; restart the workers of this site", peer, num_ranks(), why);
  } else {
    failure_ =
        fmt::format("rank {} of {} is lost, and rank {} with it; restart the workers of this site",
                    lost_rank,
                    num_ranks(),
                    peer);
  }
  close_endpoints(/*flush=*/false);
  throw Failure(failure_);
}

void UcxSession::close_endpoints(bool flush) {
  for (void* request : open_requests_) ucp_request_cancel(worker_, request);
  for (Endpoint& endpoint : endpoints_) {
    if (endpoint.handle == nullptr) continue;
    ucp_request_param_t param = {};
    if (!flush || endpoint.is_broken) {
      param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
      param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    }
    const ucs_status_ptr_t request = ucp_ep_close_nbx(endpoint.handle, &param);
    endpoint.handle = nullptr;
    if (UCS_PTR_IS_PTR(request)) open_requests_.insert(request);
  }
  const double deadline_s = steady_now_s() + (flush ? kFlushSeconds : kAbandonSeconds);
  while (!open_requests_.empty() && steady_now_s() < deadline_s) {
    ucp_worker_progress(worker_);
    std::erase_if(open_requests_, [](void* request) {
      if (ucp_request_check_status(request) == UCS_INPROGRESS) return false;
      ucp_request_free(request);
      return true;
    });
  }
}

}  // namespace pelago::chips
