// The dashboard as a browser meets it.
#include "serve/dashboard/dashboard.h"

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <unistd.h>

#include <fstream>

#include "serve/http/raw_client.h"
#include "serve/web/pages.h"

namespace pelago::serve {
namespace {

namespace fs = std::filesystem;

class ServedRun {
 public:
  ServedRun() {
    path_ = fs::temp_directory_path() / fmt::format("pelago-served-{}", getpid());
    fs::create_directories(path_);
    std::ofstream(path_ / "plan.json") << "{\"steps\":3}";
    dashboard_ = std::make_unique<Dashboard>(DashboardOptions{.run_dir = path_});
    dashboard_->start();
  }
  ~ServedRun() {
    dashboard_.reset();
    fs::remove_all(path_);
  }
  ServedRun(const ServedRun&) = delete;
  ServedRun& operator=(const ServedRun&) = delete;

  std::string get(const std::string& path, const std::string& host = "localhost") const {
    const std::string url = dashboard_->url();
    RawClient client(std::stoi(url.substr(url.rfind(':') + 1)));
    client.send(
        fmt::format("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", path, host));
    return client.read_response();
  }

 private:
  fs::path path_;
  std::unique_ptr<Dashboard> dashboard_;
};

TEST_CASE("the dashboard serves its page and the run, and nothing else of the disk") {
  const ServedRun run;
  const std::string page = run.get("/");
  CHECK(page.find("200 OK") != std::string::npos);
  CHECK(page.find("assets/dashboard.js") != std::string::npos);
  CHECK(page.find("Content-Security-Policy: default-src 'none'") != std::string::npos);
  CHECK(run.get("/assets/dashboard.js").find("text/javascript") != std::string::npos);
  CHECK(run.get("/api/run").find("\"plan\":{\"steps\":3}") != std::string::npos);
  CHECK(run.get("/api/run?epoch=x&since=-1&since=99999999999999999999").find("200 OK") !=
        std::string::npos);
  CHECK(run.get("/plan.json").find("404") != std::string::npos);
  CHECK(run.get("/assets/../../plan.json").find("\"steps\"") == std::string::npos);
}

TEST_CASE("a page of another host that was pointed at this machine is told nothing") {
  const ServedRun run;
  const std::string refused = run.get("/api/run", "evil.example");
  CHECK(refused.find("403") != std::string::npos);
  CHECK(refused.find("plan") == std::string::npos);
  CHECK(run.get("/api/run", "127.0.0.1:8765").find("200 OK") != std::string::npos);
  CHECK(run.get("/api/run", "[::1]:8765").find("200 OK") != std::string::npos);
}

TEST_CASE("the pages name no file that is not there, and no other host") {
  std::string names;
  for (const EmbeddedFile& file : embedded_pages()) names += std::string(file.name) + "\n";
  REQUIRE(!names.empty());
  for (const EmbeddedFile& file : embedded_pages()) {
    if (!file.name.ends_with(".html")) continue;
    CHECK(file.content.find("http://") == std::string_view::npos);
    CHECK(file.content.find("https://") == std::string_view::npos);
    for (size_t at = 0; (at = file.content.find("\"./", at)) != std::string_view::npos; ++at) {
      const std::string_view rest = file.content.substr(at + 3);
      const std::string name(rest.substr(0, rest.find('"')));
      CHECK_MESSAGE(names.find(name + "\n") != std::string::npos, name);
    }
  }
}

}  // namespace
}  // namespace pelago::serve
