#include "sites/copies/s3_server.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <utility>

namespace pelago::testing {

namespace {

std::string hex(const std::string& bytes) {
  std::string out;
  for (const char c : bytes) out += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return out;
}

std::string sha256(const std::string& text) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned num_bytes = 0;
  EVP_Digest(text.data(), text.size(), digest, &num_bytes, EVP_sha256(), nullptr);
  return {reinterpret_cast<char*>(digest), num_bytes};
}

std::string hmac(const std::string& key, const std::string& text) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned num_bytes = 0;
  HMAC(EVP_sha256(),
       key.data(),
       static_cast<int>(key.size()),
       reinterpret_cast<const unsigned char*>(text.data()),
       text.size(),
       digest,
       &num_bytes);
  return {reinterpret_cast<char*>(digest), num_bytes};
}

std::string between(const std::string& text, const std::string& begin, const std::string& end) {
  const size_t from = text.find(begin);
  if (from == std::string::npos) return "";
  const size_t to = text.find(end, from + begin.size());
  return text.substr(from + begin.size(), to == std::string::npos ? to : to - from - begin.size());
}

std::string small(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) {
    return static_cast<char>(std::tolower(c));
  });
  return text;
}

std::string etag_of(const std::string& bytes) {
  return "\"" + hex(sha256(bytes)).substr(0, 32) + "\"";
}

/// One of the next `count` requests: true for each until none is left.
bool take_one(std::atomic<int>& count) {
  int left = count;
  while (left > 0 && !count.compare_exchange_weak(left, left - 1)) {
  }
  return left > 0;
}

void send_all(int connection, const std::string& text) {
  size_t sent = 0;
  while (sent < text.size()) {
    const ssize_t now = ::send(connection, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (now <= 0) return;
    sent += static_cast<size_t>(now);
  }
}

}  // namespace

S3Server::S3Server() {
  listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address);
  ::listen(listener_, 16);
  socklen_t num_bytes = sizeof address;
  ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &num_bytes);
  port_ = ntohs(address.sin_port);
  acceptor_ = std::jthread([this](const std::stop_token& stop) { accept_all(stop); });
}

S3Server::~S3Server() {
  acceptor_.request_stop();
  acceptor_.join();
  connections_.clear();
  ::close(listener_);
}

std::string S3Server::endpoint() const { return fmt::format("http://127.0.0.1:{}", port_); }

std::map<std::string, std::string> S3Server::objects() const {
  const std::lock_guard lock(mutex_);
  return objects_;
}

void S3Server::set_object(const std::string& path, const std::string& bytes) {
  const std::lock_guard lock(mutex_);
  objects_[path] = bytes;
}

size_t S3Server::num_open_uploads() const {
  const std::lock_guard lock(mutex_);
  return uploads_.size();
}

void S3Server::before_condition(std::function<void()> intrude) {
  const std::lock_guard lock(mutex_);
  intrude_ = std::move(intrude);
}

void S3Server::accept_all(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    pollfd ready{.fd = listener_, .events = POLLIN, .revents = 0};
    if (::poll(&ready, 1, 10) <= 0) continue;
    const int connection = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (connection < 0) continue;
    const std::lock_guard lock(connections_mutex_);
    connections_.emplace_back(
        [this, connection](const std::stop_token& ended) { serve(connection, ended); });
  }
}

bool S3Server::read_request(int connection, const std::stop_token& stop, Request& request) const {
  std::string text;
  size_t head_end = std::string::npos, num_bytes = 0;
  while (head_end == std::string::npos || text.size() < head_end + 4 + num_bytes) {
    pollfd ready{.fd = connection, .events = POLLIN, .revents = 0};
    const int num_ready = ::poll(&ready, 1, 10);
    if (stop.stop_requested()) return false;
    if (num_ready == 0) continue;
    char part[65536];
    const ssize_t now = ::recv(connection, part, sizeof part, 0);
    if (now <= 0) return false;
    text.append(part, static_cast<size_t>(now));
    if (head_end != std::string::npos) continue;
    head_end = text.find("\r\n\r\n");
    if (head_end == std::string::npos) continue;
    const std::string head = text.substr(0, head_end + 2);
    request.method = head.substr(0, head.find(' '));
    const std::string target = between(head, " ", " ");
    request.path = target.substr(0, target.find('?'));
    request.query =
        target.find('?') == std::string::npos ? "" : target.substr(target.find('?') + 1);
    for (size_t at = head.find("\r\n") + 2; at < head.size();) {
      const size_t end = head.find("\r\n", at);
      const std::string line = head.substr(at, end - at);
      const size_t colon = line.find(':');
      const size_t value = line.find_first_not_of(' ', colon + 1);
      request.headers[small(line.substr(0, colon))] =
          value == std::string::npos ? "" : line.substr(value);
      at = end + 2;
    }
    if (request.headers.contains("content-length")) {
      num_bytes = std::strtoull(request.headers.at("content-length").c_str(), nullptr, 10);
    }
  }
  request.body = text.substr(head_end + 4, num_bytes);
  return true;
}

void S3Server::serve(int connection, const std::stop_token& stop) {
  for (Request request; read_request(connection, stop, request); request = {}) {
    ++num_requests;
    if (take_one(break_before)) break;
    while (is_silent && !stop.stop_requested()) ::poll(nullptr, 0, 10);
    const Answer made = is_down || take_one(refuse_503)
                            ? Answer{.status = 503, .body = "<Error><Code>SlowDown</Code></Error>"}
                            : answer(request);
    const bool completes = request.method == "POST" && request.query != "uploads=";
    if (take_one(break_after) || (completes && take_one(lose_completion))) break;
    std::string text =
        fmt::format("HTTP/1.1 {} X\r\nContent-Length: {}\r\n", made.status, made.body.size());
    if (!made.etag.empty()) text += "ETag: " + made.etag + "\r\n";
    text += "\r\n" + made.body;
    const bool is_broken = !made.body.empty() && take_one(break_answers);
    if (is_broken)
      text.erase(text.end() - static_cast<std::ptrdiff_t>((made.body.size() + 1) / 2), text.end());
    send_all(connection, text);
    if (is_broken) break;
  }
  ::close(connection);
}

