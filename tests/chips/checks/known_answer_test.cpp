#include "chips/checks/known_answer.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <ctime>

#include "chips/chips_support.h"
#include "chips/emulated/faults.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace {

std::unique_ptr<Device> open_for_answers(const std::string& name) {
  return open_device(name, catalogue(), {.slowdown = 1e-6});
}

double process_cpu_s() {
  timespec used{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
}

TEST_CASE("devices that compute right give every known answer, the same each time") {
  for (const char* name : {"cpu", "emulated:a100", "emulated:910b", "emulated:910a"}) {
    CAPTURE(name);
    const auto device = open_for_answers(name);
    KnownAnswerTest test(*device);
    const std::vector<KnownAnswer> answers = test.run();
    const std::vector<KnownAnswer> again = test.run();
    CHECK(first_fault(answers).empty());
    for (size_t i = 0; i < answers.size(); ++i) {
      CHECK(answers[i].difference == again[i].difference);
      // Where rounding nearly explains the bound, the next chip will not pass.
      CHECK(answers[i].difference < 0.75 * answers[i].bound);
    }
  }
}

TEST_CASE("a single wrong element of a matmul is found, wherever it is") {
  const auto device = open_for_answers("emulated:a100");
  KnownAnswerTest test(*device);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    CAPTURE(seed);
    const int64_t num_fired = device->stats().faults_fired;
    order_fault(*device, {.kind = FaultKind::kWrong, .after_operators = 1, .seed = seed});
    const std::vector<KnownAnswer> answers = test.run();
    REQUIRE(device->stats().faults_fired == num_fired + 1);
    CHECK(first_fault(answers).starts_with("matmul in "));
    CHECK(first_fault(test.run()).empty());
  }
}

TEST_CASE("a run is cheap enough to make between two steps") {
  const auto device = open_for_answers("emulated:a100");
  KnownAnswerTest test(*device);
  test.run();
  double least_s = 1;
  for (int i = 0; i < 5; ++i) {
    const double begin_s = process_cpu_s();
    test.run();
    least_s = std::min(least_s, process_cpu_s() - begin_s);
  }
  MESSAGE("one run takes ", least_s * 1e3, " ms of the host");
  CHECK(least_s < 0.2);  // 0.004 on a quiet machine
}

TEST_CASE("the matmul is asked in every dtype of the chip, f32 and the training dtype get all") {
  const auto is_asked = [](const std::vector<KnownAnswer>& answers, const char* op, auto dtype) {
    return std::ranges::any_of(answers, [&](const KnownAnswer& answer) {
      return answer.op == op && answer.dtype == dtype;
    });
  };
  const auto a100 = open_for_answers("emulated:a100");
  const std::vector<KnownAnswer> answers = KnownAnswerTest(*a100).run();
  for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {
    CHECK(is_asked(answers, "matmul", dtype));
  }
  for (const char* op : {"softmax", "sum", "rms_norm", "attention"}) {
    CHECK(is_asked(answers, op, at::kFloat));
    CHECK(is_asked(answers, op, at::kBFloat16));
  }
}

TEST_CASE("an answer that is off beyond its bound, or no number, is a fault with its size") {
  KnownAnswer answer{.op = "matmul", .dtype = at::kBFloat16, .difference = 0.001, .bound = 0.008};
  CHECK(first_fault({answer}).empty());
  answer.difference = 0.25;
  CHECK(first_fault({answer}) ==
        "matmul in BFloat16 is off by 0.25 of its magnitude, allowed is 0.008");
  answer.difference = HUGE_VAL;
  CHECK(!first_fault({answer}).empty());
}

}  // namespace
}  // namespace pelago::chips
