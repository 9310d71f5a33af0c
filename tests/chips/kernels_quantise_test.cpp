#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>

#include "base/error.h"
#include "chips/kernels.h"
#include "chips/reference/reference.h"

namespace pelago::chips {
namespace {

std::vector<float> random_values(size_t num_values, unsigned seed = 1) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0, 1e-3F);
  std::vector<float> values(num_values);
  for (float& value : values) value = normal(engine);
  return values;
}

TEST_CASE("every byte and number of 4 and 8 bits equals the plain twin's, at odd lengths too") {
  for (const int bits : {4, 8}) {
    for (const size_t num_values : {1, 2, 15, 63, 64, 65, 129, 1001, 64000}) {
      CAPTURE(bits);
      CAPTURE(num_values);
      const std::vector<float> values = random_values(num_values);
      const QuantisedVector quantised = quantise(values, bits);
      const QuantisedVector wanted = reference::quantise(values, bits);
      CHECK(quantised.scales == wanted.scales);
      CHECK(quantised.payload == wanted.payload);
      std::vector<float> out(num_values), wanted_out(num_values);
      dequantise(quantised, out);
      reference::dequantise(wanted, wanted_out);
      CHECK(out == wanted_out);
    }
  }
}

TEST_CASE("for the line too every byte is the plain twin's, whatever the magnitude of a block") {
  for (const int bits : {4, 8}) {
    for (const size_t num_values : {1, 63, 64, 65, 127, 128, 129, 1001, 64000}) {
      CAPTURE(bits);
      CAPTURE(num_values);
      std::vector<float> values = random_values(num_values);
      for (size_t i = 0; i < num_values; ++i) {
        values[i] *= std::ldexp(1.0F, 12 * (static_cast<int>(i / 128 % 11) - 7));
      }
      std::vector<uint8_t> bytes(line_bytes(num_values, bits));
      quantise_for_line(values, bits, bytes);
      CHECK(bytes == reference::quantise_for_line(values, bits));
      std::vector<float> out(num_values);
      dequantise_from_line(bytes, bits, out);
      for (size_t i = 0; i < num_values; ++i) {
        const float scale = line_scale(bytes[i / 128]);
        const float most = scale * (bits == 4 ? 7.0F : 127.0F);
        const float within = std::min(std::max(values[i], -most), most);
        REQUIRE(std::abs(out[i] - within) <= 0.5001F * scale);
      }
    }
  }
}

TEST_CASE("a restored value is within half a level of the original") {
  const std::vector<float> values = random_values(1000);
  for (const int bits : {4, 8}) {
    const QuantisedVector quantised = quantise(values, bits);
    std::vector<float> out(values.size());
    dequantise(quantised, out);
    for (size_t i = 0; i < values.size(); ++i) {
      CHECK(std::abs(out[i] - values[i]) <= 0.5001F * quantised.scales[i / kQuantBlock]);
    }
  }
}

TEST_CASE("32 bits come back bit for bit") {
  const std::vector<float> values = random_values(77);
  std::vector<float> out(values.size());
  dequantise(quantise(values, 32), out);
  CHECK(out == values);
}

TEST_CASE("a tie goes to the even level") {
  std::vector<float> values(64, 0.0F);
  values[0] = 7;    // scale 1
  values[1] = 0.5;  // to 0
  values[2] = 1.5;  // to 2
  values[3] = -2.5;
  std::vector<float> out(64);
  dequantise(quantise(values, 4), out);
  CHECK(out[1] == 0);
  CHECK(out[2] == 2);
  CHECK(out[3] == -2);
}

TEST_CASE("a block of zeros, one of the smallest numbers and one of the largest come back sane") {
  std::vector<float> values(192, 0.0F);
  std::fill(values.begin() + 64, values.begin() + 128, std::numeric_limits<float>::denorm_min());
  std::fill(values.begin() + 128, values.end(), std::numeric_limits<float>::max());
  for (const int bits : {4, 8}) {
    std::vector<float> out(192, 1.0F);
    dequantise(quantise(values, bits), out);
    for (size_t i = 0; i < 64; ++i) CHECK(out[i] == 0);
    for (size_t i = 64; i < 128; ++i) CHECK(std::abs(out[i]) < 1e-30F);
    for (size_t i = 128; i < 192; ++i) CHECK(out[i] > 3e38F);
  }
}

TEST_CASE("a value that is not finite is refused and named, whatever the bits") {
  for (const int bits : {4, 8, 32}) {
    std::vector<float> values = random_values(200);
    values[130] = std::numeric_limits<float>::infinity();
    CHECK_THROWS_WITH_AS(
        quantise(values, bits), "value 130 is inf: only finite numbers can be quantised", Failure);
    values[130] = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS_AS(quantise(values, bits), Failure);
  }
}

TEST_CASE("5 bits are refused with what can be chosen") {
  CHECK_THROWS_WITH_AS(
      quantise(random_values(3), 5), "cannot quantise to 5 bits: choose 4, 8 or 32", Failure);
}

TEST_CASE("an empty vector is quantised to nothing") {
  const QuantisedVector quantised = quantise({}, 4);
  CHECK(quantised.payload.empty());
  std::vector<float> out;
  dequantise(quantised, out);
}

}  // namespace
}  // namespace pelago::chips
