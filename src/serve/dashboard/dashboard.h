// The dashboard of one run over HTTP: its page, and what the page asks for. It reads the run
// folder's files and nothing else, so it can be started and ended at any time, on any machine that
// sees the folder.
#pragma once

#include <filesystem>
#include <string>

#include "serve/dashboard/run_feed.h"
#include "serve/http/http_server.h"
#include "serve/http/static_files.h"

namespace pelago::serve {

struct DashboardOptions {
  std::filesystem::path run_dir;
  std::string host = "127.0.0.1";  // as HttpServerOptions
  int port = 0;                    // 0: any free one
};

class Dashboard {
 public:
  explicit Dashboard(const DashboardOptions& options);
  /// Throws Failure naming address and port if they cannot be had.
  void start() { server_.start(); }
  /// "http://127.0.0.1:8321/", once started.
  std::string url() const;

 private:
  HttpResponse run_response(const HttpRequest& request);

  std::string host_;
  RunFeed feed_;
  StaticFiles pages_;
  HttpServer server_;  // last: its threads end before what they use
};

/// Whether a request names this machine as its host, as a browser that was sent here by its user
/// does. A page of another site whose name was pointed at 127.0.0.1 (DNS rebinding) does not.
bool names_loopback(const HttpRequest& request);

}  // namespace pelago::serve
