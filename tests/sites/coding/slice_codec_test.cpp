#include "sites/exchange/coding/slice_codec.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/rng.h"
#include "chips/kernels.h"
#include "plan/job.h"
#include "sites/exchange/coding/thin_codec.h"

namespace pelago::sites {
namespace {

constexpr int kWidths[] = {2, 4, 8, 32};

std::vector<float> normal_values(size_t num_values, uint64_t seed, double scale = 1e-3) {
  Rng rng = Rng(seed).fork("values");
  std::vector<float> values(num_values);
  for (float& value : values) value = static_cast<float>(scale * rng.next_normal());
  return values;
}

/// Any 32 bits as a number: denormal, huge, infinite, not a number.
std::vector<float> wild_values(size_t num_values, Rng& rng) {
  std::vector<float> values(num_values);
  for (float& value : values) value = std::bit_cast<float>(static_cast<uint32_t>(rng.next_u64()));
  return values;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_CASE("a slice never has more bytes than its receiver is ready for, whatever the values are") {
  for (const int bits : kWidths) {
    for (const size_t num_values : {0, 1, 31, 32, 127, 128, 129, 4095, 4096, 4097, 100'000}) {
      CAPTURE(bits);
      CAPTURE(num_values);
      Rng rng(num_values);
      std::vector<float> wild = wild_values(num_values, rng), decoded(num_values);
      for (float& value : wild) {
        if (!(std::abs(value) < 1e30F)) value = 0;
      }
      for (const std::vector<float>& values :
           {normal_values(num_values, 1), wild, std::vector<float>(num_values, 0.25F)}) {
        CHECK(encode_slice(values, bits, decoded).size() <= slice_bytes_max(num_values, bits));
      }
    }
  }
  CHECK(static_cast<double>(slice_bytes_max(1 << 20, 4)) / (1 << 20) <= 0.5079);
}

TEST_CASE("normally distributed values take the bytes that the planner predicts") {
  constexpr size_t kMillion = 1 << 20;
  const std::vector<float> values = normal_values(kMillion, 1);
  std::vector<float> decoded(kMillion);
  const auto bytes_a_value = [&](int bits) {
    return static_cast<double>(encode_slice(values, bits, decoded).size()) / kMillion;
  };
  CHECK(bytes_a_value(4) < 0.425);
  CHECK(bytes_a_value(kThinBits) < 0.0296);
  for (const int bits : kWidths) {
    CAPTURE(bits);
    CHECK(plan::delta_bytes(1, bits) == doctest::Approx(bytes_a_value(bits)).epsilon(0.02));
  }
}

TEST_CASE("whoever encodes holds the bits that whoever decodes will hold") {
  for (const int bits : kWidths) {
    for (const size_t num_values : {1, 65, 128, 1000, 4096, 9000}) {
      CAPTURE(bits);
      CAPTURE(num_values);
      std::vector<float> sent(num_values), received(num_values, 7.0F);
      const std::string payload = encode_slice(normal_values(num_values, 2), bits, sent);
      REQUIRE(decode_slice(payload, bits, received));
      CHECK(same_bits(sent, received));
    }
  }
}

TEST_CASE("a cut at a multiple of the codec's unit changes no bit") {
  for (const int bits : kWidths) {
    const auto unit = static_cast<size_t>(slice_unit(bits));
    const std::vector<float> values = normal_values(3 * unit + unit / 3, 3);
    std::vector<float> whole(values.size()), parts(values.size());
    encode_slice(values, bits, whole);
    for (const size_t cut : {unit, 2 * unit, 3 * unit}) {
      CAPTURE(bits);
      CAPTURE(cut);
      const std::span<const float> from(values);
      encode_slice(from.first(cut), bits, std::span(parts).first(cut));
      encode_slice(from.subspan(cut), bits, std::span(parts).subspan(cut));
      CHECK(same_bits(whole, parts));
    }
  }
}

TEST_CASE("a block of 4 or 8 bits is restored within half a level, its scale an eighth too large") {
  for (const int bits : {4, 8}) {
    const float levels = bits == 4 ? 7.0F : 127.0F;
    const std::vector<float> values = normal_values(12'800, 4);
    std::vector<float> decoded(values.size());
    encode_slice(values, bits, decoded);
    for (size_t block = 0; block < values.size(); block += 128) {
      float largest = 0;
      for (size_t i = block; i < block + 128; ++i) largest = std::max(largest, std::abs(values[i]));
      const float bound = 0.5001F * 1.125F * largest / levels;
      for (size_t i = block; i < block + 128; ++i) {
        REQUIRE(std::abs(decoded[i] - values[i]) <= bound);
      }
    }
  }
}

TEST_CASE("the thin codec sends the 112 largest of 4096 with their signs, equal ones in order") {
  std::vector<float> values = normal_values(4096, 5, 1e-4);
  std::vector<size_t> large;
  for (size_t i = 0; i < 112; ++i) large.push_back(i * 36 + i % 5);
  for (size_t i = 0; i < 112; ++i) values[large[i]] = i % 3 == 0 ? -0.5F : 0.5F;
  std::vector<float> decoded(values.size());
  encode_slice(values, kThinBits, decoded);
  for (size_t i = 0; i < values.size(); ++i) {
    const bool is_large = std::binary_search(large.begin(), large.end(), i);
    CHECK(decoded[i] == (is_large ? values[i] : 0.0F));
  }
  const std::vector<float> equal(4096, -0.25F);
  encode_slice(equal, kThinBits, decoded);
  CHECK(std::count(decoded.begin(), decoded.end(), -0.25F) == 112);
  CHECK(std::all_of(decoded.begin(), decoded.begin() + 112, [](float x) { return x == -0.25F; }));
}

TEST_CASE("two magnitudes keep more of a delta than one would") {
  const std::vector<float> values = normal_values(40'960, 6);
  std::vector<float> decoded(values.size());
  encode_slice(values, kThinBits, decoded);
  double kept = 0, sent = 0, lost = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (decoded[i] == 0) continue;
    kept += static_cast<double>(values[i]) * static_cast<double>(values[i]);
    sent += static_cast<double>(decoded[i]) * static_cast<double>(decoded[i]);
    lost += std::pow(static_cast<double>(values[i]) - static_cast<double>(decoded[i]), 2);
  }
  CHECK(lost < 0.012 * kept);  // with a single magnitude: 0.027
  CHECK(sent == doctest::Approx(kept).epsilon(0.05));
}

TEST_CASE("any finite values make finite values, and what is lost of them is finite too") {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    Rng rng = Rng(seed).fork("wild");
    std::vector<float> values = wild_values(1 + rng.next_below(6000), rng);
    for (float& value : values) {
      if (!(std::abs(value) < 1e30F)) value = 0;
    }
    std::vector<float> sent(values.size()), received(values.size());
    for (const int bits : kWidths) {
      CAPTURE(bits);
      REQUIRE(decode_slice(encode_slice(values, bits, sent), bits, received));
      REQUIRE(same_bits(sent, received));
      for (size_t i = 0; i < values.size(); ++i) {
        // A denormal would be zero on a thread that flushes them, and sites would differ.
        const bool is_plain = sent[i] == 0 || std::isnormal(sent[i]) || bits == 32;
        REQUIRE((is_plain && std::isfinite(sent[i]) && std::isfinite(values[i] - sent[i])));
      }
    }
  }
}

TEST_CASE("values that are not finite are refused by every codec, wherever they stand") {
  for (const int bits : kWidths) {
    for (const size_t at : {0, 127, 128, 4999}) {
      for (const float bad : {std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity(),
                              std::numeric_limits<float>::quiet_NaN()}) {
        CAPTURE(bits);
        CAPTURE(at);
        std::vector<float> values = normal_values(5000, 7), decoded(5000);
        values[at] = bad;
        CHECK_THROWS_AS(encode_slice(values, bits, decoded), Failure);
      }
    }
  }
}

TEST_CASE("a slice of the wrong length is refused, whatever its width") {
  for (const int bits : kWidths) {
    std::vector<float> out(1000), sent(1000);
    const std::string payload = encode_slice(normal_values(1000, 8), bits, sent);
    CHECK_FALSE(decode_slice(payload + "x", bits, out));
    CHECK_FALSE(decode_slice(payload.substr(1), bits, out));
    CHECK_FALSE(decode_slice("", bits, out));
  }
}

TEST_CASE("random bytes of a possible length make finite values or are refused") {
  int num_refused = 0, num_tried = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    CAPTURE(seed);
    Rng rng = Rng(seed).fork("bytes");
    const size_t num_values = 1 + rng.next_below(5000);
    for (const int bits : kWidths) {
      std::string payload(slice_bytes_max(num_values, bits), '\0');
      if (bits != 32 && seed % 2 == 1) payload.resize(rng.next_below(payload.size()));
      for (char& byte : payload) byte = static_cast<char>(rng.next_u64());
      if (bits != kThinBits && bits != 32 && !payload.empty())
        payload[0] = static_cast<char>(seed % 3 == 0 ? 0 : 1);
      std::vector<float> out(num_values);
      const Status decoded = decode_slice(payload, bits, out);
      num_tried += bits != 32;
      if (!decoded) {
        CHECK(decoded.error().code == ErrorCode::kCorrupt);
        num_refused += bits != 32;
        continue;
      }
      REQUIRE(std::all_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); }));
    }
  }
  CHECK(num_refused > num_tried * 9 / 10);
}

