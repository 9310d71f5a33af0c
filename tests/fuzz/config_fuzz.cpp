// A TOML file that a person wrote. The input is the TOML, then perhaps a byte 0 and an assignment
// as of --set.
#include <algorithm>

#include "base/config.h"
#include "outside_bytes.h"

namespace {

void read_all(const pelago::ConfigTable& table, int depth) {
  for (const std::string& key : table.keys()) {
    bool flag = false;
    int64_t number = 0;
    double real = 0;
    std::string word;
    std::vector<std::string> words;
    pelago::fuzz::expect_answer([&] { table.read(key, flag); });
    pelago::fuzz::expect_answer([&] { table.read(key, number); });
    pelago::fuzz::expect_answer([&] { table.read(key, real); });
    pelago::fuzz::expect_answer([&] { table.read(key, word); });
    pelago::fuzz::expect_answer([&] { table.read(key, words); });
    if (depth == 0) continue;
    pelago::fuzz::expect_answer([&] { read_all(table.table(key), depth - 1); });
    pelago::fuzz::expect_answer([&] {
      for (const pelago::ConfigTable& each : table.tables(key)) read_all(each, depth - 1);
    });
  }
  pelago::fuzz::expect_answer([&] { table.refuse_unknown(); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  const std::string_view input = pelago::fuzz::text_of(data, num_bytes);
  const size_t end = std::min(input.find('\0'), input.size());
  pelago::fuzz::expect_answer([&] {
    pelago::ConfigTable table = pelago::ConfigTable::parse(input.substr(0, end), "fuzz.toml");
    if (end < input.size()) {
      pelago::fuzz::expect_answer([&] { table.set(input.substr(end + 1)); });
    }
    read_all(table, /*depth=*/4);
    // What a run folder keeps can be read again.
    (void)pelago::ConfigTable::parse(table.to_toml(), "kept.toml");
  });
  return 0;
}
