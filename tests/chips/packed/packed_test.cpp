// Products of packed weights and paged attention against plain sums in f64.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "base/threads.h"
#include "chips/packed/core_team.h"
#include "chips/packed/packed_matrix.h"
#include "chips/packed/packed_support.h"
#include "chips/packed/paged_attention.h"
#include "chips/packed/rows.h"

namespace pelago::chips::packed {
namespace {

struct Case {
  Format format;
  double tolerance;
  const char* name;
};
// f32: sums of 192 terms in another order. bf16: both factors are rounded to 8 bits, 2^-9 each.
// Levels: the weights compared with are the rounded ones; activations are off by half a level of
// 127 at most, 0.6 % of a normal value in the mean, and the worst of 3,000 sums by twice as much.
constexpr Case kCases[] = {{Format::kF32, 2e-6, "f32"},
                           {Format::kBf16, 6e-3, "bf16"},
                           {Format::kInt8, 1.3e-2, "int8"},
                           {Format::kInt4, 1.3e-2, "int4"}};

TEST_CASE("products of packed weights are the plain ones, in every format and for any rows") {
  CoreTeam team(2, {});
  for (const Case& item : kCases) {
    CAPTURE(item.name);
    // 160 are too few for AMX, whose tiles take 64 levels.
    for (const size_t inputs : {size_t{160}, size_t{192}, size_t{1088}}) {
      const int64_t group_size = inputs % 64 == 0 ? 64 : 32;
      PackedMatrix matrix(item.format, 75, static_cast<int64_t>(inputs), group_size);
      const std::vector<float> weights = random_values(75 * inputs, 1);
      matrix.fill({.data = weights.data(), .num_rows = 75}, 0, 1, team);
      for (const size_t num_rows : {1, 2, 5, 6, 7, 12, 13, 40}) {
        CAPTURE(num_rows);
        const std::vector<float> x = random_values(num_rows * inputs, 2);
        PackedRows rows(num_rows, inputs);
        rows.begin(num_rows, matrix);
        std::vector<uint16_t> scratch(inputs + 16);
        for (size_t row = 0; row < num_rows; ++row) {
          rows.put(row, x.data() + row * inputs, scratch.data());
        }
        std::vector<float> c(num_rows * 96, 3.0F);
        team.run([&](CoreTeam::Member& member) {
          multiply(member, rows, matrix, c.data(), 96, /*adds=*/true);
        });
        CHECK(product_error(matrix, x, c, num_rows, 96, 3.0) < item.tolerance);
      }
    }
  }
}

TEST_CASE("the portable products are those of AVX-512") {
  for (const Case& item : kCases) {
    CAPTURE(item.name);
    const MultiplyPanels fast = avx512_multiply_panels(item.format);
    if (fast == nullptr) continue;
    CoreTeam team(1, {});
    // So many that AMX does not take them: its rows lie otherwise.
    const size_t inputs = is_quantised(item.format) ? 160 : 136;
    PackedMatrix matrix(item.format, 80, static_cast<int64_t>(inputs), 32);
    const std::vector<float> weights = random_values(80 * inputs, 1);
    matrix.fill({.data = weights.data(), .num_rows = 80}, 0, 1, team);
    for (size_t num_rows = 1; num_rows <= tile_rows(item.format); ++num_rows) {
      const std::vector<float> x = random_values(num_rows * inputs, 2);
      PackedRows rows(num_rows, inputs);
      rows.begin(num_rows, matrix);
      REQUIRE(!rows.is_for_amx());
      std::vector<uint16_t> scratch(inputs + 16);
      for (size_t row = 0; row < num_rows; ++row) {
        rows.put(row, x.data() + row * inputs, scratch.data());
      }
      std::vector<float> c[2];
      for (size_t which = 0; which < 2; ++which) {
        c[which].resize(num_rows * 80);
        PanelJob job = matrix.job(0);
        rows.point(job, 0, 0);
        job.c = c[which].data();
        job.c_stride = 80;
        (which == 0 ? fast : portable_multiply_panels(item.format))(job, num_rows, 5);
      }
      double difference = 0;
      for (size_t i = 0; i < c[0].size(); ++i) {
        difference = std::max(difference, std::abs(double{c[0][i]} - double{c[1][i]}));
      }
      CHECK(difference < 1e-4);  // of values around 11: other orders of the same sums
    }
  }
}

TEST_CASE("levels that were stored are multiplied as they are, gate and up side by side") {
  CoreTeam team(2, {});
  for (const Format format : {Format::kInt8, Format::kInt4}) {
    const size_t values_a_byte = format == Format::kInt4 ? 2 : 1;
    const std::vector<float> weights = random_values(24 * 64, 4);
    std::vector<uint8_t> stored(24 * 64 / values_a_byte), levels(64);
    std::vector<uint16_t> scales(24 * 2);
    std::vector<float> wanted(24 * 64);
    for (size_t row = 0; row < 24; ++row) {
      round_to_levels(std::span(weights).subspan(row * 64, 64),
                      format,
                      32,
                      levels,
                      std::span(scales).subspan(row * 2, 2));
      for (size_t i = 0; i < 64; ++i) {
        uint8_t& byte = stored[(row * 64 + i) / values_a_byte];
        byte = static_cast<uint8_t>(byte | levels[i] << (values_a_byte == 2 ? i % 2 * 4 : 0));
        wanted[row * 64 + i] = static_cast<float>(levels[i] - level_offset(format)) *
                               f16_to_float(scales[row * 2 + i / 32]);
      }
    }
    PackedMatrix matrix(format, 64, 64, 32);
    matrix.fill({.dtype = StoredRows::Dtype::kLevels,
                 .data = stored.data(),
                 .scales = scales.data(),
                 .num_rows = 24},
                16,
                2,
                team);
    std::vector<float> row(64);
    for (size_t i = 0; i < 24; ++i) {  // panels 1 and 3
      matrix.read_row(static_cast<int64_t>(16 + i % 16 + i / 16 * 32), row);
      CHECK(
          std::equal(row.begin(), row.end(), wanted.begin() + static_cast<std::ptrdiff_t>(i * 64)));
    }
  }
}

TEST_CASE("f16 goes there and back for all its numbers") {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = f16_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(value)) continue;
    REQUIRE(float_to_f16(value) == bits);
  }
  CHECK(float_to_f16(1e6F) == 0x7C00);
  CHECK(float_to_f16(1.0F + 0x1.0p-11F) == 0x3C00);  // a tie goes to even
}

