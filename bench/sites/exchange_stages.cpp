// What does an exchange gain from parts? Two members on one machine, an emulated line between them:
// a fragment is quantised, sent, summed, sent again and applied, once as a whole, one stage after
// the other, and once in parts, where the stages of unlike parts overlap. The ratio is the time of
// the whole over that in parts.
#include <unistd.h>

#include <array>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "bench/report.h"
#include "sites/exchange/exchange_parts.h"
#include "sites/grpc_transport.h"
#include "sites/protocol/messages.h"
#include "sites/tls.h"

namespace pelago::bench {
namespace {

namespace fs = std::filesystem;

struct Case {
  double rate_mbit_s;
  double rtt_ms;
  int bits;
  double million_values;  // of a fragment, unless asked otherwise
};
const std::map<std::string, Case>& cases() {
  static const std::map<std::string, Case> table = {{"100mbit", {100, 60, 4, 8}},
                                                    {"20mbit-thin", {20, 60, 2, 8}},
                                                    {"1gbit", {1000, 20, 4, 8}},
                                                    {"10gbit", {10000, 20, 4, 8}}};
  return table;
}

std::vector<float> normal_values(size_t num_values, uint64_t seed) {
  Rng rng = Rng(seed).fork("values");
  std::vector<float> values(num_values);
  for (float& value : values) value = static_cast<float>(1e-3 * rng.next_normal());
  return values;
}

/// One of the two, as an agent carries an exchange out.
class End {
 public:
  End(const fs::path& certs, int64_t idx, const Case& chosen, std::span<const float> global)
      : idx_(idx),
        state_({global.begin(), global.end()}, {{0, static_cast<int64_t>(global.size())}}) {
    sites::GrpcTransportOptions options;
    options.name = name(idx);
    options.certs_dir = certs;
    options.emulated_line = [chosen](const std::string&) {
      return sites::LineOptions{.bandwidth_mbit_s = chosen.rate_mbit_s, .rtt_ms = chosen.rtt_ms};
    };
    transport_ = std::make_unique<sites::GrpcTransport>(options);
  }

  void know(const End& other) {
    transport_->set_address(name(other.idx_), other.transport_->address());
  }

  /// Until the other end answers.
  void meet() {
    say({.exchange = -1, .payload = {}});
    hear(20);
  }

  void exchange(const sites::ExchangeSpec& shared, std::span<const float> local) {
    sites::ExchangeSpec spec = shared;
    spec.member_idx = idx_;
    sites::ExchangeParts work(spec, state_.global(), local, {});
    sites::FragmentOutcome outcome;
    std::vector<sites::Slice> early;
    int64_t num_applied = 0;
    while (num_applied < work.num_parts()) {
      if (work.has_more()) {
        const int64_t part = work.begin_next();
        say({.part = part, .payload = work.part(part).delta_slice(1 - idx_)});
        for (sites::Slice& slice : std::exchange(early, {})) {
          num_applied += take(work, std::move(slice), early, outcome);
        }
      }
      sites::Slice slice = hear(work.has_more() ? 0 : 20);
      if (slice.exchange >= 0) num_applied += take(work, std::move(slice), early, outcome);
    }
    outcome.hash = sites::hash_fragment(outcome.global, outcome.momentum);
    state_.apply(0, 0, outcome);
  }

 private:
  static std::string name(int64_t idx) { return idx == 0 ? "a" : "b"; }

  void say(sites::Slice slice) {
    if (!transport_->send(name(1 - idx_), sites::encode(name(idx_), std::move(slice)))) {
      fail("the queue is full");
    }
  }

  /// exchange -1: nothing came in that time.
  sites::Slice hear(double timeout_s) {
    const auto arrival = transport_->receive(timeout_s);
    if (!arrival && timeout_s > 0) fail("nothing more came, and it was not all");
    if (!arrival || !arrival->frame) return {.exchange = -1, .payload = {}};
    const Result<sites::Message> message = sites::decode(*arrival->frame);
    if (!message) fail("{}", message.error().message);
    return std::get<sites::Slice>(*message);
  }

