# pelago_embed_file(TARGET FILE NAMESPACE SYMBOL): compiles a text file into TARGET as
# `extern const std::string_view NAMESPACE::SYMBOL`, again whenever the file changes.
function(pelago_embed_file target file namespace symbol)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  file(READ ${file} text)
  set(source ${CMAKE_BINARY_DIR}/embedded/${symbol}.cpp)
  file(CONFIGURE OUTPUT ${source} @ONLY CONTENT
[[#include <string_view>
namespace @namespace@ {
using namespace std::string_view_literals;  // the length is known without a run-time start-up
extern const std::string_view @symbol@;
const std::string_view @symbol@ = R"embedded(@text@)embedded"sv;
}  // namespace @namespace@
]])
  target_sources(${target} PRIVATE ${source})
endfunction()
