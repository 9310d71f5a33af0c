#include "serve/web/pages.h"

namespace pelago::serve {

namespace {

constexpr std::string_view kNoPages =
    "<!doctype html><title>pelago</title><p>This program was built without its pages: the folder "
    "web/dist was missing. Restore it with git, or make it with scripts/web build (needs node), "
    "and "
    "build again.</p>\n";

}  // namespace

void add_pages(StaticFiles& files, const std::string& index) {
  std::string_view front = kNoPages;
  for (const EmbeddedFile& file : embedded_pages()) {
    files.add(std::string(file.name), file.content);
    if (file.name == index) front = file.content;
  }
  files.add("index.html", front);
}

}  // namespace pelago::serve
