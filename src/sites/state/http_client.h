// One POST of JSON at a time over HTTP or HTTPS, within a bounded time: all that is asked of etcd's
// gateway.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "base/error.h"

namespace pelago::sites {

struct HttpOptions {
  std::filesystem::path certs_dir;  // ca.pem, client.pem, client.key; empty: as the system trusts
  double timeout_s = 2;             // for the whole answer; half of it to connect
};

struct HttpAnswer {
  long status = 0;  // 200, 503, ...
  std::string body;
};

/// Keeps its connections. One thread at a time.
class HttpClient {
 public:
  explicit HttpClient(const HttpOptions& options);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  /// kUnavailable: no answer, with the reason; whether the request was carried out is not known.
  /// kRefused: one of the certificates is not believed, or a file of them cannot be read.
  Result<HttpAnswer> post(const std::string& url, const std::string& body);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pelago::sites
