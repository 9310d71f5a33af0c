// A weight matrix in panels (chips/packed/panels.h), and rows of activations in tiles that match
// it. Weights are repacked when a model is opened, once through memory at the speed of a copy; then
// every product reads them as one stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "chips/packed/core_team.h"
#include "chips/packed/panels.h"

namespace pelago::chips::packed {

/// Memory of the size given, zeroed, in pages of 2 MiB where the system has them: a stream through
/// 4 KiB pages spends a tenth of its time on their addresses.
class LargeMemory {
 public:
  LargeMemory() = default;
  /// Throws Failure if the system refuses.
  explicit LargeMemory(size_t num_bytes);
  /// A piece of an open file in memory, shared with all who map it: what it holds, not zeros.
  struct FilePiece {
    int file = -1;
    size_t begin = 0;  // a multiple of 2 MiB; the file reaches as far as the last 2 MiB of it
    bool is_read_only = false;
  };
  LargeMemory(const FilePiece& piece, size_t num_bytes);
  LargeMemory(LargeMemory&& other) noexcept;
  LargeMemory& operator=(LargeMemory&& other) noexcept;
  ~LargeMemory();
  std::byte* data() const { return data_; }
  size_t num_bytes() const { return num_bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t num_bytes_ = 0;
};

/// Some outputs' weights as they are stored, row by row.
struct StoredRows {
  enum class Dtype : uint8_t { kF32, kBf16, kF16, kLevels };
  Dtype dtype = Dtype::kF32;
  /// [num_rows, inputs]; levels: offset as in panels.h, 8 or 4 bits each, first one lowest.
  const void* data = nullptr;
  const uint16_t* scales = nullptr;  // levels: f16 [num_rows, inputs / group_size]
  int64_t num_rows = 0;
};

/// [Out,In] weights for x [N,In] -> [N,Out]. Moves, never copies.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  /// All weights 0. group_size: of quantised formats; a multiple of 32 that divides num_inputs.
  PackedMatrix(Format format, int64_t num_outputs, int64_t num_inputs, int64_t group_size);
  /// In memory that take() gives, whatever that holds.
  using TakeMemory = std::function<LargeMemory(size_t num_bytes)>;
  PackedMatrix(Format format,
               int64_t num_outputs,
               int64_t num_inputs,
               int64_t group_size,
               const TakeMemory& take);

  Format format() const { return format_; }
  int64_t num_outputs() const { return num_outputs_; }
  int64_t num_inputs() const { return num_inputs_; }
  int64_t group_size() const { return group_size_; }
  size_t num_panels() const { return num_panels_; }
  size_t num_words() const { return num_words_; }
  size_t group_words() const { return group_words_; }
  /// What a pass over one row reads.
  size_t num_bytes() const { return memory_.num_bytes() + scales_.num_bytes(); }

  /// Row i becomes output first_output + i; with panel_stride 2, where first_output is a panel's
  /// first, every 16 rows skip a panel (gate and up side by side). Levels are taken by a matrix of
  /// as many bits and the same groups; f32, bf16 and f16 by all, rounded to nearest if need be.
  void fill(const StoredRows& rows, int64_t first_output, int64_t panel_stride, CoreTeam& team);

  /// What multiply_panels takes of panels from panel_idx on.
  PanelJob job(size_t panel_idx) const;
  /// The weights of one output as numbers: for tests and tables. out: [In].
  void read_row(int64_t output_idx, std::span<float> out) const;

 private:
  /// Words [begin, end) of the row, which begin and end with groups, into one lane of a panel.
  void put_words(
      const StoredRows& rows, int64_t row_idx, int64_t output_idx, size_t begin, size_t end);

  Format format_ = Format::kF32;
  int64_t num_outputs_ = 0, num_inputs_ = 0, group_size_ = 0;
  size_t num_panels_ = 0, num_words_ = 0, group_words_ = 0, num_groups_ = 0;
  LargeMemory memory_;  // [panels][words][16]
  LargeMemory scales_;  // f16 [panels][groups][16]
};

/// Rounds a row to levels with one f16 scale a group, symmetric: largest magnitude / 127 or / 7.
/// levels: one a byte, offset; scales: f16 bits.
void round_to_levels(std::span<const float> row,
                     Format format,
                     int64_t group_size,
                     std::span<uint8_t> levels,
                     std::span<uint16_t> scales);

/// f16 bits to f32 and back, rounded to nearest even.
float f16_to_float(uint16_t bits);
uint16_t float_to_f16(float value);

}  // namespace pelago::chips::packed
