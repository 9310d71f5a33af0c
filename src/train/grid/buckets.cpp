#include "train/grid/buckets.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "base/error.h"
#include "chips/torch.h"

namespace pelago::train {

namespace {

/// One piece of a parameter with all its holders, before it is known where it lies on a rank.
struct SharedPiece {
  size_t spec_idx = 0;
  int64_t atom_idx = 0;
  int64_t num_atoms = 1;
  int64_t unit_idx = 0;
  int64_t num_values = 0;
  std::vector<int> ranks;
};

struct SharedBucket {
  std::vector<int> ranks;
  std::vector<SharedPiece> pieces;
  int64_t num_values = 0;
};

int64_t unit_of(const model::PartSpec& spec, int64_t num_blocks) {
  if (spec.block_idx >= 0) return 1 + spec.block_idx;
  return spec.spec_idx == 0 ? 0 : 1 + num_blocks;
}

/// By spec: which ranks hold it, and how many of them share it within their stage.
struct Holding {
  int rank = 0;
  int tensor_idx = 0;
  int tensor_count = 1;
};

std::vector<std::vector<Holding>> gather_holdings(const model::ModelConfig& config,
                                                  const plan::SitePlan& site,
                                                  const std::vector<model::PartSpec>& whole) {
  std::vector<std::vector<Holding>> holdings(whole.size());
  for (int rank = 0; rank < static_cast<int>(site.devices.size()); ++rank) {
    const model::ModelPart part = part_of(site, config.num_hidden_layers, rank);
    for (const model::PartSpec& spec : part_specs(config, part)) {
      holdings[spec.spec_idx].push_back({rank, part.tensor_idx, part.tensor_count});
    }
  }
  return holdings;
}

void append_pieces(const model::PartSpec& spec,
                   const std::vector<Holding>& holdings,
                   int64_t unit_idx,
                   std::vector<SharedPiece>& pieces) {
  int64_t num_atoms = 1;
  if (spec.cut != model::TensorCut::kNone) {
    for (const Holding& holding : holdings) {
      num_atoms = std::lcm(num_atoms, static_cast<int64_t>(holding.tensor_count));
    }
  }
  for (int64_t atom_idx = 0; atom_idx < num_atoms; ++atom_idx) {
    SharedPiece piece{.spec_idx = spec.spec_idx,
                      .atom_idx = atom_idx,
                      .num_atoms = num_atoms,
                      .unit_idx = unit_idx,
                      .num_values = spec.local.num_values() / num_atoms,
                      .ranks = {}};
    for (const Holding& holding : holdings) {
      const bool has_all = spec.cut == model::TensorCut::kNone;
      if (has_all || atom_idx * holding.tensor_count / num_atoms == holding.tensor_idx) {
        piece.ranks.push_back(holding.rank);
      }
    }
    pieces.push_back(std::move(piece));
  }
}

/// Pieces of one unit and one group together, then neighbours joined.
std::vector<SharedBucket> join(const std::vector<SharedPiece>& pieces, int64_t bucket_values) {
  std::vector<SharedBucket> buckets;
  std::map<std::vector<int>, size_t> open;  // the bucket of each group that may still grow
  std::map<std::vector<int>, int64_t> open_unit;
  for (const SharedPiece& piece : pieces) {
    const auto found = open.find(piece.ranks);
    // The embedding comes last: what was joined with it would wait for the very end.
    const bool is_neighbour =
        found != open.end() && (piece.unit_idx > 0 || open_unit[piece.ranks] == 0) &&
        open_unit[piece.ranks] - piece.unit_idx <= 1 &&
        (buckets[found->second].num_values + piece.num_values <= bucket_values ||
         open_unit[piece.ranks] == piece.unit_idx);
    if (!is_neighbour) {
      open[piece.ranks] = buckets.size();
      buckets.push_back({.ranks = piece.ranks, .pieces = {}, .num_values = 0});
    }
    SharedBucket& bucket = buckets[open[piece.ranks]];
    bucket.pieces.push_back(piece);
    bucket.num_values += piece.num_values;
    open_unit[piece.ranks] = piece.unit_idx;
  }
  return buckets;
}

/// Where the piece lies on a rank that holds `spec` of it.
Piece place(const SharedPiece& shared,
            const model::PartSpec& spec,
            const model::ModelPart& part,
            const model::PartSpec& whole) {
  const auto& shape = whole.local.shape;
  Piece piece;
  piece.decays = whole.local.decays;
  if (shared.num_atoms == 1 || spec.cut == model::TensorCut::kNone) {
    piece.num_rows = 1;
    piece.num_columns = piece.local_stride = piece.global_stride = shared.num_values;
    if (whole.is_block_matrix()) piece.matrix_rows = shape[0];
    piece.local_begin = spec.local_begin;
    piece.global_begin = whole.global_begin;
    return piece;
  }
  const int64_t held_first = shared.num_atoms * part.tensor_idx / part.tensor_count;
  const int64_t local_atom = shared.atom_idx - held_first;
  if (spec.cut == model::TensorCut::kRows) {
    piece.num_rows = 1;
    piece.num_columns = piece.local_stride = piece.global_stride = shared.num_values;
    piece.local_begin = spec.local_begin + local_atom * shared.num_values;
    piece.global_begin = whole.global_begin + shared.atom_idx * shared.num_values;
    return piece;
  }
  piece.num_rows = shape[0];
  piece.num_columns = shape[1] / shared.num_atoms;
  piece.local_stride = spec.local.shape[1];
  piece.global_stride = shape[1];
  piece.local_begin = spec.local_begin + local_atom * piece.num_columns;
  piece.global_begin = whole.global_begin + shared.atom_idx * piece.num_columns;
  return piece;
}

bool is_dense(const Piece& piece) {
  return piece.num_rows == 1 || piece.local_stride == piece.num_columns;
}

void find_local_begin(Bucket& bucket) {
  bucket.local_begin = bucket.pieces.front().local_begin;
  for (const Piece& piece : bucket.pieces) {
    if (is_dense(piece) && piece.local_begin == bucket.local_begin + piece.offset) continue;
    bucket.local_begin = -1;
    return;
  }
}

Tensor view_of(const Piece& piece, const Tensor& flat) {
  return flat.as_strided({piece.num_rows, piece.num_columns},
                         {piece.local_stride, 1},
                         flat.storage_offset() + piece.local_begin);
}

}  // namespace

model::ModelPart part_of(const plan::SitePlan& site, int64_t num_blocks, int rank) {
  const plan::Place place = plan::place_of(site, rank);
  const plan::StagePlan& stage = site.pipelines[place.pipeline_idx].stages[place.stage_idx];
  return {.first_block = stage.first_block,
          .last_block = stage.last_block,
          .num_blocks = num_blocks,
          .tensor_idx = place.tensor_idx,
          .tensor_count = static_cast<int>(stage.ranks.size())};
}

SiteBuckets buckets_of(const model::ModelConfig& config,
                       const plan::SitePlan& site,
                       int rank,
                       int64_t bucket_values) {
  const std::vector<model::PartSpec> whole = part_specs(config, whole_model(config));
  const std::vector<std::vector<Holding>> holdings = gather_holdings(config, site, whole);
  std::vector<SharedPiece> pieces;
  for (const model::PartSpec& spec : whole) {
    append_pieces(spec, holdings[spec.spec_idx], unit_of(spec, config.num_hidden_layers), pieces);
  }
  std::stable_sort(pieces.begin(), pieces.end(), [](const SharedPiece& a, const SharedPiece& b) {
    return a.unit_idx > b.unit_idx;
  });

  const model::ModelPart part = part_of(site, config.num_hidden_layers, rank);
  std::map<size_t, model::PartSpec> held;
  for (model::PartSpec& spec : part_specs(config, part)) held[spec.spec_idx] = std::move(spec);

  SiteBuckets result;
  for (SharedBucket& shared : join(pieces, bucket_values)) {
    if (std::find(result.groups.begin(), result.groups.end(), shared.ranks) ==
        result.groups.end()) {
      result.groups.push_back(shared.ranks);
    }
    if (std::find(shared.ranks.begin(), shared.ranks.end(), rank) == shared.ranks.end()) continue;
    // In the model's order a rank's values mostly lie side by side.
    std::sort(
        shared.pieces.begin(), shared.pieces.end(), [](const SharedPiece& a, const SharedPiece& b) {
          return std::pair(a.spec_idx, a.atom_idx) < std::pair(b.spec_idx, b.atom_idx);
        });
    Bucket bucket{
        .ranks = shared.ranks, .lowest_unit = shared.pieces.front().unit_idx, .pieces = {}};
    for (const SharedPiece& piece : shared.pieces) {
      bucket.lowest_unit = std::min(bucket.lowest_unit, piece.unit_idx);
      bucket.pieces.push_back(place(piece, held.at(piece.spec_idx), part, whole[piece.spec_idx]));
      bucket.pieces.back().offset = bucket.num_values;
      bucket.num_values += piece.num_values;
    }
    find_local_begin(bucket);
    result.own.push_back(std::move(bucket));
  }
  return result;
}

std::vector<UpdateRun> update_runs(const Bucket& bucket, const UpdateRange& range) {
  std::vector<UpdateRun> runs;
  for (const Piece& piece : bucket.pieces) {
    const int64_t from = std::max(range.begin, piece.offset);
    const int64_t to = std::min(range.end, piece.offset + piece.num_values());
    if (from >= to) continue;
    const int64_t matrix_rows = range.has_muon ? piece.matrix_rows : 0;
    PELAGO_ASSERT(matrix_rows == 0 || to - from == piece.num_values(),
                  "nothing is sliced where matrices are stepped as wholes");
    const bool is_joined = !runs.empty() && runs.back().decays == piece.decays &&
                           runs.back().matrix_rows == 0 && matrix_rows == 0;
    if (!is_joined) runs.push_back({from, to, piece.decays, matrix_rows});
    runs.back().end = to;
  }
  return runs;
}

void for_each_run(const Bucket& bucket,
                  const RunFilter& filter,
                  const std::function<void(int64_t, int64_t, int64_t)>& visit) {
  for (const Piece& piece : bucket.pieces) {
    const int64_t last_global =
        piece.global_begin + (piece.num_rows - 1) * piece.global_stride + piece.num_columns;
    const bool is_outside =
        piece.offset >= filter.end || piece.offset + piece.num_values() <= filter.begin ||
        piece.global_begin >= filter.global_end || last_global <= filter.global_begin;
    if (is_outside) continue;
    for (int64_t row = 0; row < piece.num_rows; ++row) {
      const int64_t offset = piece.offset + row * piece.num_columns;
      const int64_t global = piece.global_begin + row * piece.global_stride;
      const int64_t skipped =
          std::max({int64_t{0}, filter.begin - offset, filter.global_begin - global});
      const int64_t end =
          std::min({piece.num_columns, filter.end - offset, filter.global_end - global});
      if (skipped < end) visit(offset + skipped, global + skipped, end - skipped);
    }
  }
}

Tensor gather_bucket(const Bucket& bucket, const Tensor& flat) {
  if (bucket.local_begin >= 0) return flat.narrow(0, bucket.local_begin, bucket.num_values);
  Tensor values = at::empty({bucket.num_values}, flat.options());
  for (const Piece& piece : bucket.pieces) {
    values.narrow(0, piece.offset, piece.num_values())
        .view({piece.num_rows, piece.num_columns})
        .copy_(view_of(piece, flat));
  }
  return values;
}

void scatter_bucket(const Bucket& bucket, const Tensor& values, Tensor& flat) {
  if (bucket.local_begin >= 0) return;
  for (const Piece& piece : bucket.pieces) {
    view_of(piece, flat)
        .copy_(values.narrow(0, piece.offset, piece.num_values())
                   .view({piece.num_rows, piece.num_columns}));
  }
}

}  // namespace pelago::train
