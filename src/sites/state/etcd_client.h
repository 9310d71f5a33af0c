// etcd as far as a coordinator needs it, over its JSON gateway (POST /v3/...): one request goes to
// the member that answered last, and to each of the others in turn while one is down, has lost the
// leader or does not answer in time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "sites/http/http_client.h"

namespace pelago::sites {

struct EtcdOptions {
  std::vector<std::string> members;  // "http://HOST:PORT"
  std::string prefix;                // "/pelago/run": every key begins with it
  std::filesystem::path certs_dir;   // of https: ca.pem, client.pem, client.key
  double member_s = 1;  // for one member's answer: a write to three members over 300 ms takes 0.7
  double call_s = 3;    // for all of them; the coordinator hears nobody meanwhile
  // A coordinator silent for so long has lost its seat. etcd grants no less than 1.5 elections: 2
  // s.
  int64_t lease_s = 3;
};

/// "etcd://HOST:PORT[,HOST:PORT...]/PREFIX", or etcds:// for TLS. certs_dir: see HttpOptions.
/// Throws Failure (exit 2) naming what is wrong.
EtcdOptions parse_etcd_url(const std::string& url, const std::filesystem::path& certs_dir);

class EtcdClient {
 public:
  explicit EtcdClient(const EtcdOptions& options);

  /// path: "kv/txn". kUnavailable: no member answers, or those that do have no quorum; the request
  /// may have been carried out all the same, or may be later. kRefused: etcd says no, in its words.
  Result<nlohmann::json> call(const std::string& path, const nlohmann::json& request);

 private:
  std::vector<std::string> members_;
  double call_s_;
  size_t member_idx_ = 0;  // that answered last
  HttpClient http_;
};

/// Keys and values travel in base64.
std::string to_base64(std::string_view bytes);
/// Empty if it is none.
std::string from_base64(std::string_view text);

}  // namespace pelago::sites
