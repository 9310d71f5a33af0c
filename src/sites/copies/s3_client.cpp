#include "sites/copies/s3_client.h"

#include <curl/curl.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <random>

#include "base/clock.h"
#include "base/log.h"

namespace pelago::sites {

namespace {

constexpr size_t kAnswerBytesMax = 64 << 20;
constexpr size_t kPartsMax = 10'000;
constexpr double kLookS = 0.05;  // how soon a stop ends a pause

struct CurlEasy {
  CURL* handle = curl_easy_init();
  ~CurlEasy() { curl_easy_cleanup(handle); }
};
struct CurlList {
  curl_slist* list = nullptr;
  void add(const std::string& line) { list = curl_slist_append(list, line.c_str()); }
  ~CurlList() { curl_slist_free_all(list); }
};

size_t take_body(char* data, size_t, size_t num_bytes, void* body) {
  auto* text = static_cast<std::string*>(body);
  if (text->size() + num_bytes > kAnswerBytesMax) return 0;
  text->append(data, num_bytes);
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

bool may_pass(long status) {
  return status == 0 || status == 408 || status == 429 || status >= 500;
}

/// <TAG>value</TAG> of an answer: all that is needed of its XML.
std::string tag_of(const std::string& xml, const std::string& tag) {
  const size_t begin = xml.find("<" + tag + ">");
  if (begin == std::string::npos) return "";
  const size_t from = begin + tag.size() + 2;
  const size_t end = xml.find("</" + tag + ">", from);
  return end == std::string::npos ? "" : xml.substr(from, end - from);
}

/// What the store chose, as it must stand in a query.
std::string encoded(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const bool is_plain =
        std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.' || c == '~';
    if (is_plain) {
      out += c;
    } else {
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return out;
}

}  // namespace

struct S3Client::Wire {
  CurlEasy curl;  // keeps its connection
  std::mt19937_64 chance{std::random_device{}()};
};

S3Client::S3Client(S3Options options, std::function<bool()> is_stopped)
    : options_(std::move(options)), is_stopped_(std::move(is_stopped)) {
  static const CURLcode started = curl_global_init(CURL_GLOBAL_DEFAULT);  // once, thread-safe
  wire_ = std::make_unique<Wire>();
  if (started != CURLE_OK || wire_->curl.handle == nullptr) fail("libcurl cannot be started");
}

S3Client::~S3Client() = default;

S3Client::Answer S3Client::try_once(const Request& request) {
  CURL* curl = wire_->curl.handle;
  const S3Account& account = options_.account;
  Answer answer;
  std::array<char, CURL_ERROR_SIZE> reason{};
  CurlList headers;
  for (const std::string& line : request.headers) headers.add(line);
  if (!account.session_token.empty()) headers.add("x-amz-security-token: " + account.session_token);
  // The bytes are guarded by TLS and by the hashes in the checkpoint's own manifest.
  headers.add("x-amz-content-sha256: UNSIGNED-PAYLOAD");
  headers.add("Expect:");  // else libcurl waits a second for leave to send a large body
  headers.add("Content-Type: application/octet-stream");
  const std::string url = url_of(options_.place, account, request.key) +
                          (request.query.empty() ? std::string() : "?" + request.query);
  curl_easy_reset(curl);
  curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, request.method.c_str());
  if (request.method == "PUT" || request.method == "POST") {
    curl_easy_setopt(
        curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
    const auto* body = reinterpret_cast<const char*>(request.body.data());
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body == nullptr ? "" : body);  // null: from stdin
  }
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers.list);
  const std::string signing = fmt::format("aws:amz:{}:s3", account.region);
  curl_easy_setopt(curl, CURLOPT_AWS_SIGV4, signing.c_str());
  curl_easy_setopt(curl, CURLOPT_USERNAME, account.access_key.c_str());
  curl_easy_setopt(curl, CURLOPT_PASSWORD, account.secret_key.c_str());
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, reason.data());
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &take_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer.body);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &take_header);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &answer.etag);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, &ask_whether_stopped);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, &is_stopped_);
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(1e3 * options_.connect_s));
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1000L);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, std::max(1L, std::lround(options_.stall_s)));
  const CURLcode code = curl_easy_perform(curl);
  if (code == CURLE_OK) {
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &answer.status);
  } else {
    answer.reason = reason[0] != '\0' ? reason.data() : curl_easy_strerror(code);
  }
  return answer;
}

// False if everything is to end.
bool S3Client::pause(int num_failed) {
  double pause_s = options_.first_pause_s * std::pow(2.0, num_failed);
  pause_s = std::min(pause_s, options_.pause_max_s) *
            std::uniform_real_distribution<double>(0.5, 1.0)(wire_->chance);
  const double end_s = steady_now_s() + pause_s;
  while (!is_stopped_() && steady_now_s() < end_s) {
    sleep_until_s(std::min(end_s, steady_now_s() + kLookS));
  }
  return !is_stopped_();
}

Result<S3Client::Answer> S3Client::perform(const Request& request) {
  std::string why;
  for (int num_failed = 0; num_failed < options_.num_tries && !is_stopped_(); ++num_failed) {
    if (num_failed > 0) {
      ++num_retries_;
      if (!pause(num_failed - 1)) break;
    }
    Answer answer = try_once(request);
    // A completed upload may say that it failed after it has said 200.
    const bool is_late_error = answer.status == 200 && request.method == "POST" &&
                               answer.body.find("<Error>") != std::string::npos;
    if (!may_pass(answer.status) && !is_late_error) return answer;
    why = answer.status == 0 ? answer.reason : refusal(request, answer).message;
    log_debug(
        "store try={} method={} key={} why=\"{}\"", num_failed, request.method, request.key, why);
  }
  return Error{ErrorCode::kUnavailable,
               fmt::format("s3://{}: {} of {}: {}",
                           options_.place.bucket,
                           request.method,
                           request.key,
                           why.empty() ? "stopped" : why)};
}

