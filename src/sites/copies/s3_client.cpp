#include "sites/copies/s3_client.h"

#include <algorithm>
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

bool may_pass(long status) { return status == 408 || status == 429 || status >= 500; }

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

S3Client::S3Client(S3Options options, std::function<bool()> is_stopped)
    : options_(std::move(options)),
      is_stopped_(std::move(is_stopped)),
      http_({.certs_dir = {},
             .connect_s = options_.connect_s,
             .timeout_s = 0,
             .stall_s = options_.stall_s,
             .uses_proxy = true,
             .answer_bytes_max = kAnswerBytesMax,
             .is_stopped = is_stopped_}),
      chance_(std::random_device{}()) {}

Result<HttpAnswer> S3Client::try_once(const Request& request) {
  const S3Account& account = options_.account;
  HttpRequest http{.method = request.method,
                   .url = url_of(options_.place, account, request.key),
                   .body = request.body,
                   .headers = request.headers,
                   .signer = AwsSigner{.region = account.region,
                                       .access_key = account.access_key,
                                       .secret_key = account.secret_key}};
  if (!request.query.empty()) http.url += "?" + request.query;
  if (!account.session_token.empty()) {
    http.headers.push_back("x-amz-security-token: " + account.session_token);
  }
  // The bytes are guarded by TLS and by the hashes in the checkpoint's own manifest.
  http.headers.emplace_back("x-amz-content-sha256: UNSIGNED-PAYLOAD");
  http.headers.emplace_back("Content-Type: application/octet-stream");
  return http_.send(http);
}

// False if everything is to end.
bool S3Client::pause(int num_failed) {
  double pause_s = options_.first_pause_s * std::pow(2.0, num_failed);
  pause_s = std::min(pause_s, options_.pause_max_s) * (0.5 + 0.5 * chance_.next_uniform());
  const double end_s = steady_now_s() + pause_s;
  while (!is_stopped_() && steady_now_s() < end_s) {
    sleep_until_s(std::min(end_s, steady_now_s() + kLookS));
  }
  return !is_stopped_();
}

Result<HttpAnswer> S3Client::perform(const Request& request) {
  std::string why;
  for (int num_failed = 0; num_failed < options_.num_tries && !is_stopped_(); ++num_failed) {
    if (num_failed > 0) {
      ++num_retries_;
      if (!pause(num_failed - 1)) break;
    }
    Result<HttpAnswer> answer = try_once(request);
    if (answer) {
      // A completed upload may say that it failed after it has said 200.
      const bool is_late_error = answer->status == 200 && request.method == "POST" &&
                                 answer->body.find("<Error>") != std::string::npos;
      if (!may_pass(answer->status) && !is_late_error) return answer;
    }
    why = answer ? refusal(request, *answer).message : answer.error().message;
    if (!answer && answer.error().code == ErrorCode::kRefused) break;  // of certificates
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

Error S3Client::refusal(const Request& request, const HttpAnswer& answer) const {
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
  Result<HttpAnswer> answer = perform(request);
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
  Result<HttpAnswer> answer = perform(request);
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
  Result<HttpAnswer> answer = perform(request);
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
  Result<HttpAnswer> answer = perform(request);
  if (!answer) return answer.error();
  // 409: two at once, neither decided yet; 404: what was to be replaced is gone.
  if (answer->status == 412 || answer->status == 409 || answer->status == 404) return false;
  if (answer->status != 200) return refusal(request, *answer);
  return true;
}

Status S3Client::remove(const std::string& key) {
  const Request request{.method = "DELETE", .key = key, .query = {}};
  Result<HttpAnswer> answer = perform(request);
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
  Result<HttpAnswer> answer = perform(request);
  if (!answer) return answer.error();
  if (answer->status != 200 || answer->etag.empty()) return refusal(request, *answer);
  return answer->etag;
}

// Nothing has the object's name until all parts are there. What was begun and cannot be finished is
// given up, so that the store does not keep it.
Status S3Client::put_parts(const std::string& key, std::span<const std::byte> bytes) {
  const size_t part_bytes = std::max(options_.part_bytes, bytes.size() / kPartsMax + 1);
  const Request begin{.method = "POST", .key = key, .query = "uploads="};
  Result<HttpAnswer> begun = perform(begin);
  if (!begun) return begun.error();
  const std::string upload = encoded(tag_of(begun->body, "UploadId"));
  if (begun->status != 200 || upload.empty()) return refusal(begin, *begun);
  std::string list = "<CompleteMultipartUpload>";
  std::optional<Error> failure;
  size_t number = 0;
  for (size_t at = 0; at < bytes.size() && !failure; at += part_bytes) {
    Result<std::string> etag =
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
    Result<HttpAnswer> ended = perform(end);
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
  Result<HttpAnswer> given_up =
      perform({.method = "DELETE", .key = key, .query = "uploadId=" + upload});
  if (!given_up) log_debug("upload stays open key={}", key);
  return *failure;
}

}  // namespace pelago::sites
