#include "serve/http/routes.h"

namespace pelago::serve {

Routes::Found Routes::find(const std::string& method, const std::string& path) const {
  Found found;
  const auto look = [&](const std::string& key) {
    const auto at = handlers_.find(key);
    if (at == handlers_.end()) return;
    const auto handler = at->second.find(method == "HEAD" ? "GET" : method);
    if (handler != at->second.end()) {
      found.handler = &handler->second;
      return;
    }
    for (const auto& [name, unused] : at->second) {
      if (found.allowed.find(name) != std::string::npos) continue;
      found.allowed += (found.allowed.empty() ? "" : ", ") + name;
    }
  };
  look(path);
  for (size_t end = path.size(); found.handler == nullptr && end > 0; --end) {
    if (path[end - 1] == '/') look(path.substr(0, end) + '*');
  }
  return found;
}

}  // namespace pelago::serve
