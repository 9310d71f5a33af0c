// How much of a long line does the transport fill? Payload bytes a second that it brings to the
// other end over what iperf3 brings with as many streams, on the same packet-level line: the two
// take turns, medians of three.
#include <filesystem>

#include "base/clock.h"
#include "base/files.h"
#include "base/rng.h"
#include "bench/report.h"
#include "sites/grpc_transport.h"
#include "sites/tls.h"
#include "tests/wan/output_of.h"
#include "tests/wan/packet_line.h"

namespace pelago::bench {
namespace {

namespace fs = std::filesystem;

constexpr int kTurns = 3;
constexpr double kSeconds = 8;
constexpr uint32_t kLastFrame = 9;
constexpr int64_t kFramesQueued = 4;
constexpr int64_t kFrameBytes =
    1'250'000;  // a fragment's slice of 10 M parameters at 4 bits, P = 2

struct Case {
  std::string rate_mbit, loss_percent;
  double rtt_ms;
};
const std::map<std::string, Case>& cases() {
  static const std::map<std::string, Case> table = {
      {"thin100", {"100", "0.1", 60}},
      {"thin20", {"20", "0.1", 60}},
      {"lossy", {"100", "1", 60}},
      {"clean200", {"200", "0.01", 30}},
      {"uneven", {"100:20", "0.1", 60}},
  };
  return table;
}

std::unique_ptr<sites::GrpcTransport> open_end(const fs::path& certs,
                                               const std::string& name,
                                               const std::string& listen,
                                               int num_streams) {
  sites::GrpcTransportOptions options;
  options.name = name;
  options.certs_dir = certs;
  options.listen = listen;
  options.num_streams = num_streams;
  return std::make_unique<sites::GrpcTransport>(options);
}

// The far end: takes what comes until it is told that this was all.
int receive_all(const fs::path& certs, const std::string& listen, int num_streams) {
  const auto end = open_end(certs, "b", listen, num_streams);
  while (const auto arrival = end->receive(20)) {
    if (arrival->frame && arrival->frame->kind == kLastFrame) return kExitDone;
  }
  fail("nothing more came, and it was not all");
}

// Says how many Mbit/s of payload were acknowledged, from the first byte sent to the last
// acknowledgement. A frame ahead of that makes the connections, as iperf3 does before its clock.
int send_all(const fs::path& certs, const std::string& to, const std::string& listen, int streams) {
  const auto end = open_end(certs, "a", listen, streams);
  end->set_address("b", to);
  std::string noise(kFrameBytes, '\0');
  Rng rng(1);
  for (char& byte : noise) byte = static_cast<char>(rng.next_u64());
  const auto send = [&](uint32_t kind, const std::string& payload) {
    if (!end->send("b", {.from = "a", .kind = kind, .head = "{}", .payload = payload})) {
      fail("the queue is full");
    }
  };
  send(1, noise);
  end->flush(20);
  const double begin_s = steady_now_s();
  int64_t num_bytes = 0;
  while (steady_now_s() < begin_s + kSeconds) {
    if (end->num_queued("b") < kFramesQueued) {
      send(1, noise);
      num_bytes += kFrameBytes;
    } else {
      sleep_until_s(steady_now_s() + 0.002);
    }
  }
  end->flush(30);
  if (end->num_queued("b") > 0) fail("the line is stuck");
  fmt::print("{}\n", static_cast<double>(num_bytes) * 8e-6 / (steady_now_s() - begin_s));
  send(kLastFrame, "");
  end->flush(5);
  return kExitDone;
}

double transport_mbit_s(
    wan::PacketLine& line, const fs::path& certs, int streams, bool back, int port) {
  const std::string self = program_path().string();
  const int from = back ? 1 : 0, to = back ? 0 : 1;
  const std::string words =
      fmt::format("{} --certs {} --streams {}", self, certs.string(), streams);
  const std::string sender = fmt::format("{}{} --send {}:{} --listen {}:0",
                                         line.at(from),
                                         words,
                                         line.address(to),
                                         port,
                                         line.address(from));
  const std::string receiver =
      fmt::format("{}{} --receive {}:{}", line.at(to), words, line.address(to), port);
  return std::stod(wan::output_of(fmt::format("({} >&2 &) ; {}", receiver, sender)));
}

double iperf_mbit_s(wan::PacketLine& line, int streams, bool back) {
  const int from = back ? 1 : 0, to = back ? 0 : 1;
  wan::output_of(line.at(to) + "iperf3 -s -1 -D >/dev/null; sleep 0.3");
  const auto json = nlohmann::json::parse(wan::output_of(fmt::format(
      "{}iperf3 -c {} -P {} -t {} -J", line.at(from), line.address(to), streams, kSeconds)));
  return json["end"]["sum_received"]["bits_per_second"].get<double>() * 1e-6;
}

void measure(Report& report, int streams) {
  if (const auto obstacle = wan::PacketLine::obstacle()) fail_usage("goodput: {}", *obstacle);
  const Case& chosen = cases().at(report.case_name);
  const fs::path certs = fs::temp_directory_path() / fmt::format("pelago-goodput-{}", ::getpid());
  sites::make_certificates(certs, {"a", "b"});
  wan::PacketLine line({.num_sites = 2,
                        .rate_mbit = chosen.rate_mbit,
                        .rtt_ms = chosen.rtt_ms,
                        .loss_percent = chosen.loss_percent});
  const bool back = report.case_name == "uneven";
  std::vector<double> ours, theirs, ratios;
  for (int turn = 0; turn < kTurns; ++turn) {
    theirs.push_back(iperf_mbit_s(line, streams, back));
    ours.push_back(transport_mbit_s(line, certs, streams, back, 4700 + turn));
    ratios.push_back(ours.back() / theirs.back());
    std::fprintf(stderr, "turn %d: %.2f Mbit/s, iperf3 %.2f\n", turn, ours.back(), theirs.back());
  }
  fs::remove_all(certs);
  report.metrics["transport_mbit_s"] = median(ours);
  report.metrics["iperf3_mbit_s"] = median(theirs);
  report.metrics["streams"] = streams;
  report.ratio = median(ratios);
  report.target = 0.90;
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  using namespace pelago::bench;
  std::vector<std::string> names;
  for (const auto& [name, chosen] : cases()) names.push_back(name);
  std::iter_swap(names.begin(), std::find(names.begin(), names.end(), "thin100"));
  Program program("goodput", "How much of a long line does the transport fill?", names);
  int streams = 4;
  std::string certs, to, receive_at, listen = "127.0.0.1:0";
  program.options().add_option("--streams", streams, "parallel streams, of iperf3 too");
  // For the two ends, which this program starts in namespaces of their own.
  program.options().add_option("--certs", certs)->group("");
  program.options().add_option("--send", to)->group("");
  program.options().add_option("--listen", listen)->group("");
  program.options().add_option("--receive", receive_at)->group("");
  return program.run(argc, argv, [&](Report& report) {
    if (!receive_at.empty()) std::exit(receive_all(certs, receive_at, streams));
    if (!to.empty()) std::exit(send_all(certs, to, listen, streams));
    measure(report, streams);
  });
}
