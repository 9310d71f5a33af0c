// One request at a time over HTTP or HTTPS, and its answer, within bounded time and memory: what is
// asked of etcd's gateway and of a store of checkpoints. Amazon's signature (version 4) is made by
// libcurl itself.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"

namespace pelago::sites {

struct HttpOptions {
  std::filesystem::path certs_dir;  // ca.pem, client.pem, client.key; empty: as the system trusts
  double connect_s = 1;
  double timeout_s = 2;  // for the whole answer; 0: as long as something comes
  double stall_s = 0;    // slower than 1 kB/s for so long is broken; 0: never
  // The proxy of the environment. One for web pages has no business between members of a cluster.
  bool uses_proxy = false;
  size_t answer_bytes_max = 256 << 20;  // a whole state: etcd holds 2 GB at most
  /// Asked now and then while an answer is awaited; true gives it up. Empty: never.
  std::function<bool()> is_stopped = {};
};

/// Who signs a request to an S3 store.
struct AwsSigner {
  std::string region, access_key, secret_key;
};

struct HttpRequest {
  std::string method = "GET";
  std::string url;
  std::span<const std::byte> body = {};   // of PUT and POST
  std::vector<std::string> headers = {};  // "Name: value"
  std::optional<AwsSigner> signer = {};
};

struct HttpAnswer {
  long status = 0;  // 200, 503, ...
  std::string body;
  std::string etag;  // changes when the object does; empty: it was not told
};

/// Keeps its connections. One thread at a time.
class HttpClient {
 public:
  explicit HttpClient(HttpOptions options);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  /// kUnavailable: no answer, with the reason; whether the request was carried out is not known.
  /// kRefused: one of the certificates is not believed, or a file of them cannot be read. The
  /// reason names no secret.
  Result<HttpAnswer> send(const HttpRequest& request);

 private:
  struct Wire;
  void prepare(const HttpRequest& request);
  void sign(const AwsSigner& signer);
  void show_certificates();

  HttpOptions options_;
  std::unique_ptr<Wire> wire_;
};

}  // namespace pelago::sites
