#include "chips/catalogue.h"

#include <algorithm>
#include <cctype>
#include <set>

#include "base/config.h"
#include "base/error.h"

namespace pelago::chips {

extern const std::string_view kCatalogueToml;  // catalogue.toml, embedded by the build

namespace {

// Where only a peak is known: large matmuls of the chips that were measured reach 0.77 to 0.96 of
// theirs (A100, H100, H20, 910B2), and less on chips whose peak is from the press.
constexpr double kMatmulShareOfPeak = 0.75;

// Where usable memory was not measured: the smallest share of the nominal size that was (910B).
constexpr double kUsableShareOfMemory = 0.94;

void read_optional(const ConfigTable& table, std::string_view key, std::optional<double>& out) {
  if (!table.has(key)) return;
  double value = 0;
  table.read(key, value);
  out = value;
}

void read_peaks(const ConfigTable& peaks, Chip& chip) {
  read_optional(peaks, "fp32", chip.fp32_tflops);
  read_optional(peaks, "tf32", chip.tf32_tflops);
  read_optional(peaks, "fp16", chip.fp16_tflops);
  read_optional(peaks, "bf16", chip.bf16_tflops);
  read_optional(peaks, "fp8", chip.fp8_tflops);
  read_optional(peaks, "int8", chip.int8_tflops);
  read_optional(peaks, "fp4", chip.fp4_tflops);
}

void read_software(const ConfigTable& torch, const ConfigTable& collective, Chip& chip) {
  torch.read("device", chip.torch_device);
  torch.read("package", chip.torch_package);
  torch.read("cpp_library", chip.torch_library);
  collective.read("library", chip.collective_library);
  // Facts for people, and for vendors' shims: dispatch key, c10d name, FlagCX adaptor.
  for (const char* key : {"dispatch", "cuda_compatible", "note"}) torch.has(key);
  for (const char* key : {"c10d_backend", "flagcx_adaptor", "flagcx_hetero"}) collective.has(key);
}

void read_measurements(const ConfigTable& table, Chip& chip) {
  if (table.has("measured")) {
    const ConfigTable measured = table.table("measured");
    // What was measured differs from chip to chip; only the matmuls are used by name.
    for (const std::string& key : measured.keys()) measured.has(key);
    read_optional(measured, "gemm_bf16", chip.measured_gemm_bf16_tflops);
    read_optional(measured, "gemm_fp16", chip.measured_gemm_fp16_tflops);
  }
  const ConfigTable mfu = table.table("train_mfu");
  for (const char* key : {"kind", "source"}) mfu.has(key);
  if (!mfu.has("lo") && !mfu.has("hi")) return;
  Interval range;
  mfu.read("lo", range.lo);
  mfu.read("hi", range.hi);
  if (!(range.lo > 0 && range.lo <= range.hi && range.hi <= 1)) {
    fail_usage(
        "{}: train_mfu {}..{} must be a range within 0..1", table.where(), range.lo, range.hi);
  }
  chip.train_mfu = range;
}

Chip read_chip(const ConfigTable& table) {
  Chip chip;
  table.read("id", chip.id);
  if (chip.id.empty()) fail_usage("{}: a chip needs an id", table.where());
  table.read("aliases", chip.aliases);
  table.read("vendor", chip.vendor);
  table.read("name", chip.name);
  table.read("form", chip.form);
  table.read("year", chip.year);
  read_peaks(table.table("peak_dense_tflops"), chip);
  table.read("peak_confidence", chip.peak_confidence);
  table.read("has_bf16", chip.has_bf16);
  table.read("has_fp8", chip.has_fp8);
  table.read("memory_gib", chip.memory_gib);
  chip.usable_memory_gib = kUsableShareOfMemory * chip.memory_gib;
  table.read("usable_memory_gib", chip.usable_memory_gib);
  table.read("memory_type", chip.memory_type);
  table.read("memory_gb_s", chip.memory_gb_s);
  const ConfigTable link = table.table("link");
  link.read("name", chip.link_name);
  link.read("gb_s", chip.link_gb_s);
  link.read("topology", chip.link_topology);
  link.read("note", chip.link_note);
  table.read("power_w", chip.power_w);
  read_software(table.table("torch"), table.table("collective"), chip);
  read_measurements(table, chip);
  table.read("tpp", chip.total_processing_performance);
  table.read("supply_status", chip.supply_status);
  table.read("confidence", chip.confidence);
  table.read("notes", chip.notes);
  table.read("sources", chip.sources);
  if (chip.sources.empty()) fail_usage("{}: chip {} names no source", table.where(), chip.id);
  return chip;
}

std::string lower_case(std::string_view text) {
  std::string lower(text);
  for (char& letter : lower) {
    letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  }
  return lower;
}

}  // namespace

double Chip::training_gemm_tflops() const {
  const auto& measured = has_bf16 ? measured_gemm_bf16_tflops : measured_gemm_fp16_tflops;
  if (measured) return *measured;
  const auto& peak = has_bf16 && bf16_tflops ? bf16_tflops : fp16_tflops;
  return kMatmulShareOfPeak * peak.value_or(0);
}

Catalogue Catalogue::built_in() { return read(kCatalogueToml, "catalogue.toml"); }

Catalogue Catalogue::read(std::string_view toml, const std::string& name) {
  const ConfigTable root = ConfigTable::parse(toml, name);
  Catalogue catalogue;
  std::set<std::string, std::less<>> names;
  for (const ConfigTable& table : root.tables("chip")) {
    Chip chip = read_chip(table);
    std::vector<std::string> chip_names = chip.aliases;
    chip_names.push_back(chip.id);
    for (const std::string& chip_name : chip_names) {
      if (!names.insert(chip_name).second) {
        fail_usage("{}: the name {} is taken by another chip", table.where(), chip_name);
      }
    }
    catalogue.chips_.push_back(std::move(chip));
  }
  root.refuse_unknown();
  return catalogue;
}

const Chip& Catalogue::find(std::string_view id_or_alias) const {
  const std::string wanted = lower_case(id_or_alias);
  std::vector<std::string> names;
  for (const Chip& chip : chips_) {
    if (chip.id == wanted || std::ranges::find(chip.aliases, wanted) != chip.aliases.end()) {
      return chip;
    }
    names.push_back(chip.id);
    names.insert(names.end(), chip.aliases.begin(), chip.aliases.end());
  }
  const std::optional<std::string> nearest = nearest_word(wanted, names);
  if (nearest) fail_usage("no chip is called {}; did you mean {}?", id_or_alias, *nearest);
  fail_usage("no chip is called {}; the catalogue has a100, h20, 910b and {} more, by id or alias",
             id_or_alias,
             chips_.size());
}

}  // namespace pelago::chips
