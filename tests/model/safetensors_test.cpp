#include "model/safetensors.h"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "model/model_support.h"

namespace pelago::model {
namespace {

/// A file of this header and this many bytes of data.
std::string file_of(const std::string& header, size_t data_bytes) {
  const uint64_t header_bytes = header.size();
  std::string file(sizeof header_bytes, '\0');
  std::memcpy(file.data(), &header_bytes, sizeof header_bytes);
  return file + header + std::string(data_bytes, '\0');
}

/// The Failure that reading this content throws, without the folder in front.
std::string refusal_to_read(const std::string& content) {
  const ScratchFolder folder;
  const auto path = folder.path() / "x.safetensors";
  write_file(path, content);
  const std::string message = failure_of([&] { SafetensorsFile file(path); });
  return message.starts_with(path.string() + ": ") ? message.substr(path.string().size() + 2)
                                                   : message;
}

TEST_CASE("a written file is the published format, byte for byte") {
  const ScratchFolder folder;
  const auto path = folder.path() / "x.safetensors";
  const Tensor narrow = at::tensor({1.0F, -2.0F}).to(at::kBFloat16);
  const Tensor wide = at::tensor({1, 2, 3}, at::kInt).view({1, 3});
  REQUIRE(try_write_safetensors(path, {{"b", narrow}, {"a", wide}}, {{"format", "pt"}}));

  std::string header = R"({"__metadata__":{"format":"pt"},)"
                       R"("a":{"dtype":"I32","shape":[1,3],"data_offsets":[0,12]},)"
                       R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[12,16]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string wanted = file_of(header, 0);
  wanted += std::string("\1\0\0\0\2\0\0\0\3\0\0\0", 12) + std::string("\x80\x3f\x00\xc0", 4);
  CHECK(read_text_file(path) == wanted);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("tensors of every dtype and shape come back as they were") {
  const ScratchFolder folder;
  const auto path = folder.path() / "x.safetensors";
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const auto dtype : {at::kDouble,
                           at::kFloat,
                           at::kHalf,
                           at::kBFloat16,
                           at::kLong,
                           at::kInt,
                           at::kShort,
                           at::kChar,
                           at::kByte,
                           at::kBool}) {
    tensors.emplace_back(toString(dtype), torch::arange(15).remainder(2).view({3, 5}).to(dtype));
  }
  tensors.emplace_back("scalar", at::tensor(2.5F));
  tensors.emplace_back("empty", torch::empty({0, 4}));
  tensors.emplace_back("strided", torch::arange(6.0).view({2, 3}).t());
  REQUIRE(try_write_safetensors(path, tensors));
  const SafetensorsFile file(path);
  CHECK(file.names().size() == tensors.size());
  CHECK(file.metadata().empty());
  for (const auto& [name, tensor] : tensors) {
    CAPTURE(name);
    REQUIRE(file.has(name));
    CHECK((file.tensor(name).scalar_type() == tensor.scalar_type()));
    CHECK(file.tensor(name).sizes().vec() == tensor.sizes().vec());
    CHECK(file.tensor(name).equal(tensor));
  }
  CHECK(failure_of([&] { (void)file.tensor("none"); }).ends_with("there is no tensor \"none\""));
}

TEST_CASE("data that is not aligned is read all the same") {
  const ScratchFolder folder;
  const auto path = folder.path() / "x.safetensors";
  std::string file = file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 0);
  const float value = 1.5F;
  file.append(reinterpret_cast<const char*>(&value), sizeof value);
  write_file(path, file);
  CHECK(SafetensorsFile(path).tensor("a").item<float>() == 1.5F);
}

TEST_CASE("metadata is a map of strings and comes back") {
  const ScratchFolder folder;
  const auto path = folder.path() / "x.safetensors";
  REQUIRE(try_write_safetensors(path, {}, {{"format", "pt"}, {"step", "12"}}));
  CHECK(SafetensorsFile(path).metadata().at("step") == "12");
}

TEST_CASE("a truncated file is refused at every length") {
  const ScratchFolder folder;
  const auto path = folder.path() / "x.safetensors";
  REQUIRE(try_write_safetensors(path, {{"a", torch::ones({5})}}));
  const std::string whole = read_text_file(path);
  for (size_t length = 0; length < whole.size(); ++length) {
    CAPTURE(length);
    CHECK_FALSE(refusal_to_read(whole.substr(0, length)).empty());
  }
  CHECK(refusal_to_read(whole).empty());
  CHECK(refusal_to_read(whole + "x") ==
        "1 bytes after the last tensor belong to none; the file is corrupt");
}

TEST_CASE("each kind of corrupt header is named") {
  const auto entry = [](const std::string& fields) { return "{\"a\":{" + fields + "}}"; };
  const auto a = [&](const char* dtype, const char* shape, const char* offsets) {
    return entry(
        fmt::format(R"("dtype":"{}","shape":{},"data_offsets":{})", dtype, shape, offsets));
  };
  const std::string why_a = "tensor \"a\": ";
  struct Case {
    std::string header;
    size_t data_bytes;
    std::string wanted;
  };
  const std::vector<Case> cases = {
      {"[1]", 0, "the header is not a JSON object"},
      {"{\"a\":", 0, "the header is not a JSON object"},
      {" {}", 0, "the header is not a JSON object"},
      {"", 0, "the header is not a JSON object"},
      {a("F8_E4M3", "[4]", "[0,4]"), 4, why_a + "dtype F8_E4M3 is unknown"},
      {a("F32", "[2]", "[0,4]"), 4, why_a + "its shape needs 8 bytes but data_offsets hold 4"},
      {a("F32", "[1]", "[0,8]"), 4, why_a + "data_offsets [0, 8] lie outside the 4 bytes"},
      {a("F32", "[1]", "[4,0]"), 4, why_a + "data_offsets [4, 0] lie outside"},
      {a("F32", "[1]", "[-4,0]"), 4, why_a + "data_offsets is -4, not a whole number"},
      {a("F32", "[1]", "[0,4.0]"), 4, why_a + "data_offsets is 4.0, not a whole number"},
      {a("F32", "[1]", "[0]"), 4, why_a + "data_offsets is not a pair"},
      {a("F32", "1", "[0,4]"), 4, why_a + "shape is not a list"},
      {a("F32", "[-1]", "[0,4]"), 4, why_a + "shape is -1, not a whole number"},
      {a("F32", "[4294967296,4294967296]", "[0,4]"), 4, why_a + "the shape's bytes overflow"},
      {a("F32", "[9223372036854775808]", "[0,4]"), 4, why_a + "shape holds 9223372036854775808"},
      {a("F32", "[1]", "[4,8]"),
       8,
       "tensor \"a\" begins at byte 4 where 0 was due (there is a gap"},
      {entry(R"("dtype":"F32","shape":[1])"),
       4,
       why_a + "dtype, shape and data_offsets are wanted"},
      {R"({"a":1})", 4, why_a + "dtype, shape and data_offsets are wanted"},
      {entry(R"("dtype":"U8","shape":[1],"data_offsets":[0,1],"dtype":"I8")"),
       1,
       "the header has \"dtype\" twice"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2,
       "the header has \"a\" twice"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3,
       "tensor \"b\" begins at byte 1 where 2 was due (it overlaps"},
      {R"({"__metadata__":{"step":12}})", 0, "__metadata__ \"step\" is not a string"},
      {R"({"__metadata__":[]})", 0, "__metadata__ is not an object"},
  };
  for (const Case& bad : cases) {
    CAPTURE(bad.header);
    const std::string message = refusal_to_read(file_of(bad.header, bad.data_bytes));
    CAPTURE(message);
    CHECK(message.starts_with(bad.wanted));
    CHECK(message.find('\n') == std::string::npos);
  }
}

TEST_CASE("a header that claims too much is refused before anything is allocated") {
  std::string file(8, '\xff');
  CHECK(refusal_to_read(file).find("more than the 100000000 allowed") != std::string::npos);
}

TEST_CASE("bytes changed at random are refused or read, never more") {
  const ScratchFolder folder;
  const auto path = folder.path() / "x.safetensors";
  REQUIRE(try_write_safetensors(path, {{"a", torch::ones({5})}, {"b", torch::ones({2, 3})}}));
  const std::string whole = read_text_file(path);
  Rng rng(3);
  for (int round = 0; round < 300; ++round) {
    std::string damaged = whole;
    for (int change = 0; change < 3; ++change) {
      damaged[rng.next_below(damaged.size())] = static_cast<char>(rng.next_below(256));
    }
    std::ofstream(path, std::ios::binary) << damaged;
    failure_of([&] {
      const SafetensorsFile file(path);
      for (const std::string& name : file.names()) file.tensor(name).clone();
    });
  }
}

TEST_CASE("without space the old file stays, nothing is left behind, and the code says so") {
  const ScratchFolder folder;
  const auto path = folder.path() / "x.safetensors";
  REQUIRE(try_write_safetensors(path, {{"a", torch::ones({2})}}));
  const std::string before = read_text_file(path);

  struct rlimit saved {};
  ::getrlimit(RLIMIT_FSIZE, &saved);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit tight = {4096, saved.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &tight);
  const Status status = try_write_safetensors(path, {{"a", torch::ones({4096})}});
  ::setrlimit(RLIMIT_FSIZE, &saved);
  std::signal(SIGXFSZ, old_handler);

  REQUIRE(!status);
  CHECK(status.error().code == ErrorCode::kNoSpace);
  CHECK(status.error().message.find("x.safetensors: cannot write") != std::string::npos);
  CHECK(read_text_file(path) == before);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("a folder that is not there is named") {
  const Status status = try_write_safetensors("/no/such/folder/x.safetensors", {});
  REQUIRE(!status);
  CHECK(status.error().code == ErrorCode::kUnavailable);
  CHECK(status.error().message ==
        "/no/such/folder/x.safetensors: cannot write: No such file or directory");
}

}  // namespace
}  // namespace pelago::model
