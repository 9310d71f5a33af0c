#include "serve/http/messages.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <ctime>

namespace pelago::serve {

namespace {

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// A header's value must not begin a header of its own (response splitting).
std::string one_line(std::string_view value) {
  std::string line(value);
  std::replace_if(
      line.begin(), line.end(), [](unsigned char c) { return c < 32 && c != '\t'; }, ' ');
  return line;
}

}  // namespace

std::optional<std::string_view> HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (key == name) return value;
  }
  return std::nullopt;
}

std::string lower_case(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  return lower;
}

std::string_view status_text(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 206:
      return "Partial Content";
    case 301:
      return "Moved Permanently";
    case 302:
      return "Found";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 421:
      return "Misdirected Request";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    default:
      return "Unknown";
  }
}

std::optional<std::string> percent_decode(std::string_view text) {
  std::string decoded;
  decoded.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      if (i + 2 >= text.size()) return std::nullopt;
      const int high = hex_value(text[i + 1]), low = hex_value(text[i + 2]);
      if (high < 0 || low < 0) return std::nullopt;
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (static_cast<unsigned char>(c) < 32 || c == 127) return std::nullopt;
    decoded += c;
  }
  return decoded;
}

std::optional<std::string> query_field(std::string_view query, std::string_view name) {
  while (!query.empty()) {
    const std::string_view field = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), field.size() + 1));
    const size_t equals = field.find('=');
    if (field.substr(0, equals) != name) continue;
    return equals == std::string_view::npos ? std::string()
                                            : percent_decode(field.substr(equals + 1));
  }
  return std::nullopt;
}

bool split_target(std::string_view target, HttpRequest& request) {
  const size_t scheme = target.find("://");
  if (scheme != std::string_view::npos && target[0] != '/') {
    const size_t slash = target.find('/', scheme + 3);
    target = slash == std::string_view::npos ? "/" : target.substr(slash);
  }
  const size_t mark = std::min(target.find('?'), target.size());
  const auto path = percent_decode(target.substr(0, mark));
  if (!path || path->empty()) return false;
  request.path = *path;
  request.query = mark < target.size() ? target.substr(mark + 1) : "";
  return true;
}

std::string format_head(const HttpResponse& response, const HttpHeadOptions& options) {
  std::string head = fmt::format("HTTP/1.1 {} {}\r\nDate: {:%a, %d %b %Y %H:%M:%S} GMT\r\n",
                                 response.status,
                                 status_text(response.status),
                                 fmt::gmtime(std::time(nullptr)));
  const auto add = [&head](std::string_view name, std::string_view value) {
    head += fmt::format("{}: {}\r\n", name, one_line(value));
  };
  // 204 and 304 have no body, and a length there would be taken for one.
  const bool has_body = response.status != 204 && response.status != 304;
  if (has_body && !response.content_type.empty()) add("Content-Type", response.content_type);
  if (options.is_chunked) {
    add("Transfer-Encoding", "chunked");
  } else if (has_body && !options.is_stream) {
    add("Content-Length", std::to_string(response.body.size()));
  }
  add("X-Content-Type-Options", "nosniff");
  if (options.closes) add("Connection", "close");
  for (const auto& [name, value] : response.headers) add(name, value);
  return head + "\r\n";
}

}  // namespace pelago::serve
