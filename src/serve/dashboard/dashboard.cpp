#include "serve/dashboard/dashboard.h"

#include <fmt/format.h>

#include <charconv>
#include <chrono>

#include "serve/web/pages.h"

namespace pelago::serve {

namespace {

double unix_now_s() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// 0 for whatever is no number: the page is then told everything.
uint64_t number_field(const HttpRequest& request, std::string_view name) {
  const std::string text = query_field(request.query, name).value_or("");
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? value : 0;
}

bool is_loopback(std::string_view host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

// An epoch that no earlier server at this address has used: milliseconds, so that a page that
// stayed open while the server was started again takes everything anew.
uint64_t epoch_of_start() { return static_cast<uint64_t>(1000 * unix_now_s()); }

}  // namespace

bool names_loopback(const HttpRequest& request) {
  std::string_view host = request.header("host").value_or("");
  if (host.starts_with('[')) {
    host = host.substr(1, host.find(']') - 1);
  } else {
    host = host.substr(0, host.find(':'));
  }
  return is_loopback(lower_case(host));
}

Dashboard::Dashboard(const DashboardOptions& options)
    : host_(options.host),
      feed_(options.run_dir, {.first_epoch = epoch_of_start()}),
      server_({.host = options.host, .port = options.port, .body_bytes_max = 1 << 10}) {
  add_pages(pages_, "dashboard.html");
  server_.route("GET", "/api/run", [this](const HttpRequest& request, const HttpReplyPtr& reply) {
    reply->send(run_response(request));
  });
  server_.route("GET", "/*", pages_.handler());
}

HttpResponse Dashboard::run_response(const HttpRequest& request) {
  if (is_loopback(host_) && !names_loopback(request)) {
    return {.status = 403,
            .content_type = "text/plain; charset=utf-8",
            .body = "this dashboard answers to localhost; start it with --host for other names\n"};
  }
  return {.body = feed_.answer(
              number_field(request, "epoch"), number_field(request, "since"), unix_now_s()),
          .headers = {{"Cache-Control", "no-store"}}};
}

std::string Dashboard::url() const {
  const bool is_v6 = host_.find(':') != std::string::npos;
  return fmt::format("http://{}:{}/", is_v6 ? fmt::format("[{}]", host_) : host_, server_.port());
}

}  // namespace pelago::serve
