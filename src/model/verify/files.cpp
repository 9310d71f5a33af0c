// Tensors travel as safetensors; what is no tensor stands in that file's metadata as JSON.
#include "base/files.h"

#include <fmt/format.h>

#include "base/error.h"
#include "base/text/json.h"
#include "chips/torch.h"
#include "model/safetensors.h"
#include "model/verify/verification.h"

namespace pelago::model {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

using Tensors = std::vector<std::pair<std::string, Tensor>>;

/// The file holds contiguous tensors; a transposed matrix keeps its layout, which decides the
/// kernel that a library takes for it.
bool is_transposed(const Tensor& tensor) {
  return tensor.dim() == 2 && !tensor.is_contiguous() && tensor.t().is_contiguous();
}

json to_json(const chips::OperatorCall& call, const std::string& prefix, Tensors& tensors) {
  json arguments = json::array();
  for (size_t i = 0; i < call.arguments.size(); ++i) {
    const chips::CallArgument& argument = call.arguments[i];
    if (const Tensor* const tensor = std::get_if<Tensor>(&argument)) {
      const std::string name = fmt::format("{}.{}", prefix, i);
      const bool transposed = is_transposed(*tensor);
      tensors.emplace_back(name, (transposed ? tensor->t() : *tensor).contiguous());
      arguments.push_back({{"tensor", name}, {"transposed", transposed}});
    } else if (const double* const number = std::get_if<double>(&argument)) {
      arguments.push_back({{"double", *number}});
    } else if (const int64_t* const integer = std::get_if<int64_t>(&argument)) {
      arguments.push_back({{"int", *integer}});
    } else if (const bool* const flag = std::get_if<bool>(&argument)) {
      arguments.push_back({{"bool", *flag}});
    } else {
      arguments.push_back(nullptr);
    }
  }
  return {{"op", call.op},
          {"overload", call.overload},
          {"phase", call.phase},
          {"arguments", arguments}};
}

chips::OperatorCall call_from_json(const json& value, const SafetensorsFile& file) {
  chips::OperatorCall call{value.at("op"), value.at("overload"), value.at("phase"), {}};
  for (const json& argument : value.at("arguments")) {
    if (argument.contains("tensor")) {
      const Tensor tensor = file.tensor(argument.at("tensor")).clone();
      call.arguments.emplace_back(argument.at("transposed") ? tensor.t() : tensor);
    } else if (argument.contains("double")) {
      call.arguments.emplace_back(argument.at("double").get<double>());
    } else if (argument.contains("int")) {
      call.arguments.emplace_back(argument.at("int").get<int64_t>());
    } else if (argument.contains("bool")) {
      call.arguments.emplace_back(argument.at("bool").get<bool>());
    } else {
      call.arguments.emplace_back(std::monostate());
    }
  }
  return call;
}

void write(const fs::path& path,
           const Tensors& tensors,
           const std::map<std::string, std::string>& metadata) {
  const Status status = try_write_safetensors(path, tensors, metadata);
  if (!status) fail("{}: cannot be written: {}", path.string(), status.error().message);
}

const std::string& metadata_of(const SafetensorsFile& file,
                               const fs::path& path,
                               const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) {
    fail("{}: the metadata lacks {}; verify again", path.string(), key);
  }
  return found->second;
}

}  // namespace

void write_task(const VerificationTask& task, const fs::path& folder) {
  Tensors tensors = {{"weights", task.weights}, {"tokens", task.tokens}, {"targets", task.targets}};
  json calls = json::array();
  for (const chips::OperatorCall& call : task.calls) {
    calls.push_back(to_json(call, fmt::format("call.{}", calls.size()), tensors));
  }
  write_file(folder / "config.json", to_config_json(task.config, "bfloat16"));
  write(folder / "task.safetensors", tensors, {{"calls", calls.dump()}});
}

VerificationTask read_task(const fs::path& folder) {
  const fs::path path = folder / "task.safetensors";
  const SafetensorsFile file(path);
  VerificationTask task;
  task.config = read_model_config(folder / "config.json");
  task.weights = file.tensor("weights").clone();
  task.tokens = file.tensor("tokens").clone();
  task.targets = file.tensor("targets").clone();
  try {
    for (const json& call : parse_json(metadata_of(file, path, "calls"))) {
      task.calls.push_back(call_from_json(call, file));
    }
  } catch (const json::exception& error) {
    fail("{}: calls cannot be read ({}); verify again", path.string(), error.what());
  }
  return task;
}

void write_answers(const DeviceAnswers& answers, const fs::path& file) {
  Tensors tensors;
  for (const auto& [name, tensor] : answers.tensors)
    tensors.emplace_back(name, tensor.contiguous());
  write(file,
        tensors,
        {{"device", answers.device},
         {"training_dtype", std::to_string(static_cast<int>(answers.training_dtype))}});
}

DeviceAnswers read_answers(const fs::path& path) {
  const SafetensorsFile file(path);
  DeviceAnswers answers;
  answers.device = metadata_of(file, path, "device");
  answers.training_dtype =
      static_cast<c10::ScalarType>(std::stoi(metadata_of(file, path, "training_dtype")));
  for (const std::string& name : file.names()) {
    answers.tensors.emplace_back(name, file.tensor(name).clone());
  }
  return answers;
}

}  // namespace pelago::model
