#include "serve/http/http_server.h"

#include <doctest/doctest.h>

#include <deque>
#include <filesystem>
#include <fstream>
#include <future>

#include "base/error.h"
#include "serve/http/raw_client.h"
#include "serve/http/static_files.h"

namespace pelago::serve {
namespace {

void answer_ok(const HttpRequest& request, const HttpReplyPtr& reply) {
  reply->send(
      {.content_type = "text/plain",
       .body = request.method + ' ' + request.path + ' ' + std::to_string(request.body.size())});
}

bool starts_with_status(const std::string& response, int status) {
  return response.starts_with("HTTP/1.1 " + std::to_string(status) + ' ');
}

TEST_CASE("an HTTP server answers what its routes say, HEAD, 404 and 405, over one connection") {
  HttpServer server({});
  server.route("GET", "/a", answer_ok);
  server.route("POST", "/a/*", answer_ok);
  server.start();
  RawClient client(server.port());
  client.send("GET /a?x=1 HTTP/1.1\r\nHost: x\r\n\r\n");
  CHECK(client.read_response().ends_with("\r\n\r\nGET /a 0"));
  client.send("POST /a/b%20c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
  CHECK(client.read_response().ends_with("POST /a/b c 3"));
  client.send("GET /none HTTP/1.1\r\nHost: x\r\n\r\n");
  CHECK(starts_with_status(client.read_response(), 404));
  client.send("DELETE /a HTTP/1.1\r\nHost: x\r\n\r\n");
  const std::string refused = client.read_response();
  CHECK(starts_with_status(refused, 405));
  CHECK(refused.find("Allow: GET\r\n") != std::string::npos);
  client.send("HEAD /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  CHECK(client.read_all().ends_with("\r\n\r\n"));
  CHECK(server.stats().num_requests == 5);
}

TEST_CASE("requests sent ahead are answered in order") {
  HttpServer server({});
  server.route("GET", "/*", answer_ok);
  server.start();
  RawClient client(server.port());
  client.send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n");
  CHECK(client.read_response().ends_with("GET /1 0"));
  CHECK(client.read_response().ends_with("GET /2 0"));
}

TEST_CASE("a header or a body past its limit is refused, and so is what is not HTTP") {
  HttpServer server({.header_bytes_max = 2000, .body_bytes_max = 5000});
  server.route("POST", "/", answer_ok);
  server.start();
  const auto answer = [&](const std::string& bytes) {
    RawClient client(server.port());
    client.send(bytes);
    return client.read_all();
  };
  CHECK(starts_with_status(answer("POST / HTTP/1.1\r\nX: " + std::string(100000, 'x')), 431));
  CHECK(starts_with_status(
      answer("POST / HTTP/1.1\r\nContent-Length: 6000\r\n\r\n" + std::string(6000, 'x')), 413));
  CHECK(starts_with_status(
      answer("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfa0\r\n" +
             std::string(4000, 'x') + "\r\nfa0\r\n" + std::string(4000, 'x') + "\r\n0\r\n\r\n"),
      413));
  CHECK(starts_with_status(answer("\x16\x03\x01 not HTTP at all\r\n\r\n"), 400));
  CHECK(starts_with_status(answer("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), 400));
  CHECK(starts_with_status(
      answer("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), 400));
  CHECK(starts_with_status(answer("POST /%zz HTTP/1.1\r\nContent-Length: 0\r\n\r\n"), 400));
}

TEST_CASE("a body that comes after 100-continue is read") {
  HttpServer server({});
  server.route("POST", "/", answer_ok);
  server.start();
  RawClient client(server.port());
  client.send("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
  CHECK(client.read_until("100 Continue\r\n\r\n").starts_with("HTTP/1.1 100 Continue"));
  client.send("abcd");
  CHECK(client.read_until("POST / 4").find("200 OK") != std::string::npos);
}

TEST_CASE("a header that drips and a client that says nothing are cut off at their deadlines") {
  HttpServer impatient({.header_deadline_s = 0.01});
  impatient.start();
  RawClient drips(impatient.port());
  drips.send("GET / HT");
  CHECK(starts_with_status(drips.read_all(), 408));
  HttpServer bored({.idle_s = 0.01});
  bored.start();
  RawClient silent(bored.port());
  CHECK(silent.is_cut());
  CHECK(silent.read_all().empty());
}

TEST_CASE("a stream arrives piece by piece, and its end is told from a cut") {
  HttpServer server({});
  server.route("GET", "/whole", [](const HttpRequest&, const HttpReplyPtr& reply) {
    reply->begin({.content_type = "text/event-stream", .body = {}});
    CHECK(reply->write("one "));
    CHECK(reply->write("two"));
    reply->end();
    CHECK_FALSE(reply->write("late"));
  });
  server.route("GET", "/dropped", [](const HttpRequest&, const HttpReplyPtr& reply) {
    reply->begin({.content_type = "text/event-stream", .body = "one"});
  });
  server.start();
  RawClient whole(server.port());
  whole.send("GET /whole HTTP/1.1\r\nHost: x\r\n\r\n");
  CHECK(whole.read_until("0\r\n\r\n").ends_with("\r\n\r\n4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n"));
  RawClient old(server.port());
  old.send("GET /whole HTTP/1.0\r\n\r\n");
  CHECK(old.read_all().ends_with("\r\n\r\none two"));
  RawClient dropped(server.port());
  dropped.send("GET /dropped HTTP/1.1\r\nHost: x\r\n\r\n");
  CHECK(dropped.read_all().find("0\r\n\r\n") == std::string::npos);
}

TEST_CASE("a client that goes is noticed while its answer is waited for") {
  HttpServer server({});
  std::promise<void> gone;
  HttpReplyPtr kept;
  std::promise<void> has_come;
  server.route("GET", "/", [&](const HttpRequest&, const HttpReplyPtr& reply) {
    kept = reply;
    reply->on_gone([&gone] { gone.set_value(); });
    has_come.set_value();
  });
  server.start();
  RawClient client(server.port());
  client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  has_come.get_future().wait();
  client.close();
  CHECK(gone.get_future().wait_for(std::chrono::seconds(60)) == std::future_status::ready);
  CHECK_FALSE(kept->write("x"));
}

TEST_CASE("a client that does not read is given up once too much waits for it") {
  HttpServer server({.unread_bytes_max = 100000});
  std::promise<bool> outcome;
  server.route("GET", "/", [&](const HttpRequest&, const HttpReplyPtr& reply) {
    reply->begin({.content_type = "text/plain", .body = {}});
    const std::string piece(50000, 'x');
    bool is_open = true;
    // The kernel's own buffers swallow a few megabytes first.
    for (int i = 0; i < 100000 && is_open; ++i) is_open = reply->write(piece);
    outcome.set_value(is_open);
    reply->cut();
  });
  server.start();
  RawClient client(server.port());
  client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  CHECK_FALSE(outcome.get_future().get());
}

TEST_CASE("when all connections are taken the longest idle one gives way") {
  HttpServer server({.num_connections_max = 3});
  server.route("GET", "/", answer_ok);
  server.start();
  std::deque<RawClient> idle;
  for (int i = 0; i < 20; ++i) idle.emplace_back(server.port());
  RawClient client(server.port());
  client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  CHECK(starts_with_status(client.read_all(), 200));
  CHECK(idle.front().is_cut());
  CHECK(server.stats().num_open <= 3);
}

TEST_CASE("when all connections are at work a new one is told to come later") {
  HttpServer server({.num_connections_max = 1});
  std::promise<HttpReplyPtr> taken;
  server.route(
      "GET", "/", [&](const HttpRequest&, const HttpReplyPtr& reply) { taken.set_value(reply); });
  server.start();
  RawClient first(server.port());
  first.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  const HttpReplyPtr reply = taken.get_future().get();
  RawClient second(server.port());
  CHECK(starts_with_status(second.read_all(), 503));
  reply->send({.body = "{}"});
  CHECK(starts_with_status(first.read_response(), 200));
}

TEST_CASE("a drained server finishes what it has begun and takes nothing new") {
  HttpServer server({});
  std::promise<HttpReplyPtr> taken;
  server.route(
      "GET", "/", [&](const HttpRequest&, const HttpReplyPtr& reply) { taken.set_value(reply); });
  server.start();
  const int port = server.port();
  RawClient working(port), idle(port);
  working.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  const HttpReplyPtr reply = taken.get_future().get();
  auto drained = std::async(std::launch::async, [&] { return server.drain(60); });
  CHECK(idle.is_cut());  // so the drain has begun
  CHECK_THROWS(RawClient(port));
  reply->send({.body = "{}"});
  const std::string answer = working.read_all();
  CHECK(starts_with_status(answer, 200));
  CHECK(answer.find("Connection: close\r\n") != std::string::npos);
  working.close();
  CHECK(drained.get());
}

TEST_CASE("a drain that takes too long cuts what is left, and a reply may outlive its server") {
  HttpReplyPtr kept;
  {
    HttpServer server({});
    std::promise<void> taken;
    server.route("GET", "/", [&](const HttpRequest&, const HttpReplyPtr& reply) {
      kept = reply;
      taken.set_value();
    });
    server.start();
    RawClient client(server.port());
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    taken.get_future().wait();
    CHECK_FALSE(server.drain(0.01));
    CHECK(client.is_cut());
  }
  kept->send({.body = "nobody reads this"});
  CHECK_FALSE(kept->write("nor this"));
}

TEST_CASE("a handler that throws, and one that drops its reply, answer 500") {
  HttpServer server({});
  server.route(
      "GET", "/throws", [](const HttpRequest&, const HttpReplyPtr&) { fail("as the test wants"); });
  server.route("GET", "/drops", [](const HttpRequest&, const HttpReplyPtr&) {});
  server.start();
  for (const std::string path : {"/throws", "/drops"}) {
    RawClient client(server.port());
    client.send("GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    CHECK(starts_with_status(client.read_all(), 500));
  }
}

TEST_CASE("an address that cannot be had is named") {
  HttpServer server({});
  server.start();
  CHECK_THROWS_WITH_AS(HttpServer({.port = server.port()}).start(),
                       doctest::Contains(std::to_string(server.port()).c_str()),
                       Failure);
  CHECK_THROWS_WITH_AS(
      HttpServer({.host = "nowhere"}).start(), doctest::Contains("nowhere"), Failure);
  CHECK_THROWS_AS(HttpServer({.certificate_path = "/none.pem", .key_path = "/none.pem"}).start(),
                  Failure);
}

TEST_CASE("files are served with their type and tag, and nothing outside them") {
  const auto folder =
      std::filesystem::temp_directory_path() / ("pelago-static-" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder / "assets");
  std::ofstream(folder / "index.html") << "<h1>hello</h1>";
  std::ofstream(folder / "assets/app-Bx3_f2aQ.js") << "1";
  StaticFiles files;
  files.add("program.css", "body {}");
  files.add_folder(folder);
  std::filesystem::remove_all(folder);
  const auto get = [&](const std::string& path, const std::string& tag = "") {
    return files.response({.method = "GET", .path = path, .headers = {{"if-none-match", tag}}});
  };
  const auto header = [](const HttpResponse& response, std::string_view name) {
    for (const auto& [key, value] : response.headers) {
      if (key == name) return value;
    }
    return std::string();
  };
  const HttpResponse page = get("/");
  CHECK(page.body == "<h1>hello</h1>");
  CHECK(page.content_type == "text/html; charset=utf-8");
  CHECK(header(page, "Content-Security-Policy").find("script-src 'self';") != std::string::npos);
  CHECK(header(page, "Cache-Control") == "no-cache");
  CHECK(get("/", header(page, "ETag")).status == 304);
  CHECK(get("/", "\"other\"").status == 200);
  CHECK(header(get("/assets/app-Bx3_f2aQ.js"), "Cache-Control").find("immutable") !=
        std::string::npos);
  CHECK(get("/program.css").body == "body {}");
  for (const std::string path : {"/../etc/passwd",
                                 "//etc/passwd",
                                 "/assets/../../etc/passwd",
                                 "/assets",
                                 "/..",
                                 "/index.html/",
                                 "etc/passwd"}) {
    CHECK(get(path).status == 404);
  }
}

}  // namespace
}  // namespace pelago::serve
