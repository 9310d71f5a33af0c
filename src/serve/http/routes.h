// Which handler answers which method and path.
#pragma once

#include <map>
#include <string>

#include "serve/http/messages.h"

namespace pelago::serve {

class Routes {
 public:
  /// path: exact, or a prefix that ends in "/*".
  void add(const std::string& method, const std::string& path, HttpHandler handler) {
    handlers_[path][method] = std::move(handler);
  }

  struct Found {
    const HttpHandler* handler = nullptr;
    std::string allowed;  // the methods that the path takes, if not this one: "GET, POST"
  };
  /// The exact path, else the longest prefix that takes the method. HEAD goes where GET does.
  Found find(const std::string& method, const std::string& path) const;

 private:
  std::map<std::string, std::map<std::string, HttpHandler>> handlers_;  // by path, by method
};

}  // namespace pelago::serve
