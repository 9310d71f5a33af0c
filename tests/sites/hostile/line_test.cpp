// Over real sockets: a peer that has a good certificate and says what it likes, and a line that is
// cut in the middle of a frame. Whatever happens, the honest peer beside it is heard.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "base/clock.h"
#include "base/rng.h"
#include "patience.h"
#include "sites/hostile/certificates.h"
#include "sites/join/grpc_credentials.h"
#include "sites/next_frame.h"
#include "sites/transport/frame_assembly.h"
#include "wire.grpc.pb.h"

namespace pelago::sites {
namespace {

/// Speaks the line's protocol by hand.
class HostilePeer {
 public:
  HostilePeer(const Certificates& certificates, const std::string& address) {
    grpc::ChannelArguments arguments;
    arguments.SetSslTargetNameOverride("b");
    channel_ = grpc::CreateCustomChannel(
        address, line_channel_credentials({certificates.dir(), "hostile"}), arguments);
    stream_ = wire::Line::NewStub(channel_)->Deliver(&context_);
  }

  void say(FrameChunk chunk, bool with_checksum = true) {
    wire::Chunk message;
    message.set_from("hostile");
    message.set_session(chunk.session);
    message.set_frame(chunk.frame);
    message.set_kind(chunk.kind);
    message.set_head(chunk.head.data(), chunk.head.size());
    message.set_payload_bytes(chunk.frame_payload_bytes);
    message.set_offset(chunk.offset);
    message.set_payload(chunk.payload.data(), chunk.payload.size());
    message.set_oldest(chunk.oldest);
    message.set_checksum(with_checksum ? checksum_of(chunk) : 12345);
    stream_->Write(message);
  }
  /// What the other end says of it all.
  grpc::Status end() {
    stream_->WritesDone();
    wire::Taken taken;
    while (stream_->Read(&taken)) {
    }
    return stream_->Finish();
  }

