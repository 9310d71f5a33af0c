// Files of a web page: from the program itself or from a folder. A path that would leave the folder
// finds nothing; pages may load from this server only (Content-Security-Policy).
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include "serve/http/messages.h"

namespace pelago::serve {

class StaticFiles {
 public:
  /// Scripts, styles, pictures and connections of this origin, nothing inline; pictures also as
  /// data: addresses.
  static constexpr std::string_view kPagePolicy =
      "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
      "font-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; "
      "frame-ancestors 'none'";

  /// prefix: what the route's path adds in front ("/", "/chat/").
  explicit StaticFiles(std::string prefix = "/", std::string policy = std::string(kPagePolicy));

  /// A file of the program: name "index.html" or "assets/app.js"; content outlives this.
  void add(const std::string& name, std::string_view content);
  /// All files below folder, read now: what the folder later holds does not matter, and no request
  /// touches the disk. Throws Failure if one cannot be read.
  void add_folder(const std::filesystem::path& folder);

  /// "/" is index.html. ETag and If-None-Match; names with a hash in them ("app-3f9a2b1c.js") may
  /// be kept by browsers for a year.
  HttpResponse response(const HttpRequest& request) const;
  /// For HttpServer::route; this outlives the server.
  HttpHandler handler() const;
  bool has(const std::string& name) const { return files_.contains(name); }

 private:
  struct File {
    std::string owned = {};         // of add_folder
    std::string_view content = {};  // of add; else empty
    std::string etag = {}, content_type = {};
    bool never_changes = false;
  };
  void insert(const std::string& name, File file);
  std::string prefix_, policy_;
  std::map<std::string, File> files_;  // by name; nothing else can be reached
};

/// "text/html; charset=utf-8" of "index.html"; "application/octet-stream" where unknown.
std::string content_type_of(std::string_view name);

}  // namespace pelago::serve
