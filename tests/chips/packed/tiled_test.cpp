// Products and attention by AMX: that neither other rows nor cuts change a bit. On other processors
// there is nothing to test here.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "chips/packed/core_team.h"
#include "chips/packed/packed_matrix.h"
#include "chips/packed/packed_support.h"
#include "chips/packed/paged_attention.h"
#include "chips/packed/rows.h"
#include "chips/packed/tiled/tile_attention.h"

namespace pelago::chips::packed {
namespace {

TEST_CASE("by AMX a row's product has the same bits alone and among others, however it is cut") {
  if (amx_multiply_panels(Format::kBf16) == nullptr) return;  // not on this processor
  // More words than a block, more panels than a group and an odd number of them.
  constexpr size_t kInputs = 1216, kOutputs = 37 * 16, kRows = 150;
  CoreTeam team(2, {});
  PackedMatrix matrix(Format::kBf16, kOutputs, kInputs, 64);
  const std::vector<float> weights = random_values(kOutputs * kInputs, 1);
  matrix.fill({.data = weights.data(), .num_rows = kOutputs}, 0, 1, team);
  const std::vector<float> x = random_values(kRows * kInputs, 2);
  const auto products = [&](size_t first, size_t num_rows) {
    PackedRows rows(num_rows, kInputs);
    rows.begin(num_rows, matrix);
    REQUIRE(rows.is_for_amx());
    std::vector<uint16_t> scratch(kInputs + 16);
    for (size_t row = 0; row < num_rows; ++row) {
      rows.put(row, x.data() + (first + row) * kInputs, scratch.data());
    }
    std::vector<float> c(num_rows * kOutputs, 3.0F);
    team.run([&](CoreTeam::Member& member) {
      multiply(member, rows, matrix, c.data(), kOutputs, /*adds=*/true);
    });
    return c;
  };
  const std::vector<float> all = products(0, kRows);
  CHECK(product_error(matrix, x, all, kRows, kOutputs, 3.0) < 1e-2);
  for (const size_t num_rows : {1, 3, 16, 17, 32, 33, 34, 64, 100}) {
    const std::vector<float> some = products(5, num_rows);
    CHECK(std::equal(some.begin(), some.end(), all.begin() + 5 * kOutputs));
  }
}

TEST_CASE("by AMX swiglu of a row's product has the same bits alone and among others") {
  if (amx_multiply_panels(Format::kBf16) == nullptr) return;  // not on this processor
  constexpr size_t kInputs = 1088, kHidden = 19 * 16 * 2, kRows = 75;
  CoreTeam team(2, {});
  PackedMatrix gate_up(Format::kBf16, 2 * kHidden, kInputs, 64),
      down(Format::kBf16, 16, kHidden, 64);
  const std::vector<float> weights = random_values(2 * kHidden * kInputs, 1);
  gate_up.fill({.data = weights.data(), .num_rows = kHidden}, 0, 2, team);
  gate_up.fill({.data = weights.data() + kHidden * kInputs, .num_rows = kHidden}, kPanel, 2, team);
  // Row i of `down` takes number 33 * i of the row alone.
  std::vector<float> picks(16 * kHidden, 0.0F);
  for (size_t i = 0; i < 16; ++i) picks[i * kHidden + 33 * i] = 1.0F;
  down.fill({.data = picks.data(), .num_rows = 16}, 0, 1, team);
  std::vector<float> x = random_values(kRows * kInputs, 2);
  for (float& value : x) value *= 0.1F;
  const auto activated = [&](size_t first, size_t num_rows) {
    PackedRows rows(num_rows, kInputs), hidden(num_rows, kHidden);
    rows.begin(num_rows, gate_up);
    hidden.begin(num_rows, down);
    std::vector<std::vector<uint16_t>> scratch(2, std::vector<uint16_t>(kInputs + 16));
    for (size_t row = 0; row < num_rows; ++row) {
      rows.put(row, x.data() + (first + row) * kInputs, scratch[0].data());
    }
    std::vector<float> h(num_rows * kHidden), c(num_rows * 16);
    team.run([&](CoreTeam::Member& member) {
      auto* own = scratch[static_cast<size_t>(member.thread_idx())].data();
      multiply_swiglu(member, rows, gate_up, hidden, h.data(), kHidden, own);
      multiply(member, hidden, down, c.data(), 16, /*adds=*/false);
    });
    return c;
  };
  const std::vector<float> all = activated(0, kRows);
  double difference = 0;
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t i = 0; i < 16; ++i) {
      double sums[2] = {0, 0};
      for (size_t half = 0; half < 2; ++half) {
        const float* of = weights.data() + (half * kHidden + 33 * i) * kInputs;
        for (size_t k = 0; k < kInputs; ++k)
          sums[half] += double{x[row * kInputs + k]} * double{of[k]};
      }
      const double wanted = sums[0] / (1 + std::exp(-sums[0])) * sums[1];
      difference = std::max(difference, std::abs(wanted - double{all[row * 16 + i]}));
    }
  }
  CHECK(difference < 0.5);  // of values up to 60; factors, and what is put, are off by 2^-9 each
  for (const size_t num_rows : {1, 16, 17, 32, 33, 40, 64}) {
    const std::vector<float> some = activated(9, num_rows);
    CHECK(std::equal(some.begin(), some.end(), all.begin() + 9 * 16));
  }
}

