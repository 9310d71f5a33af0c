#include "sites/exchange/coding/entropy_coder.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/rng.h"

namespace pelago::sites {
namespace {

std::span<const uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

/// Byte values drawn so that value i has the share 2^-(i+1)/..., steeper the larger `steepness` is.
std::vector<uint8_t> skewed_bytes(size_t num_bytes, double steepness, Rng& rng) {
  std::vector<uint8_t> bytes(num_bytes);
  for (uint8_t& byte : bytes) {
    const double drawn = -std::log(1 - rng.next_uniform()) * 255 / steepness;
    byte = static_cast<uint8_t>(std::min(drawn, 255.0));
  }
  return bytes;
}

double entropy_bits(const std::vector<uint8_t>& bytes) {
  std::vector<double> counts(256);
  for (const uint8_t byte : bytes) ++counts[byte];
  double bits = 0;
  for (const double count : counts) {
    if (count > 0) bits -= count * std::log2(count / static_cast<double>(bytes.size()));
  }
  return bits;
}

TEST_CASE("what was coded comes back, whatever the bytes are and however many, and nothing more") {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    CAPTURE(seed);
    Rng rng = Rng(seed).fork("bytes");
    const size_t num_bytes = seed < 40 ? seed : rng.next_below(6000);
    const double steepness = std::pow(10.0, 4 * rng.next_uniform());
    const std::vector<uint8_t> bytes = skewed_bytes(num_bytes, steepness, rng);
    std::string coded = "head";
    append_coded(bytes, coded);
    REQUIRE(coded.size() - 4 <= coded_bytes_max(num_bytes));
    append_coded(bytes, coded);
    std::span<const uint8_t> rest = bytes_of(coded).subspan(4);
    for (int turn = 0; turn < 2; ++turn) {
      std::vector<uint8_t> back(num_bytes);
      REQUIRE(take_coded(rest, back));
      REQUIRE(back == bytes);
    }
    REQUIRE(rest.empty());
  }
}

TEST_CASE(
    "coded bytes are within 1 % of their entropy, and one value alone takes next to nothing") {
  Rng rng(5);
  for (const double steepness : {2.0, 10.0, 60.0, 400.0}) {
    CAPTURE(steepness);
    const std::vector<uint8_t> bytes = skewed_bytes(200'000, steepness, rng);
    std::string coded;
    append_coded(bytes, coded);
    CHECK(8 * static_cast<double>(coded.size()) < 1.01 * entropy_bits(bytes) + 8 * 300);
  }
  std::string same;
  append_coded(std::vector<uint8_t>(100'000, 7), same);
  CHECK(same.size() < 64);
}

TEST_CASE("what no encoder makes is refused or read within bounds, and rarely taken for good") {
  int num_taken = 0;
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    CAPTURE(seed);
    Rng rng = Rng(seed).fork("damage");
    const std::vector<uint8_t> bytes = skewed_bytes(500 + rng.next_below(500), 30, rng);
    std::string coded;
    append_coded(bytes, coded);
    const uint64_t way = seed % 3;
    if (way == 0) coded.resize(rng.next_below(coded.size()));
    if (way == 1) {
      char& byte = coded[rng.next_below(coded.size())];
      byte = static_cast<char>(byte ^ static_cast<char>(1 + rng.next_below(255)));
    }
    if (way == 2) {
      for (char& byte : coded) byte = static_cast<char>(rng.next_u64());
      coded[0] = 1;
    }
    std::span<const uint8_t> rest = bytes_of(coded);
    std::vector<uint8_t> back(bytes.size());
    const Status taken = take_coded(rest, back);
    num_taken += taken.has_value() && back != bytes;
    if (!taken) CHECK(taken.error().code == ErrorCode::kCorrupt);
  }
  CHECK(num_taken < 5);
}

}  // namespace
}  // namespace pelago::sites
