#include "chips/links.h"

#include <algorithm>
#include <cctype>
#include <string_view>

#include "base/error.h"

namespace pelago::chips {
namespace {

// Share of a link's nominal rate that large messages get. Measured (github.com
// gameofdimension/limulidae, all-gather): A800 173 GB/s of 200 over eight cards, 0.87; 910B 149 of
// 196 over eight and 64 of 84 over four, 0.76.
constexpr double kShareOfNominal = 0.8;

// PCIe with 16 lanes, bytes a second each way after 128b/130b coding (PCI-SIG base specifications
// 3.0, 4.0, 5.0). Pinned copies reach about 0.8 of them: 12, 25 and 50 GB/s.
constexpr double kPcie3 = 15.75e9, kPcie4 = 31.5e9, kPcie5 = 63.0e9;

// Where no speed of a chip's own links is published, they are not counted.
bool has_links(const Chip& chip) { return chip.link_gb_s > 0; }

bool has(std::string_view text, std::string_view word) {
  return text.find(word) != std::string_view::npos;
}

double one_way_links(const Chip& chip) { return kShareOfNominal * chip.link_gb_s * 1e9 / 2; }

double host_memory_path(const Chip& chip) { return host_bytes_per_s(chip) / 2; }  // in and out

}  // namespace

LinkTopology link_topology(const Chip& chip) {
  const std::string& words = chip.link_topology;
  if (has(words, "no P2P")) return LinkTopology::kHostMemory;
  if (chip.link_name.starts_with("PCIe") || has(words, "PCIe")) return LinkTopology::kHost;
  if (!has_links(chip)) return LinkTopology::kHost;
  // "supernode": UnifiedBus 2.0 is switched, as its first generation (CloudMatrix384).
  for (const char* word : {"NVSwitch", "all-to-all", "non-blocking", "supernode"}) {
    if (has(words, word)) return LinkTopology::kSwitched;
  }
  // What is left names a mesh, a bridge of four, or only how many cards there are. Boards for eight
  // modules (OCP OAM, universal base board) join each pair directly; none of these vendors sells a
  // switch.
  return LinkTopology::kMesh;
}

int mesh_cards(const Chip& chip) {
  const std::string& words = chip.link_topology;
  if (has(words, "7 links")) return 8;
  if (has(words, "3 links")) return 4;
  if (has(words, "4-card") || has(words, "of 4 cards")) return 4;
  return 8;
}

double pair_bytes_per_s(const Chip& chip, int cards_in_node) {
  PELAGO_ASSERT(cards_in_node >= 2, "a pair needs two cards");
  switch (link_topology(chip)) {
    case LinkTopology::kHostMemory:
      return host_memory_path(chip);
    case LinkTopology::kHost:
      return host_bytes_per_s(chip);
    case LinkTopology::kSwitched:
      return one_way_links(chip);
    case LinkTopology::kMesh:
      break;
  }
  // A node with more cards than a mesh joins has several, and some pairs only the host.
  if (cards_in_node > mesh_cards(chip)) return host_bytes_per_s(chip);
  return one_way_links(chip) / (mesh_cards(chip) - 1);
}

double group_bytes_per_s(const Chip& chip, int group_size, int cards_in_node) {
  PELAGO_ASSERT(group_size >= 2 && group_size <= cards_in_node, "a group is part of a node");
  const double pair = pair_bytes_per_s(chip, cards_in_node);
  if (link_topology(chip) != LinkTopology::kMesh) return pair;
  if (group_size > mesh_cards(chip)) return host_bytes_per_s(chip);
  // A mesh within a larger node: the group is placed on one of its meshes.
  const double within = one_way_links(chip) / (mesh_cards(chip) - 1);
  return within * (group_size - 1);
}

double host_bytes_per_s(const Chip& chip) {
  const std::string words = chip.link_name + " " + chip.form;
  const bool is_pcie5 = has(words, "PCIe5"), is_pcie4 = has(words, "PCIe4");
  // H100's SXM5 board was the first with PCIe 5 (2022); others followed from 2023 on. PCIe 4 came
  // with the chips of 2019 (Ascend 910, A100 in 2020).
  const bool is_young = chip.year >= 2023 || (chip.year >= 2022 && has(chip.form, "SXM5"));
  if (is_pcie5 || (is_young && !is_pcie4)) return kShareOfNominal * kPcie5;
  if (is_pcie4 || chip.year >= 2019) return kShareOfNominal * kPcie4;
  return kShareOfNominal * kPcie3;
}

}  // namespace pelago::chips