constexpr size_t kGroup = 3, kTokens = 600, kHeadDim = 64, kWidth = kGroup * kHeadDim;

/// One head's sequence, whose keys and values come one after the other.
struct Sequence {
  const PageLayout layout{.format = PageFormat::kBf16, .page_tokens = 32, .head_dim = kHeadDim};
  LargeMemory memory = LargeMemory(layout.page_bytes() * 19);
  std::vector<int32_t> pages = std::vector<int32_t>(19);
  const std::vector<float> keys = random_values(kTokens * kHeadDim, 1);
  const std::vector<float> values = random_values(kTokens * kHeadDim, 2);
  const std::vector<float> queries = random_values(kTokens * kWidth, 3);
  AttentionScratch scratch;

  Sequence() {
    for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i * 7 % pages.size());
  }
  void write(size_t token) {
    const auto page = static_cast<size_t>(pages[token / 32]);
    put_key_value(layout,
                  memory.data() + page * layout.page_bytes(),
                  token,
                  keys.data() + token * kHeadDim,
                  values.data() + token * kHeadDim);
  }
  /// Queries [begin, end), rows_at_once rows a call.
  std::vector<float> attend(size_t begin, size_t end, size_t rows_at_once) {
    std::vector<float> out((end - begin) * kWidth);
    const size_t num_rows = (end - begin) * kGroup;
    for (size_t row = 0; row < num_rows; row += rows_at_once) {
      attend_rows({.layout = &layout,
                   .pages = pages,
                   .memory = memory.data(),
                   .group = kGroup,
                   .first_position = begin,
                   .queries = queries.data() + begin * kWidth,
                   .query_stride = kWidth,
                   .out = out.data(),
                   .out_stride = kWidth},
                  row,
                  std::min(num_rows, row + rows_at_once),
                  scratch);
    }
    return out;
  }
};

TEST_CASE("by AMX a query's attention has the same bits alone and among others, however cut") {
  Sequence sequence;
  if (!attends_by_tiles(sequence.layout)) return;  // not on this processor
  // One token after the other, as answers are written; then all at once, as prompts are read.
  std::vector<float> one_by_one;
  for (size_t token = 0; token < kTokens; ++token) {
    sequence.write(token);
    const std::vector<float> out = sequence.attend(token, token + 1, kGroup);
    one_by_one.insert(one_by_one.end(), out.begin(), out.end());
  }
  CHECK(sequence.attend(0, kTokens, attention_rows_max(sequence.layout)) == one_by_one);
  CHECK(sequence.attend(0, kTokens, 37) == one_by_one);
  const std::vector<float> some = sequence.attend(250, 270, 60);
  CHECK(std::equal(some.begin(), some.end(), one_by_one.begin() + 250 * kWidth));
  // It is the plain one: keys, queries, weights and values are rounded, 2^-9 each.
  double difference = 0;
  for (const size_t token : {0, 1, 31, 32, 255, 256, 300, 599}) {
    for (size_t head = 0; head < kGroup; ++head) {
      const size_t at = token * kWidth + head * kHeadDim;
      const float* query = sequence.queries.data() + at;
      const auto wanted =
          plain_attention(sequence.keys, sequence.values, query, token + 1, kHeadDim);
      for (size_t i = 0; i < kHeadDim; ++i) {
        difference = std::max(difference, std::abs(wanted[i] - double{one_by_one[at + i]}));
      }
    }
  }
  CHECK(difference < 1.5e-2);
}

}  // namespace
}  // namespace pelago::chips::packed
