// A plug-in in libtorch's one slot for other people's chips (PrivateUse1). The slot is taken for
// the life of the process, by whoever comes first: one process drives one vendor. The emulator and
// every vendor's plug-in are loaded here, so what the emulator proves holds for the others: the
// file is missing, it was built for another libtorch, it lacks a function, the slot is taken; each
// of these ends in one line that says what to do.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace pelago::chips {

struct PluginRequest {
  std::string who;                                    // "npu:0"; for messages
  std::filesystem::path file;                         // with or without a folder
  std::string remedy;                                 // where there is no such file: "install ..."
  std::vector<std::filesystem::path> looked_in = {};  // for messages
};

/// A loaded plug-in. It stays loaded: libtorch cannot forget a back end.
class Plugin {
 public:
  /// Throws Failure.
  explicit Plugin(const PluginRequest& request);

  const std::filesystem::path& file() const { return file_; }
  /// Null if it has no such symbol.
  void* try_find(const char* symbol) const;
  /// Throws Failure naming file, symbol and remedy.
  template <typename Function>
  void find(Function*& function, const char* symbol, const std::string& remedy) const {
    function = reinterpret_cast<Function*>(find_or_fail(symbol, remedy));
  }

 private:
  void* find_or_fail(const char* symbol, const std::string& remedy) const;

  std::filesystem::path file_;
  void* library_ = nullptr;
};

/// Whether a plug-in holds libtorch's slot in this process.
bool is_slot_taken();

}  // namespace pelago::chips
