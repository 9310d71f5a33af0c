#include "sites/http/http_client.h"

#include <curl/curl.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>

namespace pelago::sites {

namespace {

struct Body {
  std::string text;
  size_t bytes_max = 0;
};

size_t take_body(char* data, size_t, size_t num_bytes, void* into) {
  auto* body = static_cast<Body*>(into);
  if (body->text.size() + num_bytes > body->bytes_max) return 0;
  body->text.append(data, num_bytes);
  return num_bytes;
}

size_t take_header(char* data, size_t, size_t num_bytes, void* etag) {
  const std::string line(data, num_bytes);
  const size_t colon = line.find(':');
  std::string name = line.substr(0, colon);
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) {
    return static_cast<char>(std::tolower(c));
  });
  if (colon == std::string::npos || name != "etag") return num_bytes;
  const size_t begin = line.find_first_not_of(' ', colon + 1);
  const size_t end = line.find_last_not_of("\r\n ");
  if (begin != std::string::npos && end != std::string::npos && end >= begin) {
    *static_cast<std::string*>(etag) = line.substr(begin, end - begin + 1);
  }
  return num_bytes;
}

int ask_whether_stopped(void* is_stopped, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  return (*static_cast<const std::function<bool()>*>(is_stopped))() ? 1 : 0;
}

bool is_about_certificates(CURLcode code) {
  return code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CERTPROBLEM ||
         code == CURLE_SSL_CACERT_BADFILE;
}

long milliseconds(double seconds) { return static_cast<long>(1e3 * seconds); }

}  // namespace

struct HttpClient::Wire {
  CURL* curl = curl_easy_init();
  curl_slist* headers = nullptr;
  std::array<char, CURL_ERROR_SIZE> reason{};

  void add_header(const std::string& line) { headers = curl_slist_append(headers, line.c_str()); }
  void clear() {
    curl_easy_reset(curl);  // keeps its connections
    curl_slist_free_all(headers);
    headers = nullptr;
    reason[0] = '\0';
  }
  ~Wire() {
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
  }
};

HttpClient::HttpClient(HttpOptions options) : options_(std::move(options)) {
  static const CURLcode started = curl_global_init(CURL_GLOBAL_DEFAULT);  // once, thread-safe
  wire_ = std::make_unique<Wire>();
  if (started != CURLE_OK || wire_->curl == nullptr) fail("libcurl cannot be started");
}

HttpClient::~HttpClient() = default;

void HttpClient::sign(const AwsSigner& signer) {
  CURL* curl = wire_->curl;
  const std::string signing = fmt::format("aws:amz:{}:s3", signer.region);
  curl_easy_setopt(curl, CURLOPT_AWS_SIGV4, signing.c_str());
  curl_easy_setopt(curl, CURLOPT_USERNAME, signer.access_key.c_str());
  curl_easy_setopt(curl, CURLOPT_PASSWORD, signer.secret_key.c_str());
}

void HttpClient::show_certificates() {
  if (options_.certs_dir.empty()) return;
  const auto path = [&](const char* name) { return (options_.certs_dir / name).string(); };
  curl_easy_setopt(wire_->curl, CURLOPT_CAINFO, path("ca.pem").c_str());
  if (!std::filesystem::exists(options_.certs_dir / "client.pem")) return;
  curl_easy_setopt(wire_->curl, CURLOPT_SSLCERT, path("client.pem").c_str());
  curl_easy_setopt(wire_->curl, CURLOPT_SSLKEY, path("client.key").c_str());
}

void HttpClient::prepare(const HttpRequest& request) {
  CURL* curl = wire_->curl;
  wire_->clear();
  for (const std::string& line : request.headers) wire_->add_header(line);
  // Else libcurl asks for leave before a body of more than 1 kB, and waits a second.
  wire_->add_header("Expect:");
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, wire_->headers);
  curl_easy_setopt(curl, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, request.method.c_str());
  if (request.method == "PUT" || request.method == "POST") {
    const auto* body = reinterpret_cast<const char*>(request.body.data());
    curl_easy_setopt(
        curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body == nullptr ? "" : body);  // null: from stdin
  }
  if (request.signer) sign(*request.signer);
  show_certificates();
  if (!options_.uses_proxy) curl_easy_setopt(curl, CURLOPT_PROXY, "");
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, milliseconds(options_.connect_s));
  if (options_.timeout_s > 0) {
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, milliseconds(options_.timeout_s));
  }
  if (options_.stall_s > 0) {
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1000L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, std::max(1L, std::lround(options_.stall_s)));
  }
  if (options_.is_stopped) {
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, &ask_whether_stopped);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, &options_.is_stopped);
  }
}

Result<HttpAnswer> HttpClient::send(const HttpRequest& request) {
  prepare(request);
  CURL* curl = wire_->curl;
  HttpAnswer answer;
  Body body{.text = {}, .bytes_max = options_.answer_bytes_max};
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, wire_->reason.data());
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &take_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &body);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &take_header);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &answer.etag);
  const CURLcode code = curl_easy_perform(curl);
  if (code != CURLE_OK) {
    std::string reason =
        wire_->reason[0] != '\0' ? wire_->reason.data() : curl_easy_strerror(code);
    // Two authorities of one name, or a certificate that the server refuses: OpenSSL's words say
    // neither.
    if (!options_.certs_dir.empty() && reason.find("OpenSSL") != std::string::npos) {
      reason += fmt::format("; are ca.pem and client.pem in {} of the server's authority?",
                            options_.certs_dir.string());
    }
    return Error{is_about_certificates(code) ? ErrorCode::kRefused : ErrorCode::kUnavailable,
                 reason};
  }
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &answer.status);
  answer.body = std::move(body.text);
  return answer;
}

}  // namespace pelago::sites
