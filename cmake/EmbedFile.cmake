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

# pelago_embed_folder(TARGET FOLDER HEADER FUNCTION): compiles the text files of a folder into TARGET, as what
# HEADER declares: `std::span<const EmbeddedFile> FUNCTION()` in its namespace. Without the folder there are none.
function(pelago_embed_folder target folder header namespace function)
  file(GLOB_RECURSE names RELATIVE ${folder} CONFIGURE_DEPENDS ${folder}/*)
  set(entries "")
  foreach(name ${names})
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${folder}/${name})
    file(READ ${folder}/${name} text)
    string(APPEND entries "    {\"${name}\", R\"embedded(${text})embedded\"sv},\n")
  endforeach()
  list(LENGTH names num_files)
  set(source ${CMAKE_BINARY_DIR}/embedded/${function}.cpp)
  file(CONFIGURE OUTPUT ${source} @ONLY CONTENT
[[#include "@header@"

#include <array>
namespace @namespace@ {
using namespace std::string_view_literals;  // the length is known without a run-time start-up
namespace {
constexpr std::array<EmbeddedFile, @num_files@> kFiles = {{
@entries@}};
}  // namespace
std::span<const EmbeddedFile> @function@() { return kFiles; }
}  // namespace @namespace@
]])
  target_sources(${target} PRIVATE ${source})
endfunction()