TEST_CASE("a damaged or cut slice is refused, or makes finite values of which no more are sent") {
  for (const int bits : {2, 4, 8}) {
    CAPTURE(bits);
    std::vector<float> sent(4096), out(4096);
    const std::string payload = encode_slice(normal_values(4096, 9), bits, sent);
    const size_t stride = bits == kThinBits ? 1 : 13;
    int num_taken = 0, num_tried = 0;
    for (size_t bit = 0; bit < 8 * payload.size(); bit += stride, ++num_tried) {
      std::string damaged = payload;
      damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
      if (!decode_slice(damaged, bits, out)) continue;
      ++num_taken;
      REQUIRE(std::all_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); }));
      if (bits != kThinBits) continue;
      CHECK(std::count_if(out.begin(), out.end(), [](float x) { return x != 0; }) <= 112);
    }
    // What is coded is its own checksum; only what was too short to code goes through as it is.
    if (bits != kThinBits) CHECK(num_taken < num_tried / 10);
    for (size_t length = 0; length < payload.size(); length += stride) {
      REQUIRE_FALSE(decode_slice(payload.substr(0, length), bits, out));
    }
  }
}

TEST_CASE("at 32 bits a peer's value past 1e30 is refused: a sum of such could not be sent on") {
  std::vector<float> out(4);
  const std::vector<float> values{1.0F, 2e30F, 0.0F, 0.0F};
  std::string payload(sizeof(float) * values.size(), '\0');
  std::memcpy(payload.data(), values.data(), payload.size());
  CHECK_FALSE(decode_slice(payload, 32, out));
}

}  // namespace
}  // namespace pelago::sites
