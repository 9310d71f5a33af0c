// Each rule is shown something that breaks it, and something near by that does not.
#include "rules.h"

#include <doctest/doctest.h>

namespace pelago::house {
namespace {

template <typename Check>
size_t num_found(Check check, const std::string& path, const std::string& text) {
  return check(make_source_file(path, text)).size();
}

std::string function_of(int num_lines) {
  std::string text = "namespace a {\nclass B {\n  int f(int x = 1) const\n  {\n";
  for (int i = 0; i < num_lines; ++i) text += "    if (x) { x = 2; }\n";
  return text + "  }\n};\n}\n";
}

TEST_CASE("comments and strings are told from code") {
  const SourceFile file = make_source_file(
      "src/a/b.cpp",
      "int a = 1'000;  // one\nauto s = \"two \\\" // three\"; /* four */ x = '\"';\n");
  CHECK(file.code.find("1'000;") != std::string::npos);
  CHECK(file.code.find("one") == std::string::npos);
  CHECK(file.comments.find("one") != std::string::npos);
  CHECK(file.comments.find("three") == std::string::npos);
  CHECK(file.code.find("x =") != std::string::npos);
  CHECK(make_source_file("a.cpp", "R\"x(a )\" b)x\" c").code.find(" c") != std::string::npos);
  CHECK(make_source_file("a.cpp", "R\"x(a )\" b)x\" c").code.find('b') == std::string::npos);
}

TEST_CASE("an include of a room above is found") {
  CHECK(num_found(check_rooms, "src/base/a.h", "#include \"chips/device.h\"\n") == 1);
  CHECK(num_found(check_rooms, "src/train/a.h", "#include \"sites/agent.h\"\n") == 1);
  CHECK(num_found(check_rooms, "src/data/a.cpp", "#include \"chips/tensor.h\"\n") == 1);
  CHECK(num_found(check_rooms, "src/plan/a.h", "#include \"chips/device.h\"\n") == 1);
  CHECK(num_found(check_rooms, "src/plan/a.h", "#include \"chips/catalogue.h\"\n") == 0);
  CHECK(num_found(check_rooms, "src/plan/a.h", "#include \"model/config.h\"\n") == 0);
  CHECK(num_found(check_rooms, "src/train/a.h", "#include \"model/transformer.h\"\n") == 0);
  CHECK(num_found(check_rooms, "src/train/a.h", "#include \"rank/control.h\"\n") == 1);
  CHECK(num_found(check_rooms, "src/attic/a.h", "") == 1);
}

TEST_CASE("a room list in CMake that reaches upwards is found") {
  CHECK(check_cmake_rooms("pelago_room(base LIBS fmt::fmt)\n").empty());
  CHECK(check_cmake_rooms("pelago_room(plan USES base chips model\n  LIBS x)\n").empty());
  CHECK(check_cmake_rooms("pelago_room(data USES base chips)\n").size() == 1);
  CHECK(check_cmake_rooms("pelago_room(attic USES base)\n").size() == 1);
}

TEST_CASE("a library in a room that may not name it is found") {
  const auto found = [](const std::string& path, const std::string& include) {
    return num_found(check_libraries, path, "#include <" + include + ">\n");
  };
  CHECK(found("src/data/a.cpp", "torch/torch.h") == 1);
  CHECK(found("src/plan/a.cpp", "c10/core/Device.h") == 1);
  CHECK(found("src/model/config.h", "ATen/core/Tensor.h") == 1);
  CHECK(found("src/chips/catalogue.h", "ATen/core/Tensor.h") == 1);
  CHECK(found("src/model/transformer.h", "torch/torch.h") == 0);
  CHECK(found("src/sites/agent.cpp", "grpcpp/grpcpp.h") == 1);
  CHECK(found("src/sites/transport/grpc_server.cpp", "grpcpp/grpcpp.h") == 0);
  CHECK(found("src/sites/grpc_server.h", "wire.pb.h") == 1);
  CHECK(found("src/sites/agent.cpp", "openssl/ssl.h") == 1);
  CHECK(found("src/sites/tls.cpp", "openssl/ssl.h") == 0);
  CHECK(found("src/sites/agent.cpp", "sqlite3.h") == 1);
  CHECK(found("src/sites/journal.cpp", "sqlite3.h") == 0);
  CHECK(found("src/plan/fleet.cpp", "toml++/toml.h") == 1);
  CHECK(found("src/base/config.cpp", "toml++/toml.h") == 0);
  CHECK(found("src/train/a.cpp", "CLI/CLI.hpp") == 1);
  CHECK(found("src/model/a.cpp", "simdjson.h") == 1);
  CHECK(found("src/data/a.cpp", "pcre2.h") == 0);
  CHECK(found("src/train/a.cpp", "ucp/api/ucp.h") == 1);
}

TEST_CASE("a header that leaves its part of the standard library to others is found") {
  const auto num_missing = [](const std::string& text) {
    return check_standard_headers(
               {make_source_file("src/a/a.h", text),
                make_source_file("src/a/words.h", "#include <string>\n#include <vector>\n")})
        .size();
  };
  CHECK(num_missing("std::string a();\nstd::string b();\n") == 1);
  CHECK(num_missing("std::string a(std::vector<int> b);\n") == 2);
  CHECK(num_missing("#include <string>\nstd::string a();\n") == 0);
  CHECK(num_missing("#include \"a/words.h\"\nstd::string a();\n") == 0);
  CHECK(num_missing("#include <string>\nstd::string_view a();\n") == 0);
  CHECK(num_missing("#include <string_view>\nstd::string a();\n") == 1);
  CHECK(num_missing("// std::string\nstruct string;\n") == 0);
  CHECK(num_missing("uint32_t a();\n") == 1);
  CHECK(num_missing("#include <cstdint>\nint64_t a(std::int8_t b);\n") == 0);
  CHECK(num_missing("std::string a() { return fmt::format(\"a\"); }\n#include <string>\n") == 1);
  CHECK(check_precompiled_headers(make_source_file("a.h", "#include <regex>\n")).size() == 1);
}

TEST_CASE("libtorch taken whole, or by a header outside model, is found") {
  const std::string ours = "#include \"chips/torch.h\"\n";
  CHECK(num_found(check_heavy_headers, "src/train/a.h", ours) == 1);
  CHECK(num_found(check_heavy_headers, "src/train/a.cpp", ours) == 0);
  CHECK(num_found(check_heavy_headers, "src/model/a.h", ours) == 0);
  CHECK(num_found(check_heavy_headers, "src/train/a.cpp", "#include <torch/torch.h>\n") == 1);
}

TEST_CASE("files past their length are found") {
  const auto lines = [](size_t count) { return std::string(count, '\n'); };
  CHECK(num_found(check_file_size, "src/a/b.h", lines(201)) == 1);
  CHECK(num_found(check_file_size, "src/a/b.h", lines(200)) == 0);
  CHECK(num_found(check_file_size, "src/a/b-inl.h", lines(300)) == 0);
  CHECK(num_found(check_file_size, "src/a/b.cpp", lines(601)) == 1);
  CHECK(num_found(check_file_size, "src/a/b.cpp", lines(600)) == 0);
  CHECK(num_found(warn_file_size, "src/a/b.cpp", lines(401)) == 1);
  CHECK(num_found(warn_file_size, "src/a/b.cpp", lines(400)) == 0);
}

TEST_CASE("functions past their length are found, tables are not functions") {
  CHECK(num_found(check_function_size, "src/a/b.cpp", function_of(61)) == 1);
  CHECK(num_found(check_function_size, "src/a/b.cpp", function_of(60)) == 0);
  std::string table = "const int kTable[] = {\n";
  std::string constructor = "A::A(int a)\n    : a_{a} {\n";
  for (int i = 0; i < 80; ++i) {
    table += "  1,\n";
    constructor += "  for (;;) {}\n";
  }
  CHECK(num_found(check_function_size, "src/a/b.cpp", table + "};\n") == 0);
  CHECK(num_found(check_function_size, "src/a/b.cpp", constructor + "}\n") == 1);
}

TEST_CASE("folders past their number of files are found") {
  std::vector<SourceFile> files;
  for (int i = 0; i < 11; ++i) {
    files.push_back(make_source_file("src/base/" + std::to_string(i) + ".h", ""));
    files.push_back(make_source_file("src/chips/" + std::to_string(i) + ".h", ""));
  }
  CHECK(check_folder_sizes(files).size() == 1);  // base holds 10
  files.push_back(make_source_file("src/chips/x.h", ""));
  CHECK(check_folder_sizes(files).size() == 1);
  files.push_back(make_source_file("src/chips/y.h", ""));
  CHECK(check_folder_sizes(files).size() == 2);
}

TEST_CASE("names that say nothing are found") {
  CHECK(num_found(check_names, "src/a/b.cpp", "class PageManager;") == 1);
  CHECK(num_found(check_names, "src/a/b.cpp", "int string_utils();") == 1);
  CHECK(num_found(check_names, "src/a/b.cpp", "struct CommonOptions;") == 1);
  CHECK(num_found(check_names, "src/a/b.cpp", "void do_step();") == 1);
  CHECK(num_found(check_names, "src/a/helpers.h", "") == 1);
  CHECK(num_found(check_names, "src/a/b.cpp", "#include <c10/util/Exception.h>\nnn::utils::f();") ==
        0);
  CHECK(num_found(check_names, "src/a/b.cpp", "// a manager\nstd::common_type_t<A> todo_;") == 0);
}

TEST_CASE("open ends are found, in comments too") {
  CHECK(num_found(check_marks, "src/a/b.cpp", "// TODO: later\n") == 1);
  CHECK(num_found(check_marks, "src/a/b.cpp", "// TODO(#42): later\n") == 0);
  CHECK(num_found(check_marks, "src/a/b.cpp", "// FIXME\n") == 1);
  CHECK(num_found(check_marks, "src/a/b.cpp", "// XXX\n") == 1);
  CHECK(num_found(check_marks, "src/a/b.cpp", "// an ugly hack\n") == 1);
  CHECK(num_found(check_marks, "src/a/b.cpp", "#if 0\n#endif\n") == 1);
  CHECK(num_found(check_marks, "src/a/b.cpp", "mkdtemp(\"a-XXX\");  // hackathon\n") == 0);
}

TEST_CASE("a vendor's name outside chips is found") {
  CHECK(num_found(check_vendor_names, "src/train/a.cpp", "use_cuda();") == 1);
  CHECK(num_found(check_vendor_names, "src/train/a.cpp", "open(\"npu:0\");") == 1);
  CHECK(num_found(check_vendor_names, "src/train/a.cpp", "struct NvidiaCard;") == 1);
  CHECK(num_found(check_vendor_names, "src/train/a.cpp", "// as cuda does\nint input;") == 0);
  CHECK(num_found(check_vendor_names, "src/chips/cuda/a.cpp", "use_cuda();") == 0);
  CHECK(num_found(check_vendor_names, "src/cli/a.cpp", "help(\"such as cuda:0\");") == 0);
  CHECK(num_found(check_vendor_names, "src/cli/a.cpp", "open_cuda();") == 1);
}

TEST_CASE("a header without its guard is found") {
  CHECK(num_found(check_pragma_once, "src/a/b.h", "// Why.\n\n#pragma once\n") == 0);
  CHECK(num_found(check_pragma_once, "src/a/b.h", "#include <string>\n#pragma once\n") == 1);
  CHECK(num_found(check_pragma_once, "src/a/b.h", "// Why.\n") == 1);
  CHECK(num_found(check_pragma_once, "src/a/b.cpp", "int a;\n") == 0);
  CHECK(num_found(check_pragma_once, "src/a/b-inl.h", "int a;\n") == 0);
}

TEST_CASE("a namespace opened for a whole file is found") {
  CHECK(num_found(check_using_namespace, "src/a/b.cpp", "using namespace std;\n") == 1);
  CHECK(num_found(check_using_namespace, "src/chips/torch.h", "using namespace at;\n") == 0);
  CHECK(num_found(check_using_namespace, "src/a/b.cpp", "f() {\n  using namespace std;\n}") == 0);
}

TEST_CASE("a look into the environment is found") {
  CHECK(num_found(check_environment, "src/train/a.cpp", "std::getenv(\"HOME\");") == 1);
  CHECK(num_found(check_environment, "src/train/a.cpp", "// getenv\n") == 0);
  CHECK(num_found(check_environment, "src/chips/ucx/session.cpp", "std::getenv(\"A\");") == 0);
}

TEST_CASE("a path of one machine is found") {
  CHECK(check_local_paths("a", "cd /home/ada/pelago\n").size() == 1);
  CHECK(check_local_paths("a", "\"/root/pelago\"").size() == 1);
  CHECK(check_local_paths("a", "/usr/include and runs/home/x").empty());
}

}  // namespace
}  // namespace pelago::house
