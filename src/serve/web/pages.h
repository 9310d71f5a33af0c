// The two pages, as web/ builds them: chat, which talks to the API, and the dashboard of a run.
// Their files are committed (web/dist) and compiled in, so that neither a build nor a user needs
// node or the network; a test compares them with the hashes of their sources.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "serve/http/static_files.h"

namespace pelago::serve {

struct EmbeddedFile {
  std::string_view name;  // "assets/chat.js"
  std::string_view content;
};

/// All files of both pages; none in a program built without web/dist.
std::span<const EmbeddedFile> embedded_pages();

/// Adds the files of both pages, and that page as index.html: "chat.html" or "dashboard.html". In a
/// program built without them the index says how to get them.
void add_pages(StaticFiles& files, const std::string& index);

}  // namespace pelago::serve