TEST_CASE("exp of what lies below the top is that of the library, and nothing below the least") {
  for (const size_t num_values : {1U, 7U, 16U, 33U, 1000U}) {
    std::vector<float> values = random_values(num_values, num_values);
    for (size_t i = 0; i < num_values; ++i) values[i] *= i % 3 == 0 ? 40.0F : 3.0F;
    if (num_values > 20) values[20] = -std::numeric_limits<float>::infinity();
    const float top = *std::ranges::max_element(values);
    std::vector<float> out(num_values, -1.0F);
    exp_below(values.data(), top, 1.25F, num_values, out.data());
    for (size_t i = 0; i < num_values; ++i) {
      const float x = (values[i] - top) * 1.25F;
      const double wanted = std::exp(double{x});
      // The product with log2(e) is off by half a unit of its size: 87 x 6e-8 at the far end.
      if (wanted > 1.3e-38) CHECK(std::abs(out[i] - wanted) <= 1e-5 * wanted);
      if (wanted < 1.1e-38) CHECK(out[i] == 0.0F);
      CHECK(out[i] <= 1.0F);
      if (values[i] == top) CHECK(out[i] == 1.0F);
    }
  }
}

TEST_CASE("every item of a team's work is done once, whoever does it") {
  CoreTeam team(3, {});
  for (int run = 0; run < 50; ++run) {
    std::vector<std::atomic<int>> counts(37);
    team.run([&](CoreTeam::Member& member) {
      for (int part = 0; part < 9; ++part) {
        member.share(counts.size(), 4, [&](size_t begin, size_t end) {
          for (size_t i = begin; i < end; ++i) ++counts[i];
        });
        // All have met: nobody is in an earlier part.
        if (counts[0] < part + 1) std::abort();
      }
    });
    for (const auto& count : counts) REQUIRE(count == 9);
  }
}

