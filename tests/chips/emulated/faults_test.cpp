// Faults on order: each fires when it was ordered to, can be seen, and is counted.
#include "chips/emulated/faults.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "chips/chips_support.h"
#include "chips/device.h"
#include "chips/emulated/error_of.h"
#include "chips/torch.h"
#include "patience.h"

namespace pelago::chips {
namespace {

std::unique_ptr<Device> open_with(const std::vector<std::string>& faults, double slowdown = 1e-6) {
  EmulationOptions options{.slowdown = slowdown};
  for (const std::string& text : faults) options.faults.push_back(parse_fault(text));
  return open_device("emulated:a100", catalogue(), options);
}

/// Indices at which found differs from expected.
std::vector<int64_t> differences(const Tensor& found, const Tensor& expected) {
  std::vector<int64_t> differing;
  const Tensor a = found.cpu().reshape({-1}), b = expected.reshape({-1});
  for (int64_t i = 0; i < a.numel(); ++i) {
    if (!a[i].equal(b[i])) differing.push_back(i);
  }
  return differing;
}

TEST_CASE("a wrong element changes one value of one matmul, the same one for the same seed") {
  std::vector<int64_t> places;
  const Tensor x = torch::ones({8, 8});
  for (const char* text : {"wrong@op=1", "wrong@op=1", "wrong=-0.5@p=1,seed=9"}) {
    const auto device = open_with({});
    const Tensor on_chip = x.to(device->torch_device());
    order_fault(*device, parse_fault(text));
    on_chip.add(1);  // no matmul: the fault waits
    CHECK(device->stats().faults_fired == 0);
    const Tensor product = on_chip.mm(on_chip);
    CHECK(device->stats().faults_fired == 1);
    clear_faults(*device);
    const auto differing = differences(product, x.mm(x));
    CHECK(differing.size() == 1);
    places.push_back(differing.at(0));
    const auto wrong = product.cpu().reshape({-1})[places.back()].item<float>();
    CHECK(wrong == (std::string(text) == "wrong@op=1" ? 16.0F : 4.0F));
    CHECK(differences(on_chip.mm(on_chip), x.mm(x)).empty());
  }
  CHECK(places[0] == places[1]);
}

TEST_CASE("a wrong element may be as large as a dtype holds, infinite or no number") {
  for (const c10::ScalarType dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    const auto device = open_with({"wrong=nan@op=1", "wrong=-inf@op=3", "wrong=1e30@op=4"});
    const Tensor x = torch::ones({4, 4}, torch::device(device->torch_device()).dtype(dtype));
    const auto largest = [](const Tensor& t) { return t.cpu().to(torch::kFloat64).abs().max(); };
    CHECK(std::isnan(largest(x.mm(x)).item<double>()));
    const Tensor infinite = x.mm(x);
    CHECK(std::isinf(largest(infinite).item<double>()));
    const double large = largest(torch::addmm(x, x, x)).item<double>();
    CHECK(large > (dtype == torch::kHalf ? std::numeric_limits<double>::max() : 9e29));
  }
}

TEST_CASE("a slow chip takes so many times as long from its operator on") {
  const auto device = open_with({"slow=2.5@op=3"});
  const Tensor x = torch::ones({16}, torch::device(device->torch_device()));  // one operator
  device->reset_stats();
  const auto busy_of_one = [&] {
    const double before_s = device->stats().device_busy_s;
    x.add_(1);
    return device->stats().device_busy_s - before_s;
  };
  const double healthy_s = busy_of_one();
  CHECK(busy_of_one() == doctest::Approx(2.5 * healthy_s));
  CHECK(busy_of_one() == doctest::Approx(2.5 * healthy_s));
  CHECK(device->stats().faults_fired == 1);
}

TEST_CASE("memory runs out once where it was ordered to, and work goes on") {
  const auto device = open_with({"oom@op=2"});
  const Tensor x = torch::ones({16}, torch::device(device->torch_device()));
  CHECK_THROWS_AS(x.add(1), c10::OutOfMemoryError);
  CHECK(x.add(1).sum().item<float>() == 32.0F);
  CHECK(device->stats().faults_fired == 1);
}

TEST_CASE("a lost chip refuses operators, copies and synchronisation") {
  const auto device = open_with({});
  const Tensor x = torch::ones({16}, torch::device(device->torch_device()));
  order_fault(*device, parse_fault("lost@s=0"));
  for (const auto& action :
       std::vector<std::function<void()>>{[&] { x.add(1); },
                                          [&] { x.cpu(); },
                                          [&] { device->synchronize(); },
                                          [&] { device->start_copy_to_host(x, {}); }}) {
    CHECK(has(error_of(action), "emulated nvidia-a100-80g-sxm does not answer any more"));
  }
  CHECK(device->stats().faults_fired == 1);
}

TEST_CASE("a stuck chip takes work but never ends it, until it is mended") {
  const auto device = open_with({});
  const Tensor x = torch::ones({16}, torch::device(device->torch_device()));
  const auto copy = device->start_copy_to_host(x, {});
  CHECK(copy->is_done());
  order_fault(*device, parse_fault("stuck@op=1"));
  x.add_(1);
  CHECK_FALSE(copy->is_done());
  const double begin_s = steady_now_s();
  double mended_s = 0;
  std::thread mender([&] {
    sleep_until_s(begin_s + 0.05);
    mended_s = steady_now_s();
    clear_faults(*device);
  });
  device->synchronize();
  const double end_s = steady_now_s();
  mender.join();
  CHECK(end_s >= mended_s);
  CHECK(x.sum().item<float>() == 32.0F);
  CHECK(device->stats().faults_fired == 1);
}

TEST_CASE("a fault by time fires after its time and not before") {
  CHECK(testing::holds_at_some_pace([](double scale) {
    const auto device = open_with({});
    const Tensor x = torch::ones({16}, torch::device(device->torch_device()));
    const double ordered_s = steady_now_s();
    order_fault(*device, parse_fault(fmt::format("oom@s={}", 0.02 * scale)));
    const std::string early = error_of([&] { x.add(1); });
    if (steady_now_s() > ordered_s + 0.02 * scale) return false;  // it may have been due
    CHECK(early == "");
    CHECK(device->stats().faults_fired == 0);
    sleep_until_s(steady_now_s() + 0.025 * scale);
    CHECK_THROWS_AS(x.add(1), c10::OutOfMemoryError);
    return true;
  }));
}

TEST_CASE("faults by chance fire about as often as ordered, at the same places for one seed") {
  std::vector<int> fired_at[2];
  for (auto& fired : fired_at) {
    const auto device = open_with({});
    const Tensor x = torch::ones({16}, torch::device(device->torch_device()));
    order_fault(*device, parse_fault("oom@p=0.1,seed=3"));
    for (int i = 0; i < 1000; ++i) {
      if (!error_of([&] { x.add_(1); }).empty()) fired.push_back(i);
    }
    CHECK(device->stats().faults_fired == static_cast<int64_t>(fired.size()));
  }
  CHECK(fired_at[0] == fired_at[1]);
  CHECK(fired_at[0].size() > 70);  // 100 expected, deviation 9.5
  CHECK(fired_at[0].size() < 130);
}

TEST_CASE("a fault's text gives the fault, and the fault its text") {
  const EmulatedFault fault = parse_fault("wrong=1e30@p=0.25,seed=7");
  CHECK((fault.kind == FaultKind::kWrong));
  CHECK(fault.value == 1e30);
  CHECK(fault.probability == 0.25);
  CHECK(fault.seed == 7);
  for (const char* text : {"wrong@op=120",
                           "wrong=0.5@p=0.001,seed=7",
                           "slow=1.8@s=3",
                           "stuck@op=9",
                           "oom@op=40",
                           "lost@s=1.5"}) {
    CHECK(text_of(parse_fault(text)) == text);
    CHECK(parse_fault(text_of(parse_fault(text))) == parse_fault(text));
  }
}

TEST_CASE("a text that is no fault is wrong usage, quoted with what is wrong") {
  for (const auto& [text, why] : {std::pair("", "does not say when"),
                                  std::pair("wrong", "does not say when"),
                                  std::pair("broken@op=1", "\"broken\" is not wrong"),
                                  std::pair("slow@op=1", "slow needs a factor"),
                                  std::pair("slow=0.5@op=1", "a factor of 0.5"),
                                  std::pair("slow=nan@op=1", "a factor of nan"),
                                  std::pair("wrong=much@op=1", "\"much\" is not a number"),
                                  std::pair("wrong=0@op=1", "0 changes nothing"),
                                  std::pair("oom=3@op=1", "oom takes no value"),
                                  std::pair("oom@op=0", "counted from 1"),
                                  std::pair("oom@op=1x", "counted from 1"),
                                  std::pair("oom@s=-1", "not a time"),
                                  std::pair("oom@p=0", "not a probability"),
                                  std::pair("oom@p=0.5,seed=x", "not seed=NUMBER"),
                                  std::pair("oom@now", "\"now\" is not op=NUMBER")}) {
    CAPTURE(text);
    try {
      parse_fault(text);
      FAIL("taken for a fault");
    } catch (const Failure& failure) {
      CHECK(failure.exit_code() == kExitUsage);
      CHECK(has(failure.what(), std::string("fault \"") + text + "\""));
      CAPTURE(failure.what());
      CHECK(has(failure.what(), why));
    }
  }
}

TEST_CASE("faults are ordered of emulated chips only") {
  const auto device = open_device("cpu", catalogue());
  CHECK_THROWS_AS(order_fault(*device, parse_fault("lost@op=1")), Failure);
}

}  // namespace
}  // namespace pelago::chips
