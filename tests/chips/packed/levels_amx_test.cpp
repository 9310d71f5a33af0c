// Products of levels by AMX beside those by AVX-512.
#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "chips/packed/tiled/tile_levels.h"
#include "chips/packed/core_team.h"
#include "chips/packed/packed_matrix.h"
#include "chips/packed/packed_support.h"
#include "chips/packed/rows.h"

namespace pelago::chips::packed {
namespace {

TEST_CASE("levels by AMX have the bits of those by AVX-512, however rows and words are cut") {
  if (amx_multiply_levels(Format::kInt8) == nullptr) return;       // not on this processor
  constexpr size_t kInputs = 4224, kOutputs = 7 * 16, kRows = 37;  // more words than a block
  CoreTeam team(2, {});
  const std::vector<float> weights = random_values(kOutputs * kInputs, 1);
  const std::vector<float> x = random_values(kRows * kInputs, 2);
  const auto products = [&](const PackedMatrix& matrix, size_t first, size_t num_rows) {
    PackedRows rows(num_rows, kInputs);
    rows.begin(num_rows, matrix);
    REQUIRE(rows.is_for_amx() == (num_rows >= kAmxLevelRowsMin));
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
  for (const Format format : {Format::kInt8, Format::kInt4}) {
    for (const int64_t group_size : {32, 64, 96, 128}) {  // half a tile, one, one and a half, two
      CAPTURE(group_size);
      PackedMatrix matrix(format, kOutputs, kInputs, group_size);
      matrix.fill({.data = weights.data(), .num_rows = kOutputs}, 0, 1, team);
      const std::vector<float> all = products(matrix, 0, kRows);
      if (group_size == 64) {
        CHECK(product_error(matrix, x, all, kRows, kOutputs, 3.0) < 1.3e-2);
      }
      for (const size_t num_rows : {1, 7, 13, 16, 17, 32}) {
        CAPTURE(num_rows);
        const std::vector<float> some = products(matrix, 5, num_rows);
        CHECK(std::equal(some.begin(), some.end(), all.begin() + 5 * kOutputs));
      }
    }
  }
}

}  // namespace
}  // namespace pelago::chips::packed