Error S3Client::refusal(const Request& request, const Answer& answer) const {
  const std::string code = tag_of(answer.body, "Code");
  return Error{ErrorCode::kRefused,
               fmt::format("s3://{}: {} of {} is refused: {}{}{}",
                           options_.place.bucket,
                           request.method,
                           request.key,
                           answer.status,
                           code.empty() ? "" : " ",
                           code)};
}

Result<std::optional<S3Object>> S3Client::get(const std::string& key) {
  const Request request{.method = "GET", .key = key, .query = {}};
  Result<Answer> answer = perform(request);
  if (!answer) return answer.error();
  if (answer->status == 404 && tag_of(answer->body, "Code") != "NoSuchBucket") {
    return std::optional<S3Object>();
  }
  if (answer->status != 200) return refusal(request, *answer);
  return std::optional<S3Object>(S3Object{.bytes = std::move(answer->body), .etag = answer->etag});
}

Result<std::string> S3Client::get_range(const std::string& key, int64_t begin, int64_t num_bytes) {
  const Request request{
      .method = "GET",
      .key = key,
      .query = {},
      .body = {},
      .headers = {fmt::format("Range: bytes={}-{}", begin, begin + num_bytes - 1)}};
  Result<Answer> answer = perform(request);
  if (!answer) return answer.error();
  if (answer->status != 206 && answer->status != 200) return refusal(request, *answer);
  if (static_cast<int64_t>(answer->body.size()) != num_bytes) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("s3://{}: {} gave {} bytes from {} on, expected {}",
                             options_.place.bucket,
                             key,
                             answer->body.size(),
                             begin,
                             num_bytes)};
  }
  return std::move(answer->body);
}

Status S3Client::put(const std::string& key, std::span<const std::byte> bytes) {
  if (bytes.size() > options_.part_bytes) return put_parts(key, bytes);
  const Request request{.method = "PUT", .key = key, .query = {}, .body = bytes};
  const Result<Answer> answer = perform(request);
  if (!answer) return answer.error();
  if (answer->status != 200) return refusal(request, *answer);
  return ok();
}

Result<bool> S3Client::put_if(const std::string& key,
                              const std::string& bytes,
                              const std::string& etag) {
  const Request request{.method = "PUT",
                        .key = key,
                        .query = {},
                        .body = std::as_bytes(std::span(bytes)),
                        .headers = {etag.empty() ? "If-None-Match: *" : "If-Match: " + etag}};
  const Result<Answer> answer = perform(request);
  if (!answer) return answer.error();
  // 409: two at once, neither decided yet; 404: what was to be replaced is gone.
  if (answer->status == 412 || answer->status == 409 || answer->status == 404) return false;
  if (answer->status != 200) return refusal(request, *answer);
  return true;
}

Status S3Client::remove(const std::string& key) {
  const Request request{.method = "DELETE", .key = key, .query = {}};
  const Result<Answer> answer = perform(request);
  if (!answer) return answer.error();
  if (answer->status >= 300 && answer->status != 404) return refusal(request, *answer);
  return ok();
}

Result<std::string> S3Client::put_part(const std::string& key,
                                       const std::string& upload,
                                       size_t number,
                                       std::span<const std::byte> bytes) {
  const Request request{.method = "PUT",
                        .key = key,
                        .query = fmt::format("partNumber={}&uploadId={}", number, upload),
                        .body = bytes};
  const Result<Answer> answer = perform(request);
  if (!answer) return answer.error();
  if (answer->status != 200 || answer->etag.empty()) return refusal(request, *answer);
  return answer->etag;
}

// Nothing has the object's name until all parts are there. What was begun and cannot be finished is
// given up, so that the store does not keep it.
Status S3Client::put_parts(const std::string& key, std::span<const std::byte> bytes) {
  const size_t part_bytes = std::max(options_.part_bytes, bytes.size() / kPartsMax + 1);
  const Request begin{.method = "POST", .key = key, .query = "uploads="};
  const Result<Answer> begun = perform(begin);
  if (!begun) return begun.error();
  const std::string upload = encoded(tag_of(begun->body, "UploadId"));
  if (begun->status != 200 || upload.empty()) return refusal(begin, *begun);
  std::string list = "<CompleteMultipartUpload>";
  std::optional<Error> failure;
  size_t number = 0;
  for (size_t at = 0; at < bytes.size() && !failure; at += part_bytes) {
    const Result<std::string> etag =
        put_part(key, upload, ++number, bytes.subspan(at, std::min(part_bytes, bytes.size() - at)));
    if (!etag) {
      failure = etag.error();
    } else {
      list += fmt::format("<Part><PartNumber>{}</PartNumber><ETag>{}</ETag></Part>", number, *etag);
    }
  }
  list += "</CompleteMultipartUpload>";
  if (!failure) {
    const Request end{.method = "POST",
                      .key = key,
                      .query = "uploadId=" + upload,
                      .body = std::as_bytes(std::span(list))};
    const Result<Answer> ended = perform(end);
    if (!ended) {
      failure = ended.error();
    } else if (ended->status == 404 && get_range(key, static_cast<int64_t>(bytes.size()) - 1, 1)) {
      return ok();  // an earlier try had done it, and its answer was lost
    } else if (ended->status != 200) {
      failure = refusal(end, *ended);
    } else {
      return ok();
    }
  }
  const Result<Answer> given_up =
      perform({.method = "DELETE", .key = key, .query = "uploadId=" + upload});
  if (!given_up) log_debug("upload stays open key={}", key);
  return *failure;
}

}  // namespace pelago::sites
