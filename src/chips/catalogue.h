// Facts about chips, each with its source. No torch here: the planner reads this too.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pelago::chips {

/// A fact that sources give as one number (lo == hi) or as a range.
struct Interval {
  double lo = 0;
  double hi = 0;
  double middle() const { return (lo + hi) / 2; }
};

/// One kind of accelerator. Dense peaks; a missing dtype means that the chip does not have it.
struct Chip {
  std::string id;                    // "nvidia-a100-80g-sxm"
  std::vector<std::string> aliases;  // "a100", ...; no two chips share one
  std::string vendor;                // "NVIDIA"
  std::string name;                  // "A100 80GB SXM"
  std::string form;                  // "SXM4", "PCIe", ...
  int year = 0;
  std::optional<double> fp32_tflops, tf32_tflops, fp16_tflops, bf16_tflops;
  std::optional<double> fp8_tflops, int8_tflops, fp4_tflops;
  std::string peak_confidence;  // "datasheet", "press", ...
  // Figures of 0 are unknown.
  double memory_gib = 0;
  double usable_memory_gib = 0;  // where not measured, 0.94 of memory_gib
  std::string memory_type;
  double memory_gb_s = 0;  // 1e9 bytes a second
  std::string link_name, link_topology, link_note;
  double link_gb_s = 0;  // both directions together, a card
  double power_w = 0;
  bool has_bf16 = false;
  bool has_fp8 = false;
  std::string torch_device;  // "cuda", "npu", ...
  std::string torch_package;
  std::string torch_library;  // "libtorch_npu.so"
  std::string collective_library;
  std::optional<double> measured_gemm_bf16_tflops, measured_gemm_fp16_tflops;
  std::optional<Interval> train_mfu;        // 0..1, dense language models
  double total_processing_performance = 0;  // dense TOPS x bits: what export rules count
  std::string supply_status;
  std::string confidence;
  std::string notes;
  std::vector<std::string> sources;

  /// What a large matmul in the training dtype reaches, TFLOP/s: measured if a measurement is
  /// known, else 0.75 of the dense peak of bf16 (fp16 where the chip has no bf16); 0 if neither is
  /// known.
  double training_gemm_tflops() const;
};

class Catalogue {
 public:
  /// The catalogue that is built into the program (chips/catalogue.toml).
  static Catalogue built_in();
  /// Throws Failure naming file, chip and field.
  static Catalogue read(std::string_view toml, const std::string& name);

  const std::vector<Chip>& chips() const { return chips_; }
  /// By id or by alias ("a100", "h20", "910b", "910a", ...). Throws Failure (exit 2) with the
  /// nearest id if there is none.
  const Chip& find(std::string_view id_or_alias) const;

 private:
  std::vector<Chip> chips_;
};

}  // namespace pelago::chips
