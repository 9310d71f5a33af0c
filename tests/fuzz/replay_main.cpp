// Feeds every file of the folders named to a fuzzer's door: what a fuzzer once found stays tested
// by any compiler.
#include <cstdio>
#include <fstream>
#include <iterator>

#include "outside_bytes.h"

int main(int argc, char** argv) {
  size_t num_files = 0;
  for (int i = 1; i < argc; ++i) {
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) {
      std::ifstream in(entry.path(), std::ios::binary);
      const std::string bytes(std::istreambuf_iterator<char>(in), {});
      std::printf("%s\n", entry.path().c_str());
      std::fflush(stdout);  // the file that crashes stands last
      LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
      ++num_files;
    }
  }
  std::printf("%zu inputs, each was read or refused\n", num_files);
  return num_files > 0 ? 0 : 1;
}
