#include <doctest/doctest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "base/clock.h"
#include "base/error.h"
#include "base/files.h"
#include "patience.h"
#include "sites/grpc_transport.h"
#include "sites/journal.h"
#include "sites/next_frame.h"
#include "sites/tls.h"
#include "sites/transport/emulated_line.h"

namespace pelago::sites {
namespace {

namespace fs = std::filesystem;

fs::path fresh_folder(const std::string& name) {
  const fs::path folder = fs::temp_directory_path() / ("pelago-" + name);
  fs::remove_all(folder);
  fs::create_directories(folder);
  return folder;
}

std::string problem_with(const std::vector<CertificateCheck>& checks, const std::string& name) {
  for (const CertificateCheck& check : checks) {
    if (check.name == name) return check.problem;
  }
  return "not checked";
}

std::unique_ptr<GrpcTransport> open_end(const fs::path& certs,
                                        const std::string& name,
                                        std::optional<LineOptions> emulated = {}) {
  GrpcTransportOptions options;
  options.name = name;
  options.certs_dir = certs;
  options.emulated_line = [emulated](const std::string&) { return emulated; };
  return std::make_unique<GrpcTransport>(options);
}

int connect_to(const std::string& address) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int connection = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  REQUIRE(::connect(connection, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0);
  return connection;
}

TEST_CASE("certificates that were made are good, and keys are their owner's alone") {
  const fs::path dir = fresh_folder("certs-made");
  make_certificates(dir, {"lingang", "guizhou"});
  const auto checks = check_certificates(dir);
  CHECK(checks.size() == 4);  // ca, coordinator, two sites
  for (const CertificateCheck& check : checks) CHECK(check.problem == "");
  struct stat info {};
  REQUIRE(::stat((dir / "lingang.key").c_str(), &info) == 0);
  CHECK((info.st_mode & 0777U) == 0600U);
}

TEST_CASE("making certificates again keeps what is there and adds a new site") {
  const fs::path dir = fresh_folder("certs-again");
  make_certificates(dir, {"lingang"});
  const std::string before = read_text_file(dir / "lingang.pem");
  make_certificates(dir, {"lingang", "horqin"});
  CHECK(read_text_file(dir / "lingang.pem") == before);
  CHECK(problem_with(check_certificates(dir), "horqin.pem") == "");
}

TEST_CASE("a foreign, renamed or open certificate is found out") {
  const fs::path dir = fresh_folder("certs-bad"), other = fresh_folder("certs-other");
  make_certificates(dir, {"a", "b", "c"});
  make_certificates(other, {"a"});
  fs::copy_file(other / "a.pem", dir / "a.pem", fs::copy_options::overwrite_existing);
  fs::copy_file(dir / "c.pem", dir / "b.pem", fs::copy_options::overwrite_existing);
  ::chmod((dir / "c.key").c_str(), 0644);
  const auto checks = check_certificates(dir);
  CHECK(problem_with(checks, "a.pem").find("another authority") != std::string::npos);
  CHECK(problem_with(checks, "b.pem").find("is not for b") != std::string::npos);
  CHECK(problem_with(checks, "c.pem").find("readable by others") != std::string::npos);
  CHECK(problem_with(check_certificates(fresh_folder("certs-none")), "ca.pem") != "");
}

TEST_CASE("a site may not be called coordinator, nor have a path for a name") {
  const fs::path dir = fresh_folder("certs-names");
  CHECK_THROWS_AS(make_certificates(dir, {"coordinator"}), Failure);
  CHECK_THROWS_AS(make_certificates(dir, {"../x"}), Failure);
  CHECK_THROWS_AS(make_certificates(dir, {""}), Failure);
}

TEST_CASE("frames of any size arrive whole and in order over TLS") {
  const fs::path certs = fresh_folder("grpc-frames");
  make_certificates(certs, {"a", "b"});
  const auto a = open_end(certs, "a"), b = open_end(certs, "b");
  a->set_address("b", b->address());
  const std::string large(5'000'000, 'x');
  CHECK(a->send("b", {.from = "a", .kind = 7, .head = "{}", .payload = ""}));
  CHECK(a->send("b", {.from = "a", .kind = 8, .head = "{1}", .payload = large}));
  const auto first = next_frame(*b), second = next_frame(*b);
  REQUIRE(first);
  REQUIRE(second);
  CHECK(first->kind == 7);
  CHECK(first->from == "a");
  CHECK(second->head == "{1}");
  CHECK(second->payload == large);
  CHECK(a->traffic().at("b").sent_payload_bytes == 5'000'000);
  CHECK_FALSE(a->send("nobody", {.from = "a", .kind = 0, .head = "", .payload = ""}));
}

TEST_CASE("a certificate that is renewed under a line is taken up by new connections") {
  const fs::path certs = fresh_folder("grpc-renewed");
  make_certificates(certs, {"a", "b"}, /*valid_s=*/0);
  const auto a = open_end(certs, "a"), b = open_end(certs, "b");
  a->set_address("b", b->address());
  CHECK(a->send("b", {.from = "a", .kind = 1, .head = "{}", .payload = ""}));
  CHECK_FALSE(next_frame(*b, 0.3));  // both have expired
  renew_certificates(certs);
  std::optional<Frame> heard;
  const double deadline_s = steady_now_s() + 60;
  while (!heard && steady_now_s() < deadline_s) {
    a->send("b", {.from = "a", .kind = 1, .head = "{}", .payload = ""});
    heard = next_frame(*b, 0.2);
  }
  REQUIRE(heard);
  CHECK(heard->from == "a");
}

TEST_CASE("a peer with a certificate of another authority is not heard") {
  const fs::path certs = fresh_folder("grpc-ca"), other = fresh_folder("grpc-other-ca");
  make_certificates(certs, {"a", "b"});
  make_certificates(other, {"a", "b"});
  const auto stranger = open_end(other, "a"), b = open_end(certs, "b");
  stranger->set_address("b", b->address());
  stranger->send("b", {.from = "a", .kind = 1, .head = "{}", .payload = ""});
  CHECK_FALSE(next_frame(*b, 0.3));
}

TEST_CASE("a site that speaks under another's name is not heard, and the true one is") {
  const fs::path certs = fresh_folder("grpc-name");
  make_certificates(certs, {"a", "b", "c"});
  // The key is c's, the name it gives is a's.
  const fs::path forged = fresh_folder("grpc-forged");
  fs::copy_file(certs / "ca.pem", forged / "ca.pem");
  fs::copy_file(certs / "c.pem", forged / "a.pem");
  fs::copy_file(certs / "c.key", forged / "a.key");
  const auto b = open_end(certs, "b"), liar = open_end(forged, "a"), a = open_end(certs, "a");
  liar->set_address("b", b->address());
  liar->send("b", {.from = "a", .kind = 1, .head = "{}", .payload = ""});
  CHECK_FALSE(next_frame(*b, 0.2));
  a->set_address("b", b->address());
  a->send("b", {.from = "a", .kind = 2, .head = "{}", .payload = ""});
  const auto heard = next_frame(*b);
  REQUIRE(heard);
  CHECK(heard->kind == 2);
}

TEST_CASE("a frame above the bound is refused before memory is taken") {
  const fs::path certs = fresh_folder("grpc-bound");
  make_certificates(certs, {"a", "b"});
  GrpcTransportOptions options;
  options.name = "b";
  options.certs_dir = certs;
  options.frame_bytes_max = 1000;
  GrpcTransport b(options);
  const auto a = open_end(certs, "a");
  a->set_address("b", b.address());
  a->send("b", {.from = "a", .kind = 1, .head = "", .payload = std::string(1001, 'x')});
  CHECK_FALSE(next_frame(b, 0.2));
}

TEST_CASE("a connection that only drips, and a flood of silent ones, keep no peer from its line") {
  const fs::path certs = fresh_folder("grpc-drip");
  make_certificates(certs, {"a", "b"});
  GrpcTransportOptions options;
  options.name = "b";
  options.certs_dir = certs;
  options.handshake_s = 0.3;
  GrpcTransport b(options);
  std::vector<int> strangers;
  for (int i = 0; i < 200; ++i) strangers.push_back(connect_to(b.address()));
  const auto a = open_end(certs, "a");
  a->set_address("b", b.address());
  a->send("b", {.from = "a", .kind = 3, .head = "{}", .payload = ""});
  CHECK(next_frame(b));
  // All of them are hung up on, though the first sends a byte now and then.
  const double deadline_s = steady_now_s() + 60;
  for (const int stranger : strangers) {
    char byte = 0x16;
    pollfd hung_up{.fd = stranger, .events = POLLIN, .revents = 0};
    while (::poll(&hung_up, 1, 20) == 0 && steady_now_s() < deadline_s) {
      (void)::send(stranger, &byte, 1, MSG_NOSIGNAL);
    }
    CHECK(::recv(stranger, &byte, 1, MSG_DONTWAIT) <= 0);
    ::close(stranger);
  }
  CHECK(steady_now_s() < deadline_s);
}

TEST_CASE("a taken port is said so") {
  const fs::path certs = fresh_folder("grpc-port");
  make_certificates(certs, {"a", "b"});
  const auto a = open_end(certs, "a");
  GrpcTransportOptions options;
  options.name = "b";
  options.certs_dir = certs;
  options.listen = a->address();
  CHECK_THROWS_AS(GrpcTransport{options}, Failure);
}

TEST_CASE("a lost peer is reported") {
  const fs::path certs = fresh_folder("grpc-lost");
  make_certificates(certs, {"a", "b"});
  auto a = open_end(certs, "a");
  const auto b = open_end(certs, "b");
  a->set_address("b", b->address());
  a->send("b", {.from = "a", .kind = 1, .head = "{}", .payload = ""});
  REQUIRE(next_frame(*b));
  a.reset();
  const auto lost = b->receive(60);
  REQUIRE(lost);
  CHECK(lost->peer == "a");
  CHECK_FALSE(lost->frame);
}

TEST_CASE("frames for workers that a line gave up are told, others are not counted") {
  const fs::path certs = fresh_folder("grpc-given-up");
  make_certificates(certs, {"a", "b"});
  GrpcTransportOptions options;
  options.name = "a";
  options.certs_dir = certs;
  options.patience_s = 0.01;
  options.fast_kind_min = 100;
  options.on_fast_frame = [](const Frame&) { return true; };
  GrpcTransport a(options);
  a.set_address("b", "127.0.0.1:1");  // nobody listens there
  for (const uint32_t kind : {1U, 100U, 101U}) {
    a.send("b", {.from = "a", .kind = kind, .head = "{}", .payload = ""});
  }
  int64_t num_lost = 0;
  const double deadline_s = steady_now_s() + 60;
  while (num_lost == 0 && steady_now_s() < deadline_s) {
    const auto arrival = a.receive(1);
    if (arrival && arrival->peer == "b") num_lost += arrival->num_lost;
  }
  CHECK(num_lost == 2);
  CHECK(a.num_queued("b") == 0);
}

TEST_CASE("an emulated line adds half a round trip once and lets frames follow one another") {
  EmulatedLine line({.bandwidth_mbit_s = 8, .rtt_ms = 100});  // 1 MB/s, 50 ms
  CHECK(line.arrival_s(10, 100'000) == doctest::Approx(10.15));
  CHECK(line.arrival_s(10, 100'000) == doctest::Approx(10.25));
  CHECK(line.arrival_s(20, 1000) == doctest::Approx(20.051));
}

TEST_CASE("frames over an emulated line take the time its bandwidth and delay say") {
  const fs::path certs = fresh_folder("grpc-emulated");
  make_certificates(certs, {"a", "b"});
  CHECK(testing::holds_at_some_pace([&](double scale) {
    // 20 Mbit/s and 100 ms: 100 kB need 40 ms on the line and 50 ms on the way.
    const LineOptions line{.bandwidth_mbit_s = 20 / scale, .rtt_ms = 100 * scale};
    const auto a = open_end(certs, "a", line), b = open_end(certs, "b");
    a->set_address("b", b->address());
    a->send("b", {.from = "a", .kind = 0, .head = "{}", .payload = ""});
    REQUIRE(next_frame(*b));  // the connection stands now
    const double begin_s = steady_now_s();
    for (int i = 0; i < 3; ++i) {
      a->send("b", {.from = "a", .kind = 1, .head = "", .payload = std::string(100'000, 'x')});
    }
    for (int i = 0; i < 3; ++i) REQUIRE(next_frame(*b));
    const double took_s = steady_now_s() - begin_s;
    CHECK(took_s >= 0.169 * scale);  // 3 x 40 ms + 50 ms
    return took_s < 0.4 * scale;
  }));
}

TEST_CASE("a journal remembers commits over a restart") {
  const fs::path path = fresh_folder("journal") / "journal.sqlite";
  {
    Journal journal(path);
    CHECK_FALSE(journal.last_round());
    for (int64_t exchange = 0; exchange < 3; ++exchange) {
      REQUIRE(journal.record_commit({.exchange = exchange,
                                     .epoch = 4 + exchange,
                                     .members = {{.site = "a", .address = "", .tokens = 10},
                                                 {.site = "b", .address = "", .tokens = 20}},
                                     .hash = "h",
                                     .donors = {}}));
    }
    REQUIRE(journal.record_event("site_lost", "{}"));
  }
  Journal journal(path);
  REQUIRE(journal.last_round());
  CHECK(journal.last_round()->exchange == 2);
  CHECK(journal.last_round()->members == "a,b");
  CHECK(journal.last_round()->tokens == "10,20");
  CHECK(journal.num_events() == 1);
  REQUIRE(journal.write({{.key = "commit/2", .value = {}}}));
  CHECK(journal.last_round()->exchange == 1);
}

TEST_CASE("a journal that cannot be opened is named") {
  CHECK_THROWS_AS(Journal("/no/such/folder/journal.sqlite"), Failure);
}

}  // namespace
}  // namespace pelago::sites
