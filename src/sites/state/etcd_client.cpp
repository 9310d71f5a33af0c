#include "sites/state/etcd_client.h"

#include <array>
#include <nlohmann/json.hpp>

#include "base/clock.h"

namespace pelago::sites {

using nlohmann::json;

namespace {

constexpr std::string_view kAlphabet =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

// gRPC's numbers: DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED (the quota: a person must make room),
// INTERNAL, UNAVAILABLE (no leader, leader changed, timed out). Another member or time may help.
bool may_pass(int code) { return code == 4 || code == 8 || code == 13 || code == 14; }

Result<json> read_answer(const std::string& member, const HttpAnswer& answer) {
  const json body = json::parse(answer.body, nullptr, /*allow_exceptions=*/false);
  if (answer.status == 200 && body.is_object() && !body.contains("error")) return body;
  if (!body.is_object()) {
    return Error{ErrorCode::kUnavailable,
                 fmt::format("{}: answers {} and no JSON; is it etcd?", member, answer.status)};
  }
  const int code = body.value("code", 14);
  const json& error = body.contains("error") ? body.at("error") : json();
  const std::string words = error.is_string() ? error.get<std::string>() : error.dump();
  return Error{may_pass(code) ? ErrorCode::kUnavailable : ErrorCode::kRefused,
               fmt::format("{}: {}", member, words)};
}

Result<json> no_answer(const std::string& member, const Error& why) {
  return Error{why.code, fmt::format("{}: {}", member, why.message)};
}

}  // namespace

EtcdOptions parse_etcd_url(const std::string& url, const std::filesystem::path& certs_dir) {
  const auto refuse = [&](const char* why) {
    fail_usage("--state {}: {}; write etcd://HOST:PORT[,HOST:PORT...]/PREFIX, or etcds:// for TLS",
               url,
               why);
  };
  EtcdOptions options;
  options.certs_dir = certs_dir;
  const size_t scheme_end = url.find("://");
  const std::string scheme = url.substr(0, std::min(scheme_end, url.size()));
  if (scheme_end == std::string::npos || (scheme != "etcd" && scheme != "etcds")) {
    refuse("is of no kind known");
  }
  if (scheme == "etcd" && !certs_dir.empty()) refuse("certificates are for etcds://");
  const std::string rest = url.substr(scheme_end + 3);
  const size_t slash = rest.find('/');
  if (slash == std::string::npos || slash + 1 >= rest.size()) refuse("has no prefix");
  options.prefix = rest.substr(slash);
  while (options.prefix.back() == '/') options.prefix.pop_back();
  if (options.prefix.empty()) refuse("has no prefix");
  const std::string hosts = rest.substr(0, slash) + ",";
  for (size_t begin = 0; begin < hosts.size();) {
    const size_t end = hosts.find(',', begin);
    const std::string host = hosts.substr(begin, end - begin);
    const size_t colon = host.rfind(':');
    const bool has_port = colon != std::string::npos && colon > 0 && colon + 1 < host.size() &&
                          host.find_first_not_of("0123456789", colon + 1) == std::string::npos;
    if (!has_port) refuse("has a member without a port");
    options.members.push_back((scheme == "etcds" ? "https://" : "http://") + host);
    begin = end + 1;
  }
  return options;
}

EtcdClient::EtcdClient(const EtcdOptions& options)
    : members_(options.members),
      call_s_(options.call_s),
      http_({.certs_dir = options.certs_dir,
             .connect_s = options.member_s / 2,
             .timeout_s = options.member_s}) {
  PELAGO_ASSERT(!members_.empty(), "an address has a member");
}

Result<json> EtcdClient::call(const std::string& path, const json& request) {
  const double deadline_s = steady_now_s() + call_s_;
  const std::string body = request.dump();
  Error last{ErrorCode::kUnavailable, ""};
  for (size_t i = 0; i < members_.size() && (i == 0 || steady_now_s() < deadline_s); ++i) {
    const std::string& member = members_[member_idx_];
    const Result<HttpAnswer> answer = http_.send({.method = "POST",
                                                  .url = member + "/v3/" + path,
                                                  .body = std::as_bytes(std::span(body)),
                                                  .headers = {"Content-Type: application/json"}});
    const Result<json> content =
        answer ? read_answer(member, *answer) : no_answer(member, answer.error());
    if (content || content.error().code == ErrorCode::kRefused) return content;
    last = content.error();
    member_idx_ = (member_idx_ + 1) % members_.size();
  }
  return last;
}

std::string to_base64(std::string_view bytes) {
  std::string text;
  for (size_t at = 0; at < bytes.size(); at += 3) {
    uint32_t group = 0;
    const size_t num_bytes = std::min<size_t>(3, bytes.size() - at);
    for (size_t i = 0; i < 3; ++i) {
      group = group << 8U | (i < num_bytes ? static_cast<unsigned char>(bytes[at + i]) : 0U);
    }
    for (size_t i = 0; i < 4; ++i) {
      text += i <= num_bytes ? kAlphabet[group >> (18 - 6 * i) & 63U] : '=';
    }
  }
  return text;
}

std::string from_base64(std::string_view text) {
  std::string bytes;
  uint32_t group = 0;
  int num_bits = 0;
  for (const char c : text) {
    if (c == '=') break;
    const size_t value = kAlphabet.find(c);
    if (value == std::string_view::npos) return "";
    group = (group << 6U | static_cast<uint32_t>(value)) & 0xffffffU;
    num_bits += 6;
    if (num_bits < 8) continue;
    num_bits -= 8;
    bytes += static_cast<char>(group >> static_cast<unsigned>(num_bits) & 255U);
  }
  return bytes;
}

}  // namespace pelago::sites
