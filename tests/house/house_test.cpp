// The rules, on the repository itself.
#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "rules.h"

namespace pelago::house {
namespace {

const std::filesystem::path kRoot = PELAGO_SOURCE_DIR;

std::vector<SourceFile> sources_in(const std::vector<std::string>& folders) {
  std::vector<SourceFile> files;
  for (const std::string& folder : folders) {
    for (SourceFile& file : read_sources(kRoot, folder)) files.push_back(std::move(file));
  }
  return files;
}

const std::vector<SourceFile>& all_sources() {
  static const std::vector<SourceFile> files = sources_in({"src", "tests", "bench"});
  return files;
}

std::string read_text(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::string listed(const std::vector<Violation>& violations) {
  std::string lines;
  for (const Violation& violation : violations) {
    lines += "\n  " + violation.path + ":" + std::to_string(violation.line) + ": " + violation.what;
  }
  return lines;
}

void expect_none(const std::vector<Violation>& violations) {
  CHECK_MESSAGE(violations.empty(), listed(violations));
}

template <typename Check>
void expect_none_in_sources(Check check) {
  std::vector<Violation> all;
  for (const SourceFile& file : all_sources()) {
    for (Violation& violation : check(file)) all.push_back(std::move(violation));
  }
  expect_none(all);
}

TEST_CASE("the house is where the test looks for it") {
  CHECK(std::ranges::any_of(all_sources(),
                            [](const auto& file) { return file.path == "src/base/error.h"; }));
}

TEST_CASE("a room includes only rooms below it") {
  expect_none_in_sources(check_rooms);
  expect_none(check_cmake_rooms(read_text(kRoot / "CMakeLists.txt")));
}

TEST_CASE("a library is named only where the table allows it") {
  expect_none_in_sources(check_libraries);
  expect_none_in_sources(check_heavy_headers);
}

TEST_CASE("a header includes what it names of the standard library") {
  expect_none(check_standard_headers(all_sources()));
  const std::string precompiled = "tests/house/std_headers.h";
  expect_none(
      check_precompiled_headers(make_source_file(precompiled, read_text(kRoot / precompiled))));
}

TEST_CASE("files, functions and folders hold one idea each") {
  expect_none_in_sources(check_file_size);
  expect_none_in_sources(check_function_size);
  expect_none(check_folder_sizes(all_sources()));
  for (const SourceFile& file : all_sources()) {
    const std::string warning = listed(warn_file_size(file));
    if (!warning.empty()) MESSAGE(warning);
  }
}

TEST_CASE("names say something and nothing is left open") {
  expect_none_in_sources(check_names);
  expect_none_in_sources(check_marks);
}

TEST_CASE("vendors stand only in src/chips") { expect_none_in_sources(check_vendor_names); }

TEST_CASE("headers guard themselves and nobody opens a namespace at file scope") {
  expect_none_in_sources(check_pragma_once);
  expect_none_in_sources(check_using_namespace);
}

TEST_CASE("no setting comes from the environment, no path from one machine") {
  expect_none_in_sources(check_environment);
  std::vector<Violation> all;
  for (const std::string folder :
       {"src", "tests", "bench", "scripts", "docs", "examples", "cmake"}) {
    if (!std::filesystem::exists(kRoot / folder)) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(kRoot / folder)) {
      const std::string path = std::filesystem::relative(entry.path(), kRoot).generic_string();
      if (!entry.is_regular_file() || path.starts_with("tests/house/")) continue;
      for (Violation& violation : check_local_paths(path, read_text(entry.path()))) {
        all.push_back(std::move(violation));
      }
    }
  }
  for (const std::string page : {"README.md", "CONTRIBUTING.md", "CMakeLists.txt"}) {
    for (Violation& violation : check_local_paths(page, read_text(kRoot / page))) {
      all.push_back(std::move(violation));
    }
  }
  expect_none(all);
}

}  // namespace
}  // namespace pelago::house
