// The rules of the house that a program can check. Each takes what it looks at as values, so that
// rules_test.cpp can show it something that breaks the rule and see it turn red.
#pragma once

#include <string>
#include <vector>

#include "source_file.h"

namespace pelago::house {

// include_rules.cpp: who may know whom.

/// A room includes only the rooms below it.
std::vector<Violation> check_rooms(const SourceFile& file);
/// A library is named only where the table allows it.
std::vector<Violation> check_libraries(const SourceFile& file);
/// chips/torch.h is what pelago uses of libtorch, precompiled: nobody takes torch/torch.h, and
/// headers outside model leave even ours to their .cpp.
std::vector<Violation> check_heavy_headers(const SourceFile& file);
/// The USES lists of CMakeLists.txt say the same as the table. cmake: its text.
std::vector<Violation> check_cmake_rooms(const std::string& cmake);

// std_rules.cpp: what a header may not leave to others to include.

/// A header of src/ includes what it names of the standard library and fmt, itself or through
/// headers of ours. Headers behind libtorch's, which bring most of it, are not looked at.
std::vector<Violation> check_standard_headers(const std::vector<SourceFile>& files);
/// What house_headers precompiles is what the rule above knows.
std::vector<Violation> check_precompiled_headers(const SourceFile& file);

// size_rules.cpp: when a file holds two ideas.

/// Header up to 200 lines, source up to 600.
std::vector<Violation> check_file_size(const SourceFile& file);
/// A source between 400 and 600 lines: allowed, and said.
std::vector<Violation> warn_file_size(const SourceFile& file);
/// Up to 60 lines between a function's outermost braces.
std::vector<Violation> check_function_size(const SourceFile& file);
/// Up to 12 files directly in a folder, 10 in src/base; src/cli is a list of commands and exempt.
std::vector<Violation> check_folder_sizes(const std::vector<SourceFile>& files);

// word_rules.cpp: what may stand in a file.

/// No Manager, Helper, Util, Common, do_ in names of things or files. Names of other libraries,
/// which stand behind `::` or in an include, are theirs.
std::vector<Violation> check_names(const SourceFile& file);
/// No open ends: TODO(#42) names an issue, the other marks are never allowed.
std::vector<Violation> check_marks(const SourceFile& file);
/// A vendor's name stands only in src/chips; the texts of src/cli may show examples.
std::vector<Violation> check_vendor_names(const SourceFile& file);
/// A header's first line after its opening comment is #pragma once.
std::vector<Violation> check_pragma_once(const SourceFile& file);
/// No `using namespace` at file scope.
std::vector<Violation> check_using_namespace(const SourceFile& file);
/// Settings come from files and options: the environment is read only where a library leaves no
/// other way.
std::vector<Violation> check_environment(const SourceFile& file);
/// No path that exists only on somebody's machine. text: of any file, also of scripts and pages.
std::vector<Violation> check_local_paths(const std::string& path, const std::string& text);

}  // namespace pelago::house