 private:
  grpc::ClientContext context_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<grpc::ClientReaderWriter<wire::Chunk, wire::Taken>> stream_;
};

void check_that_a_is_heard(const Certificates& certificates, GrpcTransport& b) {
  const auto a = certificates.open("a");
  a->set_address("b", b.address());
  CHECK(a->send("b", {.from = "a", .kind = 5, .head = "{}", .payload = "honest"}));
  const auto heard = next_frame(b);
  REQUIRE(heard);
  CHECK(heard->from == "a");
  CHECK(heard->payload == "honest");
}

TEST_CASE("over a real line, impossible lengths and offsets end the stream of whoever sends them") {
  const Certificates certificates("lengths", {"a", "b", "hostile"});
  const auto b = certificates.open("b");
  const uint64_t huge = uint64_t{1} << 63U;
  const FrameChunk impossible[] = {
      {.session = 7, .frame = 0, .head = "{}", .frame_payload_bytes = huge, .payload = "x"},
      {.session = 7, .frame = 0, .head = "{}", .frame_payload_bytes = ~uint64_t{0}, .payload = ""},
      {.session = 7,
       .frame = 0,
       .head = "{}",
       .frame_payload_bytes = 1,
       .offset = huge,
       .payload = "x"},
      {.session = 7, .frame = huge, .head = "{}", .frame_payload_bytes = 1, .payload = "x"},
      {.session = 7, .frame = 0, .head = "{}", .frame_payload_bytes = 0, .payload = "more"}};
  for (const FrameChunk& chunk : impossible) {
    HostilePeer hostile(certificates, b->address());
    hostile.say(chunk);
    CHECK(hostile.end().error_code() == grpc::StatusCode::PERMISSION_DENIED);
  }
  CHECK_FALSE(next_frame(*b, 0.05));
  check_that_a_is_heard(certificates, *b);
}

TEST_CASE("over a real line, a chunk that was changed on its way is refused") {
  const Certificates certificates("checksum", {"a", "b", "hostile"});
  const auto b = certificates.open("b");
  HostilePeer hostile(certificates, b->address());
  hostile.say({.session = 7, .head = "{}", .frame_payload_bytes = 1, .payload = "x"},
              /*with_checksum=*/false);
  CHECK(hostile.end().error_code() == grpc::StatusCode::PERMISSION_DENIED);
  check_that_a_is_heard(certificates, *b);
}

TEST_CASE("over a real line, replayed and reordered frames come out once and in order") {
  const Certificates certificates("replay", {"a", "b", "hostile"});
  const auto b = certificates.open("b");
  const std::string payloads[] = {"zero", "one", "two"};
  const auto chunk = [&](uint64_t frame) {
    return FrameChunk{.session = 7,
                      .frame = frame,
                      .kind = 1,
                      .head = "{}",
                      .frame_payload_bytes = payloads[frame].size(),
                      .offset = 0,
                      .payload = payloads[frame]};
  };
  HostilePeer hostile(certificates, b->address());
  for (const uint64_t frame : {0, 0, 2, 0, 2, 1, 1}) hostile.say(chunk(frame));
  CHECK(hostile.end().ok());
  {
    HostilePeer again(certificates, b->address());  // the whole recording, on a new connection
    for (const uint64_t frame : {0, 1, 2}) again.say(chunk(frame));
    CHECK(again.end().ok());
  }
  for (const std::string& payload : payloads) {
    const auto heard = next_frame(*b);
    REQUIRE(heard);
    CHECK(heard->payload == payload);
  }
  CHECK_FALSE(next_frame(*b, 0.1));
  check_that_a_is_heard(certificates, *b);
}

/// Passes bytes on to a port, and breaks every connection when so many have gone by.
class CuttingProxy {
 public:
  CuttingProxy(int to_port, std::vector<int64_t> cuts_at_bytes)
      : to_port_(to_port), cuts_(std::move(cuts_at_bytes)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = loopback(0);
    ::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address);
    ::listen(listener_, 16);
    socklen_t num_bytes = sizeof address;
    ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &num_bytes);
    address_ = fmt::format("127.0.0.1:{}", ntohs(address.sin_port));
    thread_ = std::jthread([this](const std::stop_token& stop) { pass_on(stop); });
  }
  ~CuttingProxy() {
    thread_.request_stop();
    thread_.join();
    hang_up();
    ::close(listener_);
  }
  const std::string& address() const { return address_; }
  size_t num_cuts() const { return num_cuts_; }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  static sockaddr_in loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }
  void hang_up() {
    for (const int end : ends_) ::close(end);
    ends_.clear();
  }
  void accept_one() {
    const int from = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    const int to = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = loopback(to_port_);
    ::connect(to, reinterpret_cast<sockaddr*>(&address), sizeof address);
    ends_.push_back(from);  // neighbours are the two ends of one connection
    ends_.push_back(to);
  }
  // Returns false if the connection is gone.
  bool move(size_t idx) {
    char bytes[65536];
    const ssize_t got = ::recv(ends_[idx], bytes, sizeof bytes, 0);
    if (got <= 0) return false;
    for (ssize_t sent = 0; sent < got;) {
      const ssize_t now =
          ::send(ends_[idx ^ 1U], bytes + sent, static_cast<size_t>(got - sent), MSG_NOSIGNAL);
      if (now <= 0) return false;
      sent += now;
    }
    if (idx % 2 == 0) num_bytes_ += got;
    return true;
  }
  void pass_on(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      std::vector<pollfd> ready{{.fd = listener_, .events = POLLIN, .revents = 0}};
      for (const int end : ends_) ready.push_back({.fd = end, .events = POLLIN, .revents = 0});
      if (::poll(ready.data(), ready.size(), 10) <= 0) continue;
      bool is_whole = true;
      for (size_t idx = 0; idx + 1 < ready.size(); ++idx) {
        if (ready[idx + 1].revents != 0) is_whole = move(idx) && is_whole;
      }
      const bool is_due = num_cuts_ < cuts_.size() && num_bytes_ >= cuts_[num_cuts_];
      if (is_due) ++num_cuts_;
      if (is_due || !is_whole) {
        hang_up();
      } else if (ready[0].revents != 0) {
        accept_one();
      }
    }
  }

  int to_port_;
  std::vector<int64_t> cuts_;
  int listener_ = -1;
  std::string address_;
  std::vector<int> ends_;
  std::atomic<size_t> num_cuts_ = 0;
  std::atomic<int64_t> num_bytes_ = 0;
  std::jthread thread_;  // last: it uses the members above
};

TEST_CASE("a frame whose connections are cut twice goes on from where it was, and arrives whole") {
  const Certificates certificates("cut", {"a", "b", "hostile"});
  std::string payload(24'000'000, '\0');
  Rng rng(5);
  for (size_t i = 0; i < payload.size(); i += 997)
    payload[i] = static_cast<char>(rng.next_below(256));
  // How much is on its way at a cut is up to the machine.
  CHECK(testing::holds_at_some_pace([&](double) {
    const auto a = certificates.open("a"), b = certificates.open("b");
    const std::string at = b->address();
    CuttingProxy proxy(std::stoi(at.substr(at.rfind(':') + 1)), {8'000'000, 18'000'000});
    a->set_address("b", proxy.address());
    CHECK(a->send("b", {.from = "a", .kind = 1, .head = "{}", .payload = payload}));
    const auto heard = next_frame(*b);
    if (!heard) return false;  // nothing moved for so long that the line was given up
    CHECK((heard->payload == payload));
    CHECK(proxy.num_cuts() == 2);  // the fault fired
    const int64_t resent = a->traffic().at("b").resent_bytes;
    CHECK(resent > 0);
    // What was on its way at two cuts; begun anew each time, it would have been 26 MB.
    return resent < 16'000'000 && proxy.num_bytes() < 42'000'000;
  }));
}

}  // namespace
}  // namespace pelago::sites
