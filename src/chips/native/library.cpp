#include "chips/native/library.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/files.h"
#include "chips/native/functions.h"

namespace pelago::chips::native {
namespace {

/// A file that dlopen found. Libraries stay loaded: vendors' do not survive being unloaded.
struct Opened {
  void* handle = nullptr;
  std::string path;
};

Opened open_first(const std::vector<const char*>& files, const std::filesystem::path& folder) {
  std::string reasons;
  for (const char* file : files) {
    for (const std::filesystem::path& path : {folder / file, std::filesystem::path(file)}) {
      if (path.has_parent_path() && !std::filesystem::exists(path)) continue;
      void* const handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle != nullptr) return {handle, path.string()};
      const char* const reason = ::dlerror();
      if (reason != nullptr) reasons += (reasons.empty() ? "" : "; ") + std::string(reason);
    }
  }
  return {nullptr, reasons};
}

std::string joined(const std::vector<const char*>& files) {
  std::string text;
  for (const char* file : files) text += (text.empty() ? "" : " or ") + std::string(file);
  return text;
}

/// Finds functions by name, and fails naming the first that is not there.
class Finder {
 public:
  Finder(const LibraryFacts& facts, const Opened& opened) : facts_(facts), opened_(opened) {}

  template <typename Function>
  void find(Function& function, const char* symbol) const {
    if (*symbol == '\0') return;
    function = reinterpret_cast<Function>(::dlsym(opened_.handle, symbol));
    if (function == nullptr) {
      fail(
          "the collective library {} ({}) lacks the symbol {}: it is too old or another library; "
          "{}",
          facts_.name,
          opened_.path,
          symbol,
          facts_.how_to_get);
    }
  }

 private:
  const LibraryFacts& facts_;
  const Opened& opened_;
};

Opened open_or_fail(const LibraryFacts& facts,
                    const std::vector<const char*>& files,
                    const std::filesystem::path& folder) {
  Opened opened = open_first(files, folder);
  if (opened.handle == nullptr) {
    fail(
        "the collective library {} cannot be opened: looked for {} in {} and on the loader's path "
        "({}); {}",
        facts.name,
        joined(files),
        folder.string(),
        opened.path,
        facts.how_to_get);
  }
  return opened;
}

}  // namespace

Library::Library(std::string_view name, const std::filesystem::path& folder)
    : Library(find_library(name), folder) {}

Library::Library(const LibraryFacts& facts, const std::filesystem::path& folder) {
  const std::filesystem::path first = folder.empty() ? program_path().parent_path() : folder;
  const Opened opened = open_or_fail(facts, facts.files, first);
  const Finder library(facts, opened);
  const Symbols& symbols = facts.symbols;
  auto functions = std::make_shared<Functions>();
  functions->facts = &facts;
  functions->path = opened.path;
  library.find(functions->get_unique_id, symbols.get_unique_id);
  library.find(functions->init, symbols.init);
  library.find(functions->init_with_links, symbols.init_with_links);
  library.find(functions->destroy, symbols.destroy);
  library.find(functions->abort, symbols.abort);
  library.find(functions->all_reduce, symbols.all_reduce);
  library.find(functions->reduce_scatter, symbols.reduce_scatter);
  library.find(functions->all_gather, symbols.all_gather);
  library.find(functions->broadcast, symbols.broadcast);
  library.find(functions->send, symbols.send);
  library.find(functions->receive, symbols.receive);
  library.find(functions->group_start, symbols.group_start);
  library.find(functions->group_end, symbols.group_end);
  library.find(functions->batch_messages, symbols.batch_messages);
  library.find(functions->error_text, symbols.error_text);
  library.find(functions->last_error, symbols.last_error);
  if (!facts.queue.files.empty()) {
    const Opened runtime = open_or_fail(facts, facts.queue.files, first);
    const Finder queues(facts, runtime);
    queues.find(functions->create_queue, facts.queue.create);
    queues.find(functions->synchronize_queue, facts.queue.synchronize);
    queues.find(functions->destroy_queue, facts.queue.destroy);
  }
  functions_ = std::move(functions);
}

const LibraryFacts& Library::facts() const { return *functions_->facts; }

std::vector<std::byte> Library::make_unique_id() const {
  std::vector<std::byte> id(facts().unique_id_bytes);
  functions_->check(functions_->get_unique_id(id.data()),
                    facts().symbols.get_unique_id,
                    /*comm=*/nullptr,
                    /*options=*/{});
  return id;
}

void Library::Functions::check(int result,
                               const char* call,
                               Handle comm,
                               const CommunicatorOptions& options) const {
  if (result == 0) return;
  if (last_error != nullptr) {
    const char* const text = last_error(comm);
    if (text != nullptr && *text != '\0') fail("{} ({} of {})", text, call, facts->name);
  }
  const char* const text = error_text(result);
  fail("{} of {} failed on rank {} of {}: {} (result {}); its own log says more",
       call,
       facts->name,
       options.rank,
       options.num_ranks,
       text != nullptr ? text : "no text",
       result);
}

}  // namespace pelago::chips::native
