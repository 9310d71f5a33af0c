// The weights of a Hugging Face folder as they lie in its files, mapped and checked, nothing
// converted: for those who want another form of them than one flat vector of f32.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "chips/tensor.h"
#include "model/config.h"
#include "model/quantisation.h"
#include "model/safetensors.h"

namespace pelago::model {

/// A parameter: numbers, or levels with their scales. Views of mapped files.
struct StoredParameter {
  Tensor numbers;  // F32, F16 or BF16, the parameter's shape; undefined for levels
  Tensor packed;   // I32 [Out, In * bits / 32]
  Tensor scales;   // F16 or BF16 [Out, In / group]
};

/// The folder's files, open.
class StoredModel {
 public:
  /// Throws Failure naming file and tensor: missing, superfluous, misshapen, in two files, of
  /// another dtype. A tied head that was written a second time must equal the embedding.
  explicit StoredModel(const std::filesystem::path& folder);
  const ModelConfig& config() const { return config_; }
  const std::optional<Quantisation>& quantisation() const { return quantisation_; }
  /// name: one of parameter_specs(config()).
  const StoredParameter& parameter(const std::string& name) const { return parameters_.at(name); }

 private:
  void take(const SafetensorsFile& file, const std::string& name, const std::string& path);
  void check_levels(const std::string& name, const StoredParameter& parameter) const;

  std::filesystem::path folder_;
  ModelConfig config_;
  std::optional<Quantisation> quantisation_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, std::vector<int64_t>> shapes_;  // of the parameters
  std::map<std::string, StoredParameter> parameters_;
  Tensor second_head_;  // [V,D], undefined unless a tied head was written twice
};

/// The numbers of a parameter, f32, whatever its form.
Tensor to_numbers(const StoredParameter& parameter,
                  const std::optional<Quantisation>& quantisation);

}  // namespace pelago::model
