#include "base/files.h"

#include <doctest/doctest.h>

#include <filesystem>

#include "base/rng.h"

namespace pelago {
namespace {

TEST_CASE("a written file replaces the old one whole and leaves no temporary file") {
  const auto folder = std::filesystem::temp_directory_path() / "pelago-files-test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  write_file(folder / "a", "old");
  write_file(folder / "a", "new");
  CHECK(read_text_file(folder / "a") == "new");
  CHECK(MappedFile(folder / "a").text() == "new");
  CHECK(std::distance(std::filesystem::directory_iterator(folder), {}) == 1);
}

TEST_CASE("a pending folder takes its name whole, or vanishes and leaves the old one alone") {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / "pelago-files-test";
  fs::remove_all(folder);
  fs::create_directories(folder / "out");
  write_file(folder / "out" / "old", "old");
  {
    const PendingFolder abandoned(folder / "out");
    write_file(abandoned.path() / "new", "new");
  }
  CHECK(fs::exists(folder / "out" / "old"));
  PendingFolder pending(folder / "out");
  write_file(pending.path() / "new", "new");
  pending.commit();
  CHECK(read_text_file(folder / "out" / "new") == "new");
  CHECK_FALSE(fs::exists(folder / "out" / "old"));
  CHECK(std::distance(fs::directory_iterator(folder), {}) == 1);  // nothing temporary stays
}

TEST_CASE("a full disk leaves the old file alone and says so") {
  const Status status = try_write_file("/dev/full-does-not-exist/x", "content");
  REQUIRE(!status);
  CHECK(status.error().message.find("/dev/full-does-not-exist/x") != std::string::npos);
}

TEST_CASE("opening a file that is not there names it") {
  CHECK_THROWS_WITH_AS(MappedFile("/no/such/file"),
                       "/no/such/file: cannot open: No such file or directory",
                       Failure);
}

TEST_CASE("a fork depends on seed, name and index and on nothing drawn before") {
  Rng a(7), b(7);
  b.next_u64();
  CHECK(Rng(7).fork("init", 3).next_u64() == a.fork("init", 3).next_u64());
  CHECK(a.fork("init", 3).next_u64() != a.fork("init", 4).next_u64());
  CHECK(a.fork("init", 3).next_u64() != a.fork("data", 3).next_u64());
}

}  // namespace
}  // namespace pelago