  /// Returns how many parts it has completed: 0 or 1.
  int64_t take(sites::ExchangeParts& work,
               sites::Slice slice,
               std::vector<sites::Slice>& early,
               sites::FragmentOutcome& outcome) {
    if (slice.part >= work.num_begun()) {
      early.push_back(std::move(slice));
      return 0;
    }
    sites::FragmentExchange& part = work.part(slice.part);
    const Status taken = slice.of_mean ? part.accept_mean(1 - idx_, slice.payload)
                                       : part.accept_delta(1 - idx_, slice.payload);
    if (!taken) fail("{}", taken.error().message);
    if (!slice.of_mean) {
      say({.part = slice.part, .of_mean = true, .payload = part.mean_slice(1 - idx_)});
      if (!part.has_mean(1 - idx_)) return 0;
    }
    if (!part.is_whole()) return 0;
    state_.outer_step_of_part(0, work.range(slice.part).begin, part.mean(), {}, outcome);
    return 1;
  }

  int64_t idx_;
  sites::GlobalState state_;
  std::unique_ptr<sites::GrpcTransport> transport_;
};

/// Seconds until both hold the outcome.
double exchange_s(std::array<End*, 2> ends,
                  const sites::ExchangeSpec& spec,
                  const std::array<std::vector<float>, 2>& locals) {
  const double begin_s = steady_now_s();
  std::thread other([&] { ends[1]->exchange(spec, locals[1]); });
  ends[0]->exchange(spec, locals[0]);
  other.join();
  return steady_now_s() - begin_s;
}

void measure(Report& report, double million_values, int num_turns) {
  Case chosen = cases().at(report.case_name);
  if (million_values > 0) chosen.million_values = million_values;
  const auto num_values = static_cast<size_t>(1e6 * chosen.million_values);
  const fs::path certs = fs::temp_directory_path() / fmt::format("pelago-exchange-{}", ::getpid());
  sites::make_certificates(certs, {"a", "b"});
  const std::vector<float> global = normal_values(num_values, 1);
  const std::array<std::vector<float>, 2> locals{normal_values(num_values, 2),
                                                 normal_values(num_values, 3)};
  End first(certs, 0, chosen, global), second(certs, 1, chosen, global);
  first.know(second);
  second.know(first);
  std::thread other([&] { second.meet(); });
  first.meet();
  other.join();
  fs::remove_all(certs);
  sites::ExchangeSpec spec{.bits = chosen.bits, .tokens = {1, 1}};
  std::vector<double> parts_s, whole_s, ratios;
  for (int turn = 0; turn < num_turns; ++turn) {
    sites::ExchangeSpec whole = spec;
    whole.part_values = static_cast<int64_t>(num_values) + 1;
    whole_s.push_back(exchange_s({&first, &second}, whole, locals));
    parts_s.push_back(exchange_s({&first, &second}, spec, locals));
    ratios.push_back(whole_s.back() / parts_s.back());
  }
  report.metrics["values_million"] = chosen.million_values;
  report.metrics["whole_ms"] = 1e3 * median(whole_s);
  report.metrics["parts_ms"] = 1e3 * median(parts_s);
  report.ratio = median(ratios);
  report.target = 1.0;
  report.notes.push_back("ratio: time of the whole over time in parts");
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  using namespace pelago::bench;
  Program program("exchange_stages",
                  "What does an exchange gain from being done in parts?",
                  {"100mbit", "20mbit-thin", "1gbit", "10gbit"});
  double million_values = 0;
  int num_turns = 5;
  program.options().add_option("--million-values", million_values, "of the fragment");
  program.options().add_option("--turns", num_turns, "of each, medians of these");
  return program.run(
      argc, argv, [&](Report& report) { measure(report, million_values, num_turns); });
}
