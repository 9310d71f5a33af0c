#include "train/across/state_sharing.h"

#include <algorithm>

#include "model/parts/part.h"
#include "plan/across/joint.h"
#include "train/grid/buckets.h"

namespace pelago::train {

namespace {

constexpr int64_t kPieceValues = 128 << 10;  // 4 ms of a line of 1 Gbit/s
enum Tag : uint32_t { kPiece = 1, kTaken = 2 };

/// What one site gives, cut into pieces: of masters, then of the moments.
std::vector<std::span<float>> pieces_of(const HostState& state,
                                        const std::vector<Fragment>& ranges) {
  std::vector<std::span<float>> pieces;
  for (const std::span<float> values : {state.master, state.m, state.v}) {
    for (const Fragment& range : ranges) {
      for (int64_t begin = range.begin; begin < range.end; begin += kPieceValues) {
        const int64_t end = std::min(begin + kPieceValues, range.end);
        pieces.push_back(
            values.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
      }
    }
  }
  return pieces;
}

}  // namespace

std::vector<std::vector<Fragment>> ranges_by_site(const plan::Plan& plan,
                                                  const model::ModelConfig& model) {
  const std::vector<model::PartSpec> whole = part_specs(model, whole_model(model));
  std::vector<int> owners(whole.size(), -1);  // by parameter
  const plan::SitePlan joint = plan::joint_site(plan, 0);
  for (int rank = 0; rank < static_cast<int>(joint.devices.size()); ++rank) {
    const auto site = static_cast<int>(plan::site_of_joint_rank(plan, rank));
    const model::ModelPart part = part_of(joint, model.num_hidden_layers, rank);
    for (const model::PartSpec& spec : part_specs(model, part)) {
      int& owner = owners[spec.spec_idx];
      if (owner < 0 || site < owner) owner = site;
    }
  }
  std::vector<std::vector<Fragment>> ranges(plan.sites.size());
  for (size_t i = 0; i < whole.size(); ++i) {
    std::vector<Fragment>& own = ranges[static_cast<size_t>(owners[whole[i].spec_idx])];
    const Fragment range{whole[i].global_begin,
                         whole[i].global_begin + whole[i].local.num_values()};
    if (!own.empty() && own.back().end == range.begin) {
      own.back().end = range.end;
    } else {
      own.push_back(range);
    }
  }
  return ranges;
}

void share_state(const HostState& state,
                 const plan::Plan& plan,
                 const model::ModelConfig& model,
                 size_t site_idx,
                 Bridge& bridge) {
  std::vector<std::vector<std::span<float>>> pieces;  // by site
  size_t num_turns = 0;
  for (const std::vector<Fragment>& ranges : ranges_by_site(plan, model)) {
    pieces.push_back(pieces_of(state, ranges));
    num_turns = std::max(num_turns, pieces.back().size());
  }
  const auto key = [&](size_t site, Tag tag) {
    return BridgeKey{BridgeChannel::kState, plan::first_joint_rank(plan, site), tag};
  };
  std::byte taken{1};
  for (size_t turn = 0; turn < num_turns; ++turn) {
    const bool gives = turn < pieces[site_idx].size();
    for (size_t site = 0; site < pieces.size(); ++site) {
      if (gives && site != site_idx) {
        bridge.send(key(site, kPiece), std::as_bytes(pieces[site_idx][turn]));
      }
    }
    for (size_t site = 0; site < pieces.size(); ++site) {
      if (site == site_idx || turn >= pieces[site].size()) continue;
      bridge.receive(key(site, kPiece), std::as_writable_bytes(pieces[site][turn]));
      bridge.send(key(site, kTaken), std::span(&taken, 1));
    }
    for (size_t site = 0; site < pieces.size(); ++site) {
      if (gives && site != site_idx) bridge.receive(key(site, kTaken), std::span(&taken, 1));
    }
  }
}

}  // namespace pelago::train