// Signature version 4, as its documentation has it.
bool S3Server::is_signed(const Request& request) const {
  const auto header = [&](const std::string& name) {
    const auto found = request.headers.find(name);
    return found == request.headers.end() ? "" : found->second;
  };
  const std::string authorization = header("authorization");
  const std::string scope = between(authorization, std::string(kAccessKey) + "/", ",");
  const std::string names = between(authorization, "SignedHeaders=", ",");
  std::string canonical = request.method + "\n" + request.path + "\n" + request.query + "\n";
  for (size_t at = 0; at < names.size();) {
    const size_t end = std::min(names.find(';', at), names.size());
    const std::string name = names.substr(at, end - at);
    canonical += name + ":" + header(name) + "\n";
    at = end + 1;
  }
  canonical += "\n" + names + "\n" + header("x-amz-content-sha256");
  const std::string date = scope.substr(0, 8), region = between(scope, "/", "/");
  const std::string key =
      hmac(hmac(hmac(hmac("AWS4" + std::string(kSecretKey), date), region), "s3"), "aws4_request");
  const std::string to_sign =
      "AWS4-HMAC-SHA256\n" + header("x-amz-date") + "\n" + scope + "\n" + hex(sha256(canonical));
  const std::string signature = between(authorization, "Signature=", "\r");
  return names.find("host") != std::string::npos && hex(hmac(key, to_sign)) == signature;
}

S3Server::Answer S3Server::answer(const Request& request) {
  if (!is_signed(request)) {
    ++num_bad_signatures;
    return {.status = 403, .body = "<Error><Code>SignatureDoesNotMatch</Code></Error>"};
  }
  std::function<void()> intrude;
  if (request.headers.contains("if-match") || request.headers.contains("if-none-match")) {
    const std::lock_guard lock(mutex_);
    intrude = std::exchange(intrude_, nullptr);
  }
  if (intrude) intrude();
  if (request.method == "GET") return get(request);
  if (request.method == "PUT") return put(request);
  if (request.method == "POST") return post(request);
  const std::lock_guard lock(mutex_);
  const std::string upload = between(request.query, "uploadId=", "&");
  if (upload.empty()) {
    objects_.erase(request.path.substr(1));
  } else {
    uploads_.erase(upload);
  }
  return {.status = 204, .body = ""};
}

S3Server::Answer S3Server::get(const Request& request) const {
  const std::lock_guard lock(mutex_);
  const auto found = objects_.find(request.path.substr(1));
  if (found == objects_.end()) {
    return {.status = 404, .body = "<Error><Code>NoSuchKey</Code></Error>"};
  }
  const auto range = request.headers.find("range");
  if (range == request.headers.end()) {
    return {.status = 200, .body = found->second, .etag = etag_of(found->second)};
  }
  const size_t begin = std::strtoull(between(range->second, "bytes=", "-").c_str(), nullptr, 10);
  const size_t last =
      std::strtoull(range->second.substr(range->second.find('-') + 1).c_str(), nullptr, 10);
  if (begin >= found->second.size()) return {.status = 416, .body = ""};
  return {.status = 206,
          .body = found->second.substr(begin, last - begin + 1),
          .etag = etag_of(found->second)};
}

S3Server::Answer S3Server::put(const Request& request) {
  const std::lock_guard lock(mutex_);
  const std::string upload = between(request.query, "uploadId=", "&");
  if (!upload.empty()) {
    if (!uploads_.contains(upload)) return {.status = 404, .body = ""};
    const int number = std::atoi(between(request.query, "partNumber=", "&").c_str());
    uploads_[upload][number] = request.body;
    return {.status = 200, .body = "", .etag = etag_of(request.body)};
  }
  const std::string key = request.path.substr(1);
  const auto found = objects_.find(key);
  const auto match = request.headers.find("if-match");
  const bool is_other = match != request.headers.end() &&
                        (found == objects_.end() || etag_of(found->second) != match->second);
  const bool is_there = request.headers.contains("if-none-match") && found != objects_.end();
  if (is_other || is_there) {
    ++num_lost_races;
    return {.status = 412, .body = "<Error><Code>PreconditionFailed</Code></Error>"};
  }
  objects_[key] = request.body;
  return {.status = 200, .body = "", .etag = etag_of(request.body)};
}

S3Server::Answer S3Server::post(const Request& request) {
  const std::lock_guard lock(mutex_);
  if (request.query == "uploads=") {
    const std::string id = fmt::format("upload-{}", ++num_uploads_);
    uploads_[id];
    return {.status = 200, .body = "<R><UploadId>" + id + "</UploadId></R>"};
  }
  const auto upload = uploads_.find(between(request.query, "uploadId=", "&"));
  if (upload == uploads_.end()) {
    return {.status = 404, .body = "<Error><Code>NoSuchUpload</Code></Error>"};
  }
  std::string whole;
  for (const auto& [number, part] : upload->second) {
    const std::string listed = fmt::format(
        "<Part><PartNumber>{}</PartNumber><ETag>{}</ETag></Part>", number, etag_of(part));
    if (request.body.find(listed) == std::string::npos) return {.status = 400, .body = ""};
    whole += part;
  }
  objects_[request.path.substr(1)] = whole;
  uploads_.erase(upload);
  return {.status = 200, .body = "<R></R>"};
}

}  // namespace pelago::testing
