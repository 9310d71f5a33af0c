// Three kinds of error, one tool for each.
//   our bug                 PELAGO_ASSERT   logs and aborts, in release too
//   this job cannot go on   throw Failure   caught in main, at the top of a thread, in a handler
//   part of a healthy run   Result<T>       a peer gone, a deadline passed, no space
// Failure carries the exit code that main ends with, so that a shell script can tell wrong usage
// (the person must change something) from a failed job and from "try again".
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

namespace pelago {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitTryAgain =
    75;  // EX_TEMPFAIL of sysexits.h: Slurm and systemd requeue on it
inline constexpr int kExitInterrupted = 130;  // 128 + SIGINT, as shells have it: Ctrl-C, work lost

/// This job cannot go on. The message is one line: the thing, its value and the remedy.
class Failure : public std::runtime_error {
 public:
  explicit Failure(const std::string& message, int exit_code = kExitFailed)
      : std::runtime_error(message), exit_code_(exit_code) {}
  int exit_code() const { return exit_code_; }

 private:
  int exit_code_;
};

/// Throws Failure with exit code 1: the job met something it cannot work with.
template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Failure(fmt::format(format, std::forward<Args>(args)...), kExitFailed);
}

/// Throws Failure with exit code 2: the command, a config or a fleet must be written differently.
template <typename... Args>
[[noreturn]] void fail_usage(fmt::format_string<Args...> format, Args&&... args) {
  throw Failure(fmt::format(format, std::forward<Args>(args)...), kExitUsage);
}

/// One code for each different reaction of a caller, no more.
enum class ErrorCode {
  kUnavailable,  // the other end is gone or not there yet: try later, or do without it
  kTimeout,      // the deadline passed
  kNoSpace,      // memory, disk or pages are used up
  kRefused,      // the other end answered no: do not try again
  kCorrupt,      // the bytes are not what they claim to be: fetch them elsewhere
};

struct Error {
  ErrorCode code;
  std::string message;
};

/// A value or an Error, with the members of std::expected, which g++ 12 offers only in C++23 mode.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : content_(std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : content_(std::move(error)) {}  // NOLINT(google-explicit-constructor)
  bool has_value() const { return std::holds_alternative<T>(content_); }
  explicit operator bool() const { return has_value(); }
  T& value() { return std::get<T>(content_); }
  const T& value() const { return std::get<T>(content_); }
  T& operator*() { return value(); }
  const T& operator*() const { return value(); }
  T* operator->() { return &value(); }
  const Error& error() const { return std::get<Error>(content_); }

 private:
  std::variant<T, Error> content_;
};

/// Success without a value, or an Error.
using Status = Result<std::monostate>;
inline Status ok() { return std::monostate{}; }

[[noreturn]] inline void assertion_failed(const char* condition,
                                          const char* why,
                                          const char* file,
                                          int line) {
  std::fprintf(stderr, "bug at %s:%d: %s does not hold: %s\n", file, line, condition, why);
  std::abort();
}

}  // namespace pelago

/// An invariant of ours. On in release too: a process that dies is a case we handle, one that goes
/// on with wrong weights is not.
#define PELAGO_ASSERT(condition, why) \
  ((condition) ? void(0) : ::pelago::assertion_failed(#condition, why, __FILE__, __LINE__))
