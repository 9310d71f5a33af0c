#include "serve/http/static_files.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "base/files.h"

namespace pelago::serve {

namespace {

// Vite's names: "index-BxK3_f2a.js". Eight characters of a hash behind the last hyphen.
bool has_hash(std::string_view name) {
  const size_t hyphen = name.rfind('-');
  const size_t dot = name.rfind('.');
  return hyphen != std::string_view::npos && dot != std::string_view::npos && dot == hyphen + 9 &&
         std::any_of(name.begin() + static_cast<std::ptrdiff_t>(hyphen),
                     name.begin() + static_cast<std::ptrdiff_t>(dot),
                     [](unsigned char c) { return std::isdigit(c) || std::isupper(c); });
}

bool matches(std::string_view if_none_match, std::string_view etag) {
  return if_none_match == "*" || if_none_match.find(etag) != std::string_view::npos;
}

}  // namespace

std::string content_type_of(std::string_view name) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 14> kTypes = {{
      {".html", "text/html; charset=utf-8"},
      {".js", "text/javascript; charset=utf-8"},
      {".mjs", "text/javascript; charset=utf-8"},
      {".css", "text/css; charset=utf-8"},
      {".json", "application/json"},
      {".map", "application/json"},
      {".svg", "image/svg+xml"},
      {".png", "image/png"},
      {".ico", "image/x-icon"},
      {".webp", "image/webp"},
      {".woff2", "font/woff2"},
      {".txt", "text/plain; charset=utf-8"},
      {".md", "text/plain; charset=utf-8"},
      {".webmanifest", "application/manifest+json"},
  }};
  for (const auto& [ending, type] : kTypes) {
    if (name.ends_with(ending)) return std::string(type);
  }
  return "application/octet-stream";
}

StaticFiles::StaticFiles(std::string prefix, std::string policy)
    : prefix_(std::move(prefix)), policy_(std::move(policy)) {}

void StaticFiles::insert(const std::string& name, File file) {
  const std::string_view content = file.owned.empty() ? file.content : file.owned;
  file.etag = '"' + hash_hex(content) + '"';
  file.content_type = content_type_of(name);
  file.never_changes = has_hash(name);
  files_[name] = std::move(file);
}

void StaticFiles::add(const std::string& name, std::string_view content) {
  insert(name, {.content = content});
}

void StaticFiles::add_folder(const std::filesystem::path& folder) {
  std::error_code error;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder, error)) {
    if (!entry.is_regular_file()) continue;
    const std::string name = entry.path().lexically_relative(folder).generic_string();
    insert(name, {.owned = read_text_file(entry.path())});
  }
  if (error) fail("{}: cannot read the folder: {}", folder.string(), error.message());
}

HttpResponse StaticFiles::response(const HttpRequest& request) const {
  std::string_view name = request.path;
  const bool fits = name.starts_with(prefix_) || name.size() + 1 == prefix_.size();
  name.remove_prefix(std::min(name.size(), prefix_.size()));
  const auto found =
      fits ? files_.find(name.empty() ? "index.html" : std::string(name)) : files_.end();
  if (found == files_.end()) {
    return {.status = 404, .content_type = "text/plain; charset=utf-8", .body = "no such page\n"};
  }
  const File& file = found->second;
  HttpResponse response = {.content_type = file.content_type};
  response.headers = {
      {"ETag", file.etag},
      {"Cache-Control", file.never_changes ? "public, max-age=31536000, immutable" : "no-cache"},
      {"Content-Security-Policy", policy_},
      {"Referrer-Policy", "no-referrer"},
      {"Cross-Origin-Opener-Policy", "same-origin"}};
  if (matches(request.header("if-none-match").value_or(""), file.etag)) {
    response.status = 304;
  } else {
    response.body = file.owned.empty() ? file.content : std::string_view(file.owned);
  }
  return response;
}

HttpHandler StaticFiles::handler() const {
  return [this](const HttpRequest& request, const HttpReplyPtr& reply) {
    reply->send(response(request));
  };
}

}  // namespace pelago::serve
