// Who may ask, and how much: API keys from a file, each with a bound on requests and tokens a
// minute and on requests at once.
//
//   [[key]]
//   name = "lab"            # what logs and metrics call it
//   key = "sk-..."          # at least 16 characters
//   requests_per_minute = 600
//   tokens_per_minute = 0   # 0: no bound
//   concurrent = 32
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pelago::serve {

struct ApiKey {
  std::string name;
  std::string key;
  int64_t requests_per_minute = 0;  // 0: no bound, since the engine's queue has one
  int64_t tokens_per_minute = 0;    // 0: no bound; prompt and answer
  int64_t concurrent = 0;           // 0: no bound; requests at once
};

/// Reads the file above. Throws Failure (exit 2) naming file, key and field.
std::vector<ApiKey> read_key_file(const std::filesystem::path& path);

class KeyRing {
 public:
  /// No keys: everybody may ask, under the name "".
  explicit KeyRing(std::vector<ApiKey> keys);
  ~KeyRing();

  /// One request's permission; gives its place back when it is let go.
  class Lease {
   public:
    Lease(KeyRing& ring, size_t idx) : ring_(ring), idx_(idx) {}
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease();
    const std::string& name() const;
    /// Tokens that the request took, once it is over.
    void charge(int64_t num_tokens);

   private:
    KeyRing& ring_;  // outlives this
    size_t idx_;
  };
  struct Refusal {
    int status = 401;  // or 429
    std::string message, code;
    double retry_after_s = 0;
  };
  /// authorization: the header "Bearer KEY". Returns a lease, or null and why. now_s: monotonic.
  /// shared: owners are the request's handler and its answer.
  std::shared_ptr<Lease> admit(std::optional<std::string_view> authorization,
                               double now_s,
                               Refusal& refusal);
  /// Whether the header names a key; costs nothing of its bounds.
  bool knows(std::optional<std::string_view> authorization) const;
  bool is_open() const { return keys_.empty(); }

 private:
  struct Use {
    double requests = 0, tokens = 0;  // what is left of a minute's
    double at_s = 0;                  // when that was
    bool is_new = true;
    int64_t num_running = 0;
  };
  std::optional<size_t> find(std::optional<std::string_view> authorization) const;
  const std::vector<ApiKey> keys_;
  std::mutex mutex_;  // guards uses_
  std::vector<Use> uses_;
};

}  // namespace pelago::serve
