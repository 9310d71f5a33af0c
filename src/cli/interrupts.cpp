// Blocking the signals and waiting for them would not do: libraries start threads before main(),
// which do not inherit the mask, and the kernel would hand the signal to one of those.
#include "cli/interrupts.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/error.h"

namespace pelago::cli {

namespace {

// A signal handler can reach nothing but a global.
std::atomic<int> descriptor_to_wake{-1};
static_assert(std::atomic<int>::is_always_lock_free);

void wake(int signal) {
  const int error_before = errno;
  const char byte = static_cast<char>(signal);
  [[maybe_unused]] const ssize_t put = ::write(descriptor_to_wake.load(), &byte, 1);
  errno = error_before;
}

// What a shell starts in the background ignores Ctrl-C, and goes on doing so.
void listen_to(int signal, struct sigaction& before) {
  ::sigaction(signal, nullptr, &before);
  if (before.sa_handler == SIG_IGN) return;
  struct sigaction action {};
  action.sa_handler = wake;
  action.sa_flags = SA_RESTART;
  ::sigaction(signal, &action, nullptr);
}

}  // namespace

Interrupts::Interrupts(std::function<void()> on_interrupt, std::function<void()> on_hangup)
    : on_interrupt_(std::move(on_interrupt)), on_hangup_(std::move(on_hangup)) {
  if (::pipe2(pipe_, O_CLOEXEC) != 0) fail("cannot make a pipe: {}", std::strerror(errno));
  descriptor_to_wake = pipe_[1];
  thread_ = std::jthread([this](const std::stop_token& stop) {
    char byte = 0;
    while (!stop.stop_requested()) {
      if (::read(pipe_[0], &byte, 1) != 1 || stop.stop_requested()) continue;
      byte == SIGHUP ? on_hangup_() : on_interrupt_();
    }
  });
  listen_to(SIGINT, before_interrupt_);
  listen_to(SIGTERM, before_terminate_);
  if (on_hangup_) listen_to(SIGHUP, before_hangup_);
}

Interrupts::~Interrupts() {
  ::sigaction(SIGINT, &before_interrupt_, nullptr);
  ::sigaction(SIGTERM, &before_terminate_, nullptr);
  if (on_hangup_) ::sigaction(SIGHUP, &before_hangup_, nullptr);
  thread_.request_stop();
  wake(0);
  thread_.join();
  descriptor_to_wake = -1;
  ::close(pipe_[0]);
  ::close(pipe_[1]);
}

void Interrupts::ignore_from_now() {
  struct sigaction ignoring {};
  ignoring.sa_handler = SIG_IGN;
  before_interrupt_ = before_terminate_ = ignoring;  // what is left behind
  ::sigaction(SIGINT, &ignoring, nullptr);
  ::sigaction(SIGTERM, &ignoring, nullptr);
}

void leave_interrupted(const char* what) {
  std::fprintf(stderr, "pelago: %s\n", what);
  ::_exit(kExitInterrupted);
}

}  // namespace pelago::cli
