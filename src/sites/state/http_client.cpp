#include "sites/state/http_client.h"

#include <curl/curl.h>

#include <array>

namespace pelago::sites {

namespace {

constexpr size_t kAnswerBytesMax = 256 << 20;  // a whole state: etcd holds 2 GB at most

size_t take_body(char* data, size_t, size_t num_bytes, void* body) {
  auto* text = static_cast<std::string*>(body);
  if (text->size() + num_bytes > kAnswerBytesMax) return 0;
  text->append(data, num_bytes);
  return num_bytes;
}

bool is_about_certificates(CURLcode code) {
  return code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CERTPROBLEM ||
         code == CURLE_SSL_CACERT_BADFILE;
}

}  // namespace

struct HttpClient::Impl {
  CURL* curl = nullptr;
  curl_slist* headers = nullptr;
  std::array<char, CURL_ERROR_SIZE> reason{};

  ~Impl() {
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
  }
};

HttpClient::HttpClient(const HttpOptions& options) : impl_(std::make_unique<Impl>()) {
  static const CURLcode started = curl_global_init(CURL_GLOBAL_DEFAULT);  // once, thread-safe
  impl_->curl = curl_easy_init();
  if (started != CURLE_OK || impl_->curl == nullptr) fail("libcurl cannot be started");
  CURL* curl = impl_->curl;
  impl_->headers = curl_slist_append(nullptr, "Content-Type: application/json");
  // Without these, libcurl asks for leave before a body of more than 1 kB, and waits a second.
  impl_->headers = curl_slist_append(impl_->headers, "Expect:");
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, impl_->headers);
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, impl_->reason.data());
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &take_body);
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_PROXY, "");  // a proxy for web pages has no business here
  const auto timeout_ms = static_cast<long>(1e3 * options.timeout_s);
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, timeout_ms);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, timeout_ms / 2);
  if (options.certs_dir.empty()) return;
  const auto path = [&](const char* name) { return (options.certs_dir / name).string(); };
  curl_easy_setopt(curl, CURLOPT_CAINFO, path("ca.pem").c_str());
  if (!std::filesystem::exists(options.certs_dir / "client.pem")) return;
  curl_easy_setopt(curl, CURLOPT_SSLCERT, path("client.pem").c_str());
  curl_easy_setopt(curl, CURLOPT_SSLKEY, path("client.key").c_str());
}

HttpClient::~HttpClient() = default;

Result<HttpAnswer> HttpClient::post(const std::string& url, const std::string& body) {
  CURL* curl = impl_->curl;
  HttpAnswer answer;
  impl_->reason[0] = '\0';
  curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body.c_str());
  curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer.body);
  const CURLcode code = curl_easy_perform(curl);
  if (code != CURLE_OK) {
    const char* reason = impl_->reason[0] != '\0' ? impl_->reason.data() : curl_easy_strerror(code);
    return Error{is_about_certificates(code) ? ErrorCode::kRefused : ErrorCode::kUnavailable,
                 fmt::format("{}: {}", url, reason)};
  }
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &answer.status);
  return answer;
}

}  // namespace pelago::sites
