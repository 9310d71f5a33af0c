// Join tokens and the door, without processes.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "sites/grpc_transport.h"
#include "sites/join/grpc_door.h"
#include "sites/join/join_token.h"
#include "sites/tls.h"

namespace pelago::sites {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kNow = 1'800'000'000;

/// A folder of this test alone.
fs::path fresh_join_folder(const std::string& name) {
  const fs::path folder = fs::temp_directory_path() / ("pelago-join-" + name);
  fs::remove_all(folder);
  fs::create_directories(folder);
  return folder;
}

JoinToken issued(TokenBook& book, const TokenTerms& terms) {
  return read_join_token(book.issue("run", "guizhou", "PEM", terms, kNow));
}

TEST_CASE("a token lets in one key, again and again, and no other") {
  TokenBook book(fresh_join_folder("once"));
  const JoinToken token = issued(book, {});
  for (int start = 0; start < 3; ++start) {
    const auto site = book.admit(token.id, token.secret, "key1", kNow + start);
    REQUIRE(site);
    CHECK(*site == "guizhou");
  }
  const auto other = book.admit(token.id, token.secret, "key2", kNow);
  REQUIRE_FALSE(other);
  CHECK(other.error().code == ErrorCode::kRefused);
}

TEST_CASE("a token of three uses lets in three keys") {
  TokenBook book(fresh_join_folder("thrice"));
  const JoinToken token = issued(book, {.valid_s = 60, .uses = 3});
  for (const char* key : {"a", "b", "c"}) CHECK(book.admit(token.id, token.secret, key, kNow));
  CHECK_FALSE(book.admit(token.id, token.secret, "d", kNow));
  CHECK(book.admit(token.id, token.secret, "b", kNow));
}

TEST_CASE("an expired token lets in nobody new, but whoever it let in may come back") {
  TokenBook book(fresh_join_folder("expired"));
  const JoinToken token = issued(book, {.valid_s = 60, .uses = 2});
  CHECK(book.admit(token.id, token.secret, "key1", kNow + 59));
  CHECK_FALSE(book.admit(token.id, token.secret, "key2", kNow + 60));
  CHECK(book.admit(token.id, token.secret, "key1", kNow + 6000));
}

TEST_CASE("a wrong secret is refused, for a key that is in too") {
  TokenBook book(fresh_join_folder("secret"));
  const JoinToken token = issued(book, {});
  CHECK(book.admit(token.id, token.secret, "key1", kNow));
  CHECK_FALSE(book.admit(token.id, token.secret + "0", "key1", kNow));
  CHECK_FALSE(book.admit(token.id, "", "key1", kNow));
  CHECK_FALSE(book.admit("", "", "key1", kNow));
}

TEST_CASE("what a book admitted outlives the process, and two books of one folder are one") {
  const fs::path dir = fresh_join_folder("book");
  TokenBook first(dir);
  const JoinToken token = issued(first, {});
  CHECK(TokenBook(dir).admit(token.id, token.secret, "key1", kNow));
  CHECK_FALSE(first.admit(token.id, token.secret, "key2", kNow));
}

TEST_CASE(
    "a token that let a site in is kept for its return, one that expired unused is replaced") {
  TokenBook book(fresh_join_folder("ensure"));
  const JoinToken first = read_join_token(book.ensure("run", "s", "PEM", {.valid_s = 60}, kNow));
  CHECK(read_join_token(book.ensure("run", "s", "PEM", {}, kNow + 30)).id == first.id);
  const JoinToken second = read_join_token(book.ensure("run", "s", "PEM", {}, kNow + 61));
  CHECK(second.id != first.id);
  CHECK(book.admit(second.id, second.secret, "key", kNow + 61));
  CHECK(read_join_token(book.ensure("run", "s", "PEM", {}, kNow + 1'000'000)).id == second.id);
}

TEST_CASE(
    "tokens and their book can be read by their owner alone, and hold no secret but their own") {
  const fs::path dir = fresh_join_folder("private") / "tokens";
  TokenBook book(dir);
  const JoinToken token = issued(book, {});
  struct stat info {};
  REQUIRE(::stat(dir.c_str(), &info) == 0);
  CHECK((info.st_mode & 0777U) == 0700U);
  CHECK(read_text_file(dir / "book.json").find(token.secret) == std::string::npos);
}

TEST_CASE("the door signs the key that asks under the token's name, whatever the request says") {
  const fs::path dir = fresh_join_folder("door");
  make_certificates(dir / "certs", {});
  Door door(dir / "certs", dir / "tokens", {.job_toml = "j", .plan_json = "p", .config_json = ""});
  GrpcTransportOptions line;
  line.name = "coordinator";
  line.certs_dir = dir / "certs";
  line.door = door.service();
  const GrpcTransport coordinator(line);
  TokenBook book(dir / "tokens");
  const std::string authority = read_text_file(dir / "certs" / "ca.pem");
  const JoinToken token = read_join_token(
      book.issue("run", "guizhou", authority, {.valid_s = 1 << 30, .uses = 1}, kNow));
  const fs::path site = dir / "site";
  fs::create_directories(site);
  const std::string request = make_certificate_request(site / "guizhou.key", "guizhou");
  auto answer = ask_at_door(coordinator.address(), token, request, 10);
  REQUIRE(answer);
  CHECK(answer->site == "guizhou");
  CHECK(answer->files.plan_json == "p");
  write_file(site / "ca.pem", authority);
  write_file(site / "guizhou.pem", answer->certificate);
  CHECK(problem_of_identity(site, "guizhou") == "");
  CHECK(problem_of_identity(site, "lingang") != "");

  const auto torn = ask_at_door(coordinator.address(), token, request.substr(0, 60), 10);
  REQUIRE_FALSE(torn);
  CHECK(torn.error().code == ErrorCode::kRefused);
  const auto long_one = ask_at_door(coordinator.address(), token, std::string(100'000, 'x'), 10);
  REQUIRE_FALSE(long_one);
  CHECK(long_one.error().code == ErrorCode::kRefused);
  const auto events = door.take_events();
  REQUIRE(events.size() == 3);
  CHECK(events[0].first == "site_admitted");
  CHECK(events[1].first == "join_refused");
}

TEST_CASE("renewed certificates are for the same keys and names") {
  const fs::path dir = fresh_join_folder("renewed");
  make_certificates(dir, {"a", "b"}, /*valid_s=*/0);
  CHECK(problem_of_identity(dir, "a").find("expired") != std::string::npos);
  const std::string key = read_text_file(dir / "a.key");
  CHECK(renew_certificates(dir) == std::vector<std::string>{"a", "b", "coordinator"});
  for (const CertificateCheck& check : check_certificates(dir)) CHECK(check.problem == "");
  CHECK(read_text_file(dir / "a.key") == key);
}

}  // namespace
}  // namespace pelago::sites
