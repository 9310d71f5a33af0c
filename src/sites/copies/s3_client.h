// Objects of one bucket, over HTTP with Amazon's signature (version 4, made by libcurl). Whatever
// may pass (no connection, a slow or broken one, "slow down", 5xx) is tried again with growing
// pauses; large objects go up in parts, so that a try repeats 16 MiB and not everything.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "sites/copies/s3_place.h"
#include "sites/http/http_client.h"

namespace pelago::sites {

struct S3Options {
  S3Place place;
  S3Account account;
  int num_tries = 7;           // with the pauses below: a minute
  double first_pause_s = 0.5;  // doubled each time, and drawn between half and all of it
  double pause_max_s = 20;
  double connect_s = 10;
  double stall_s = 30;           // slower than 1 kB/s for so long is broken
  size_t part_bytes = 16 << 20;  // the protocol asks for 5 MiB at least, and 10,000 parts at most
};

struct S3Object {
  std::string bytes;
  std::string etag;  // changes when the object does
};

class S3Client {
 public:
  /// is_stopped: asked before each try and during pauses; then everything ends as kUnavailable.
  explicit S3Client(
      S3Options options, std::function<bool()> is_stopped = [] { return false; });

  // All: kUnavailable after the last try; kRefused with the store's reason (credentials, no such
  // bucket). Messages name bucket and key, never a secret.

  /// Nothing if there is no such object.
  Result<std::optional<S3Object>> get(const std::string& key);
  /// [begin, begin + num_bytes) of an object. kCorrupt if the store sends another number of bytes.
  Result<std::string> get_range(const std::string& key, int64_t begin, int64_t num_bytes);
  /// Small or large.
  Status put(const std::string& key, std::span<const std::byte> bytes);
  /// Only if the object still has this etag; empty: only if there is none. False if another was
  /// faster. Tried again after a break it may say so of this very writing: look.
  Result<bool> put_if(const std::string& key, const std::string& bytes, const std::string& etag);
  /// An object that is not there is removed already.
  Status remove(const std::string& key);

  int64_t num_retries() const { return num_retries_; }

 private:
  struct Request {
    std::string method, key, query;
    std::span<const std::byte> body = {};
    std::vector<std::string> headers = {};  // "Name: value"
  };
  Result<HttpAnswer> perform(const Request& request);
  Result<HttpAnswer> try_once(const Request& request);
  bool pause(int num_failed);
  Error refusal(const Request& request, const HttpAnswer& answer) const;
  Status put_parts(const std::string& key, std::span<const std::byte> bytes);
  Result<std::string> put_part(const std::string& key,
                               const std::string& upload,
                               size_t number,
                               std::span<const std::byte> bytes);

  S3Options options_;
  std::function<bool()> is_stopped_;
  HttpClient http_;
  Rng chance_;  // of the pauses
  std::atomic<int64_t> num_retries_ = 0;
};

}  // namespace pelago::sites