TEST_CASE("a team gives its caller's thread the cores back that it had") {
  const std::vector<int> all = allowed_cores();
  const std::vector<int> first = {all.front()}, last = {all.back()};
  const auto work = [](CoreTeam::Member&) {};
  {
    CoreTeam team(1, last);
    team.run(work);
    CHECK(allowed_cores() == last);
    team.release_caller();
    CHECK(allowed_cores() == all);
    team.run(work);
    CHECK(allowed_cores() == last);
    // Of two teams of one thread the later one gives back what the earlier one gave.
    CoreTeam inner(1, first);
    inner.run(work);
    CHECK(allowed_cores() == first);
    inner.release_caller();
    CHECK(allowed_cores() == last);
    // Another thread's cores are its own affair.
    std::jthread([&] { team.release_caller(); }).join();
    CHECK(allowed_cores() == last);
  }
  CHECK(allowed_cores() == all);
}

TEST_CASE("each thread's first piece is where it was told, and so is what it fetches meanwhile") {
  CoreTeam team(3, {});
  const std::vector<std::byte> ahead(100'000);
  for (const size_t num_items : {1, 11, 47, 48, 97, 1000}) {
    std::vector<std::atomic<int>> counts(num_items);
    std::atomic<int> num_wrong = 0;
    team.run([&](CoreTeam::Member& member) {
      const size_t first = member.first_item(num_items, 4);
      bool is_first = true;
      member.will_read(ahead.data(), ahead.size() - static_cast<size_t>(member.thread_idx()));
      member.share(num_items, 4, [&](size_t begin, size_t end) {
        // Of few items nobody has any for himself.
        if (is_first && num_items >= 48 && begin != first) ++num_wrong;
        is_first = false;
        for (size_t i = begin; i < end; ++i) ++counts[i];
      });
      if (num_items >= 48 && is_first) ++num_wrong;
    });
    CAPTURE(num_items);
    CHECK(num_wrong == 0);
    for (const auto& count : counts) REQUIRE(count == 1);
  }
}

TEST_CASE("paged attention is the plain one, in every format, for one query and for many") {
  // f32: orders of sums. bf16: keys, queries, weights and values are rounded, 2^-9 each. int8: keys
  // and values are off by half a level of 127.
  const std::pair<PageFormat, double> formats[] = {
      {PageFormat::kF32, 1e-5}, {PageFormat::kBf16, 1.5e-2}, {PageFormat::kInt8, 2.5e-2}};
  constexpr size_t kGroup = 3, kTokens = 150;
  for (const auto& [format, tolerance] : formats) {
    for (const size_t head_dim : {size_t{8}, size_t{40}, size_t{64}}) {
      const PageLayout layout{.format = format, .page_tokens = 16, .head_dim = head_dim};
      LargeMemory memory(layout.page_bytes() * 10);
      const std::vector<int32_t> pages = {3, 0, 9, 1, 8, 2, 7, 4, 6, 5};
      const std::vector<float> keys = random_values(kTokens * head_dim, 1);
      const std::vector<float> values = random_values(kTokens * head_dim, 2);
      for (size_t token = 0; token < kTokens; ++token) {
        put_key_value(layout,
                      memory.data() + static_cast<size_t>(pages[token / 16]) * layout.page_bytes(),
                      token,
                      keys.data() + token * head_dim,
                      values.data() + token * head_dim);
      }
      for (const size_t num_queries : {size_t{1}, size_t{16}}) {
        const size_t width = kGroup * head_dim;
        const std::vector<float> queries = random_values(num_queries * width, 3);
        std::vector<float> out(num_queries * width);
        AttentionScratch scratch;
        attend_rows({.layout = &layout,
                     .pages = pages,
                     .memory = memory.data(),
                     .group = kGroup,
                     .first_position = kTokens - num_queries,
                     .queries = queries.data(),
                     .query_stride = width,
                     .out = out.data(),
                     .out_stride = width},
                    0,
                    num_queries * kGroup,
                    scratch);
        double difference = 0;
        for (size_t row = 0; row < num_queries * kGroup; ++row) {
          const size_t num_keys = kTokens - num_queries + row / kGroup + 1;
          const auto wanted =
              plain_attention(keys, values, queries.data() + row * head_dim, num_keys, head_dim);
          for (size_t i = 0; i < head_dim; ++i) {
            difference =
                std::max(difference, std::abs(wanted[i] - double{out[row * head_dim + i]}));
          }
        }
        CAPTURE(head_dim);
        CAPTURE(num_queries);
        CHECK(difference < tolerance);
      }
    }
  }
}

}  // namespace
}  // namespace pelago::chips::packed
