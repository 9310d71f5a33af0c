// What would an exchange gain if its stages overlapped? A fragment is quantised, sent, summed, sent
// again and applied, one stage after the other. Each stage is measured on one core and set beside
// what two sites need for the bytes on the line; in a pipeline of chunks the longer of the two
// would remain. The ratio is the time of a transfer as a pipeline over that of one after the other.
#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "bench/report.h"
#include "sites/exchange/fragment_exchange.h"
#include "sites/exchange/global_state.h"

namespace pelago::bench {
namespace {

struct Case {
  double rate_mbit_s;
  double rtt_ms;
  int bits;
};
const std::map<std::string, Case>& cases() {
  static const std::map<std::string, Case> table = {{"100mbit", {100, 60, 4}},
                                                    {"20mbit-thin", {20, 60, 2}},
                                                    {"1gbit", {1000, 20, 4}},
                                                    {"10gbit", {10000, 20, 4}}};
  return table;
}

std::vector<float> normal_values(size_t num_values, uint64_t seed) {
  Rng rng = Rng(seed).fork("values");
  std::vector<float> values(num_values);
  for (float& value : values) value = static_cast<float>(1e-3 * rng.next_normal());
  return values;
}

template <typename Work>
double seconds_of(const Work& work) {
  const double begin_s = steady_now_s();
  work();
  return steady_now_s() - begin_s;
}

struct Stages {
  double quantise_s = 0, sum_s = 0, apply_s = 0;  // of one member
  double slice_bytes = 0;                         // of one way, one phase
};

Stages run_once(const std::vector<float>& global, const std::vector<float>& local, int bits) {
  const std::vector<float> none(global.size());
  sites::GlobalState state(global, {{.begin = 0, .end = static_cast<int64_t>(global.size())}});
  sites::ExchangeSpec spec{.bits = bits, .member_idx = 0, .tokens = {1, 1}};
  std::optional<sites::FragmentExchange> mine;
  Stages stages;
  stages.quantise_s = seconds_of([&] { mine.emplace(spec, state.global(), local, none); });
  spec.member_idx = 1;
  sites::FragmentExchange theirs(spec, state.global(), local, none);
  const auto accept = [](Status status) {
    if (!status) fail("{}", status.error().message);
  };
  stages.slice_bytes = static_cast<double>(mine->delta_slice(1).size());
  stages.sum_s = seconds_of([&] { accept(mine->accept_delta(1, theirs.delta_slice(0))); });
  accept(theirs.accept_delta(0, mine->delta_slice(1)));
  stages.apply_s = seconds_of([&] {
    accept(mine->accept_mean(1, *theirs.mean_slice()));
    state.apply(0, 0, state.outer_step(0, mine->mean(), {}));
  });
  return stages;
}

void measure(Report& report, double million_values) {
  const Case& chosen = cases().at(report.case_name);
  const auto num_values = static_cast<size_t>(1e6 * million_values);
  const std::vector<float> global = normal_values(num_values, 1);
  std::vector<float> local = normal_values(num_values, 2);
  std::vector<double> quantise, sum, apply;
  Stages last;
  for (int turn = 0; turn < 5; ++turn) {
    last = run_once(global, local, chosen.bits);
    quantise.push_back(last.quantise_s);
    sum.push_back(last.sum_s);
    apply.push_back(last.apply_s);
  }
  const double work_s = median(quantise) + median(sum) + median(apply);
  const double wire_s = 2 * last.slice_bytes * 8e-6 / chosen.rate_mbit_s;
  const double travel_s = 1e-3 * chosen.rtt_ms;  // half a round trip, twice
  report.metrics["values_million"] = million_values;
  report.metrics["quantise_ms"] = 1e3 * median(quantise);
  report.metrics["sum_ms"] = 1e3 * median(sum);
  report.metrics["apply_ms"] = 1e3 * median(apply);
  report.metrics["line_ms"] = 1e3 * wire_s;
  report.metrics["travel_ms"] = 1e3 * travel_s;
  report.metrics["bytes_a_value_and_round"] =
      2 * last.slice_bytes / static_cast<double>(num_values);
  report.metrics["one_after_the_other_ms"] = 1e3 * (work_s + wire_s + travel_s);
  report.metrics["pipeline_ms"] = 1e3 * (std::max(work_s, wire_s) + travel_s);
  report.ratio = (std::max(work_s, wire_s) + travel_s) / (work_s + wire_s + travel_s);
  report.target = 0.8;  // below it a pipeline would pay
  report.notes.push_back("a pipeline pays where the ratio is well below its target");
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  using namespace pelago::bench;
  Program program("exchange_stages",
                  "What would an exchange gain if its stages overlapped?",
                  {"100mbit", "20mbit-thin", "1gbit", "10gbit"});
  double million_values = 2.65;  // a quarter of 10 M parameters
  program.options().add_option("--million-values", million_values, "of a fragment");
  return program.run(argc, argv, [&](Report& report) { measure(report, million_values); });
}
