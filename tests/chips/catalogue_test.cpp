#include "chips/catalogue.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "base/error.h"

namespace pelago::chips {
namespace {

std::string refusal_to_find(const Catalogue& catalogue, const std::string& wanted) {
  try {
    catalogue.find(wanted);
  } catch (const Failure& failure) {
    CHECK(failure.exit_code() == kExitUsage);
    return failure.what();
  }
  return "";
}

std::string message_of_reading(const std::string& toml) {
  try {
    Catalogue::read(toml, "some.toml");
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "";
}

constexpr const char* kSmallest = "[[chip]]\nid = \"x\"\nsources = [\"a test\"]\n";

TEST_CASE("the built-in catalogue has forty chips, each with sources and a confidence") {
  const Catalogue catalogue = Catalogue::built_in();
  CHECK(catalogue.chips().size() == 40);
  for (const Chip& chip : catalogue.chips()) {
    CAPTURE(chip.id);
    CHECK(!chip.sources.empty());
    CHECK(!chip.confidence.empty());
    CHECK(!chip.vendor.empty());
    CHECK(chip.year >= 2019);
    CHECK(chip.usable_memory_gib <= chip.memory_gib * 1.02);  // MetaX gives GB as GiB
    CHECK(chip.has_bf16 >= chip.bf16_tflops.has_value());
  }
}

TEST_CASE("short names find the chip that people mean") {
  const Catalogue catalogue = Catalogue::built_in();
  CHECK(catalogue.find("a100").id == "nvidia-a100-80g-sxm");
  CHECK(catalogue.find("a100-40g").memory_gib == 40);
  CHECK(catalogue.find("H20").id == "nvidia-h20");
  CHECK(catalogue.find("910b").id == "huawei-910b2");
  CHECK(catalogue.find("910a").id == "huawei-910a");
  CHECK(catalogue.find("huawei-910c").id == "huawei-910c");
  for (const char* alias : {"a800", "h100", "h800", "h200", "mlu370", "mlu590", "c500"}) {
    CHECK(!catalogue.find(alias).id.empty());
  }
}

TEST_CASE("an unknown chip is wrong usage, and a slip is told the nearest name") {
  const Catalogue catalogue = Catalogue::built_in();
  CHECK(refusal_to_find(catalogue, "a1000").find("did you mean a100?") != std::string::npos);
  CHECK(refusal_to_find(catalogue, "huawei-910b22").find("huawei-910b2") != std::string::npos);
  CHECK(refusal_to_find(catalogue, "abacus").find("no chip is called abacus") != std::string::npos);
}

TEST_CASE(
    "a measured matmul rate is preferred to the peak, and fp16 counts where bf16 is missing") {
  const Catalogue catalogue = Catalogue::built_in();
  CHECK(catalogue.find("a100").training_gemm_tflops() == 264);
  CHECK(catalogue.find("910a").training_gemm_tflops() == 110);
  CHECK(catalogue.find("910b1").training_gemm_tflops() == doctest::Approx(0.75 * 400));
  CHECK(catalogue.find("z100").training_gemm_tflops() == 0);
}

TEST_CASE("facts come through with their ranges") {
  const Catalogue catalogue = Catalogue::built_in();
  const Chip& chip = catalogue.find("910b2");
  CHECK(chip.vendor == "Huawei");
  CHECK(chip.memory_gib == 64);
  CHECK(chip.usable_memory_gib == doctest::Approx(60.3));
  CHECK(chip.memory_gb_s == 1600);
  CHECK(chip.link_gb_s == 392);
  CHECK(chip.torch_device == "npu");
  CHECK(chip.collective_library == "HCCL");
  REQUIRE(chip.train_mfu.has_value());
  CHECK(chip.train_mfu->lo < chip.train_mfu->hi);
  CHECK(!catalogue.find("910a").has_bf16);
  CHECK(!catalogue.find("910a").bf16_tflops.has_value());
}

TEST_CASE("a catalogue with a mistake is refused and the mistake named") {
  CHECK(message_of_reading(kSmallest).empty());
  CHECK(message_of_reading(fmt::format("{}memory_gibs = 3\n", kSmallest)).find("memory_gib") !=
        std::string::npos);
  CHECK(message_of_reading("[[chip]]\nid = \"x\"\n").find("no source") != std::string::npos);
  CHECK(message_of_reading("[[chip]]\nsources = [\"a\"]\n").find("needs an id") !=
        std::string::npos);
  CHECK(message_of_reading(fmt::format("{0}{0}", kSmallest)).find("taken") != std::string::npos);
  CHECK(message_of_reading(fmt::format("{}train_mfu = {{lo = 0.6, hi = 0.4}}\n", kSmallest))
            .find("train_mfu") != std::string::npos);
}

}  // namespace
}  // namespace pelago::chips
