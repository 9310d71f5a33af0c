// What many tests of this room begin with.
#pragma once

#include <string>

#include "chips/catalogue.h"

namespace pelago::chips {

inline const Catalogue& catalogue() {
  static const Catalogue the_catalogue = Catalogue::built_in();
  return the_catalogue;
}

inline bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace pelago::chips
