#include <doctest/doctest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "base/rng.h"
#include "sites/exchange/batch_shares.h"
#include "sites/exchange/grace_window.h"

namespace pelago::sites {
namespace {

int64_t total(const std::vector<int64_t>& shares) {
  return std::accumulate(shares.begin(), shares.end(), int64_t{0});
}

TEST_CASE("sites of speed 1, 0.55 and 0.4 come to share the batch in that proportion") {
  // Equal shares of 39, so that the times show the speeds.
  const std::vector<SitePace> paces{{13, 1.0}, {13, 1.0 / 0.55}, {13, 1.0 / 0.4}};
  CHECK(fit_shares(paces) == std::vector<int64_t>{20, 11, 8});
}

TEST_CASE("no other shares of the same batch end sooner, for random paces") {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    Rng rng = Rng(seed).fork("paces");
    std::vector<SitePace> paces(3);
    for (SitePace& pace : paces) {
      pace = {.sequences = 1 + static_cast<int64_t>(rng.next_below(8)),
              .step_s = 0.1 + rng.next_uniform()};
    }
    const std::vector<int64_t> shares = fit_shares(paces);
    const int64_t batch = paces[0].sequences + paces[1].sequences + paces[2].sequences;
    REQUIRE(total(shares) == batch);
    const double best_s = step_time_s(paces, shares);
    for (int64_t a = 1; a < batch - 1; ++a) {
      for (int64_t b = 1; a + b < batch; ++b) {
        const std::vector<int64_t> other{a, b, batch - a - b};
        REQUIRE(step_time_s(paces, other) >= best_s * (1 - 1e-12));
      }
    }
  }
}

TEST_CASE("a site that was away keeps its share, and one without sequences gets none") {
  const std::vector<SitePace> paces{{10, 2.0}, {7, 0.0}, {0, 1.0}, {10, 1.0}};
  const std::vector<int64_t> shares = fit_shares(paces);
  CHECK(shares == std::vector<int64_t>{7, 7, 0, 13});
}

TEST_CASE("even a site a thousand times slower keeps a sequence") {
  CHECK(fit_shares(std::vector<SitePace>{{8, 1000.0}, {8, 1.0}}) == std::vector<int64_t>{1, 15});
}

TEST_CASE("shares change after three rounds of drift, not after two and a good one") {
  const std::vector<SitePace> even{{16, 1.0}, {16, 1.0}};
  const std::vector<SitePace> drifted{{16, 1.0}, {16, 1.4}};
  ShareWatch watch({});
  for (int i = 0; i < 10; ++i) CHECK_FALSE(watch.observe(even));
  CHECK_FALSE(watch.observe(drifted));
  CHECK_FALSE(watch.observe(drifted));
  CHECK_FALSE(watch.observe(even));
  CHECK_FALSE(watch.observe(drifted));
  CHECK_FALSE(watch.observe(drifted));
  const auto shares = watch.observe(drifted);
  REQUIRE(shares);
  CHECK(*shares == std::vector<int64_t>{19, 13});
  // The paces were those of the old shares: three more rounds before the next change.
  CHECK_FALSE(watch.observe(drifted));
  CHECK_FALSE(watch.observe(drifted));
}

TEST_CASE("a drift too small to gain a twentieth of a step changes nothing") {
  ShareWatch watch({});
  for (int i = 0; i < 20; ++i) {
    CHECK_FALSE(watch.observe(std::vector<SitePace>{{16, 1.0}, {16, 1.06}}));
  }
}

TEST_CASE("when shares have changed by other means the watch begins anew") {
  ShareWatch watch({});
  const std::vector<SitePace> drifted{{16, 1.0}, {16, 1.4}};
  watch.observe(drifted);
  watch.observe(drifted);
  CHECK_FALSE(watch.observe(std::vector<SitePace>{{19, 1.2}, {13, 1.14}}));
  CHECK_FALSE(watch.observe(std::vector<SitePace>{{16, 1.0}, {16, 1.4}, {4, 1.0}}));
}

ExchangeTimes times(double transfer_s, double available_s, double lateness_s) {
  return {
      .step_s = 0, .transfer_s = transfer_s, .available_s = available_s, .lateness_s = lateness_s};
}

TEST_CASE("sites of long steps are waited for as long as an evaluation may take one of them") {
  GraceWindow window({});
  for (int i = 0; i < 8; ++i) {
    window.observe({.step_s = 1.6, .transfer_s = 0.1, .available_s = 1.6, .lateness_s = 0.2});
  }
  CHECK(window.seconds() == doctest::Approx(6.4));
}

TEST_CASE("until enough was measured an exchange waits as long as the job says") {
  GraceWindow window({.max_s = 7});
  for (int i = 0; i < 3; ++i) window.observe(times(0.1, 1, 0.1));
  CHECK(window.seconds() == 7);
  window.observe(times(0.1, 1, 0.1));
  CHECK(window.seconds() < 7);
}

TEST_CASE("what the transfer leaves of tau steps is waited away") {
  GraceWindow window({});
  for (int i = 0; i < 8; ++i) window.observe(times(0.5, 3.0, 0.1));
  CHECK(window.seconds() == doctest::Approx(2.5));
}

TEST_CASE("on a line without slack a site within its usual lateness is still waited for") {
  GraceWindow window({.min_s = 0.2});
  for (int i = 0; i < 9; ++i) window.observe(times(2.0, 1.0, 1.0 + 0.1 * (i % 3)));
  CHECK(window.seconds() == doctest::Approx(1.5));  // median 1.1, deviations of 0.1
}

TEST_CASE("one exchange that took for ever hardly moves the window, and it stays within bounds") {
  GraceWindow window({.min_s = 0.2, .max_s = 5});
  for (int i = 0; i < 10; ++i) window.observe(times(0.1, 0.2, 0.0));
  CHECK(window.seconds() == doctest::Approx(0.2));
  window.observe(times(900, 0.2, 600));
  CHECK(window.seconds() == doctest::Approx(0.2));
  for (int i = 0; i < 40; ++i) window.observe(times(0.1, 60, 0));
  CHECK(window.seconds() == 5);
}

TEST_CASE("whoever came too late doubles the window, which narrows again while all come") {
  GraceWindow window({.min_s = 2, .max_s = 10});
  for (int i = 0; i < 8; ++i) window.observe(times(0.1, 0.2, 0.0));
  CHECK(window.seconds() == doctest::Approx(2));
  for (const double wanted_s : {4.0, 8.0, 10.0, 10.0}) {
    window.widen();
    CHECK(window.seconds() == doctest::Approx(wanted_s));
  }
  for (int i = 0; i < 7; ++i) window.observe(times(0.1, 0.2, 0.0));
  CHECK(window.seconds() == doctest::Approx(10 * std::pow(0.9, 7)));
  for (int i = 0; i < 20; ++i) window.observe(times(0.1, 0.2, 0.0));
  CHECK(window.seconds() == doctest::Approx(2));
}

TEST_CASE("the window follows a line that has become slower") {
  GraceWindow window({.min_s = 0.2});
  for (int i = 0; i < 32; ++i) window.observe(times(0.2, 4, 0.1));
  const double before_s = window.seconds();
  for (int i = 0; i < 32; ++i) window.observe(times(3.0, 4, 0.1));
  CHECK(before_s == doctest::Approx(3.8));
  CHECK(window.seconds() == doctest::Approx(1.0));
}

}  // namespace
}  // namespace pelago::sites
