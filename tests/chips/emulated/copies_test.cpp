// Copies between an emulated chip and the host, and when they would end.
#include <doctest/doctest.h>

#include <thread>

#include "base/clock.h"
#include "chips/chips_support.h"
#include "chips/device.h"
#include "chips/emulator/paced_clock.h"
#include "chips/links.h"
#include "chips/torch.h"
#include "patience.h"

namespace pelago::chips {
namespace {

using emulator::PacedClock;

TEST_CASE("a copy to the host begins at its mark and after the copy before it") {
  PacedClock clock;
  clock.begin(10.0);
  clock.charge(2.0);
  const double mark_s = clock.mark(10.5);
  CHECK(mark_s == 12.0);
  clock.charge(5.0);  // goes on meanwhile
  CHECK(clock.copy_out(mark_s, 1.0) == 13.0);
  CHECK(clock.copy_out(mark_s, 1.0) == 14.0);
  CHECK(clock.synchronize(11.0) == doctest::Approx(6.0));
  CHECK(clock.late_s() == 0);
}

TEST_CASE("later work waits for a copy to the chip, and the wait is not lateness") {
  PacedClock clock;
  clock.begin(10.0);
  clock.charge(1.0);  // until 11
  clock.note_host_wait(10.5, 15.0);
  clock.wait_for(clock.copy_in(/*arrived_s=*/15.0, 2.0));
  clock.charge(1.0);
  CHECK(clock.synchronize(15.5) == doctest::Approx(18.0 - 15.5));
  CHECK(clock.late_s() == 0);
  CHECK(clock.busy_s() == 2.0);
}

TEST_CASE("a host that is behind when it begins to wait, or takes a mark, is late by that much") {
  PacedClock clock;
  clock.begin(10.0);
  clock.charge(1.0);  // until 11
  CHECK(clock.mark(11.5) == 11.5);
  CHECK(clock.late_s() == doctest::Approx(0.5));
  clock.note_host_wait(12.0, 20.0);
  CHECK(clock.late_s() == doctest::Approx(1.0));
  clock.charge(1.0);
  CHECK(clock.synchronize(20.5) == doctest::Approx(0.5));
  CHECK(clock.late_s() == doctest::Approx(1.0));
}

TEST_CASE("an idle chip begins when what it needs is there, not before") {
  PacedClock clock;
  clock.wait_for(clock.copy_in(5.0, 2.0));
  CHECK(clock.mark(6.0) == 7.0);
  clock.begin(6.0);
  clock.charge(1.0);
  CHECK(clock.synchronize(6.5) == doctest::Approx(1.5));
  clock.begin(20.0);  // long after
  CHECK(clock.synchronize(20.0) == 0);
}

TEST_CASE("copies in, copies out and work go on at once") {
  PacedClock clock;
  clock.begin(0.0);
  clock.charge(3.0);
  CHECK(clock.copy_out(0.0, 3.0) == 3.0);
  CHECK(clock.copy_in(0.0, 3.0) == 3.0);
  CHECK(clock.synchronize(0.0) == 3.0);
}

/// A slowdown at which copying num_bytes takes seconds.
double slowdown_for(const std::string& chip, int64_t num_bytes, double seconds) {
  return seconds * host_bytes_per_s(catalogue().find(chip)) / static_cast<double>(num_bytes);
}

TEST_CASE("a copy to the host is done when the link would be, while the caller goes on") {
  constexpr int64_t kValues = 1 << 20;
  CHECK(testing::holds_at_some_pace([](double scale) {
    const double copy_s = 0.05 * scale;
    const double slowdown = slowdown_for("a100", 4 * kValues, copy_s);
    const auto device = open_device("emulated:a100", catalogue(), {.slowdown = slowdown});
    const Tensor values = torch::arange(kValues, torch::kFloat32).to(device->torch_device());
    device->synchronize();
    device->reset_stats();
    const double start_s = steady_now_s();
    const auto copy = device->start_copy_to_host(values, device->mark());
    const bool was_done = copy->is_done();
    const double started_s = steady_now_s() - start_s;
    CHECK(copy->due_s() >= start_s + copy_s);
    CHECK(copy->wait().equal(torch::arange(kValues, torch::kFloat32)));
    CHECK(copy->is_done());
    CHECK(steady_now_s() - start_s >= copy_s);
    CHECK(device->stats().late_s == 0);
    CHECK(device->stats().device_busy_s == 0);
    return started_s < copy_s && !was_done;
  }));
}

TEST_CASE("a copy waits for the work before its mark and not for work after it") {
  CHECK(testing::holds_at_some_pace([](double scale) {
    const auto device = open_device("emulated:a100", catalogue(), {.slowdown = 1000 * scale});
    const Tensor x = torch::ones({16}, torch::device(device->torch_device()));
    device->synchronize();
    x.add_(1);  // 2 ms each
    const WorkMark mark = device->mark();
    const double before_s = device->stats().device_busy_s;
    for (int i = 0; i < 20; ++i) torch::empty_like(x).fill_(i);
    const auto copy = device->start_copy_to_host(x, mark);
    const auto later = device->start_copy_to_host(x, device->mark());
    CHECK(later->due_s() - copy->due_s() >= 0.035 * scale);
    CHECK(copy->wait()[0].item<float>() == 2);
    const bool was_first = steady_now_s() < later->due_s();
    later->wait();
    CHECK(before_s < device->stats().device_busy_s);
    return was_first;
  }));
}

TEST_CASE("work given after a copy to the chip ends after it") {
  constexpr int64_t kValues = 1 << 20;
  const Tensor host = torch::arange(kValues, torch::kFloat32);
  CHECK(testing::holds_at_some_pace([&](double scale) {
    const double copy_s = 0.04 * scale;
    const double slowdown = slowdown_for("a100", 4 * kValues, copy_s);
    const auto device = open_device("emulated:a100", catalogue(), {.slowdown = slowdown});
    device->synchronize();
    const double arrived_s = steady_now_s();
    Tensor on_chip = device->copy_to_device(host, arrived_s);
    const double ordered_s = steady_now_s();
    const Tensor sum = on_chip.slice(0, 0, 3).sum();
    device->synchronize();
    CHECK(steady_now_s() - arrived_s >= copy_s);
    const bool was_in_time = ordered_s - arrived_s < copy_s && device->stats().late_s == 0;
    CHECK(sum.item<float>() == 3.0F);
    // Counted from the arrival: what arrived long ago is there at once.
    sleep_until_s(arrived_s + 2.5 * copy_s);
    device->copy_into(on_chip, host, arrived_s);
    const double begin_s = steady_now_s();
    device->synchronize();
    return was_in_time && steady_now_s() - begin_s < 0.75 * copy_s;
  }));
}

TEST_CASE("a host that waits for a message leaves the chip idle without being late") {
  CHECK(testing::holds_at_some_pace([](double scale) {
    const auto device = open_device("emulated:a100", catalogue(), {.slowdown = 1000 * scale});
    const Tensor x = torch::ones({16}, torch::device(device->torch_device()));
    device->synchronize();
    device->reset_stats();
    x.add_(1);
    const double begin_s = steady_now_s();
    sleep_until_s(begin_s + 0.03 * scale);  // a message comes only then
    const double arrived_s = steady_now_s();
    device->note_host_wait(begin_s, arrived_s);
    const Tensor message = device->copy_to_device(torch::ones({16}), arrived_s);
    x.add_(message);
    device->synchronize();
    return device->stats().late_s < 1e-3 * scale;
  }));
}

TEST_CASE("a host that only computes too slowly is late, whatever copies it makes on the way") {
  const auto device = open_device("emulated:a100", catalogue(), {.slowdown = 1000});
  const Tensor x = torch::ones({16}, torch::device(device->torch_device()));
  device->synchronize();
  device->reset_stats();
  for (int i = 0; i < 3; ++i) {
    x.add_(1);  // 2 ms of the chip
    sleep_until_s(steady_now_s() + 0.01);
    device->copy_to_device(torch::ones({16}), steady_now_s());
  }
  device->synchronize();
  CHECK(device->stats().late_s > 0.005);
}

TEST_CASE("what a thread without work of its own copies in does not hold up the other's work") {
  constexpr int64_t kValues = 1 << 20;
  CHECK(testing::holds_at_some_pace([](double scale) {
    const double slowdown = slowdown_for("a100", 4 * kValues, 0.5 * scale);
    const auto device = open_device("emulated:a100", catalogue(), {.slowdown = slowdown});
    Tensor place = torch::empty({kValues}, torch::device(device->torch_device()));
    const Tensor x = torch::ones({16}, torch::device(device->torch_device()));
    x.add_(1);
    const double copied_s = steady_now_s();
    std::thread([&] { device->copy_into(place, torch::ones({kValues}), copied_s); }).join();
    x.add_(1);
    const auto mark = std::static_pointer_cast<double>(device->mark());
    const auto copy = device->start_copy_to_host(x, mark);
    return *mark < copied_s + 0.4 * scale && copy->due_s() < copied_s + 0.4 * scale;
  }));
}

TEST_CASE("tensor.to(cpu) waits for the chip and then for the link") {
  constexpr int64_t kValues = 1 << 20;
  const double slowdown = slowdown_for("h20", 4 * kValues, 0.05);
  const auto device = open_device("emulated:h20", catalogue(), {.slowdown = slowdown});
  const Tensor values = torch::ones({kValues}, torch::device(device->torch_device()));
  device->synchronize();
  const double begin_s = steady_now_s();
  CHECK(values.cpu().sum().item<float>() == static_cast<float>(kValues));
  CHECK(steady_now_s() - begin_s >= 0.05);
}

TEST_CASE("the cpu's copies are the caller's to change") {
  const auto device = open_device("cpu", catalogue());
  const Tensor values = torch::ones({4});
  const auto copy = device->start_copy_to_host(values, device->mark());
  CHECK(copy->is_done());
  values.zero_();
  CHECK(copy->wait().equal(torch::ones({4})));
  CHECK(device->copy_to_device(values, 0).is_same(values));
}

}  // namespace
}  // namespace pelago::chips
