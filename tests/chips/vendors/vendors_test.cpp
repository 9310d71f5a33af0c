// Vendors' plug-ins cannot be here, so the tests build some of their own (tests/chips/fake_plugin)
// that are right or wrong as real ones can be. libtorch has one slot for them: each case is a
// process.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <set>

#include "base/error.h"
#include "chips/checks/checks.h"
#include "chips/chips_support.h"
#include "chips/native/facts.h"
#include "chips/torch.h"  // precompiled, so its CHECK gives way to doctest's
#include "chips/vendor/search.h"
#include "chips/vendor/vendor.h"

namespace pelago::chips {
namespace {

namespace fs = std::filesystem;

struct Ended {
  int exit_code = 0;
  std::string words;
};

/// Opens devices where the vendors' variables say that their plug-ins are in these folders.
Ended run_open_devices(const std::string& npu_case, const std::string& devices) {
  const std::string command = fmt::format(
      "TORCH_NPU_INSTALL_PREFIX={0}/{1} TORCH_MLU_HOME={0}/first_use OMP_NUM_THREADS=1 {2} {3}",
      FAKE_PLUGINS,
      npu_case,
      OPEN_DEVICES,
      devices);
  FILE* const pipe = ::popen(command.c_str(), "r");
  Ended ended;
  char line[4096];
  while (std::fgets(line, sizeof line, pipe) != nullptr) ended.words += line;
  ended.exit_code = WEXITSTATUS(::pclose(pipe));
  return ended;
}

TEST_CASE("a plug-in is loaded, initialised, computes right and is finished") {
  const Ended ended = run_open_devices("good", "npu:0");
  CAPTURE(ended.words);
  CHECK(ended.exit_code == 0);
  CHECK(has(ended.words, "init npu:0\n"));
  CHECK(has(ended.words, "open npu:0 trains in BFloat16, known answers: \n"));
  CHECK(has(ended.words, "finalize\n"));
}

TEST_CASE("a plug-in that initialises on first use needs no call") {
  const Ended ended = run_open_devices("good", "mlu");
  CAPTURE(ended.words);
  CHECK(ended.exit_code == 0);
  CHECK(has(ended.words, "open mlu trains in BFloat16, known answers: \n"));
}

TEST_CASE("what is wrong with a plug-in is said in one line that names it and the remedy") {
  for (const auto& [npu_case, what, remedy] : {
           std::tuple("missing", "libtorch_npu.so", "build_libtorch_npu.py"),
           std::tuple("silent", "a first tensor fails", "npu-smi"),
           std::tuple("no_finalize", "lacks torch_npu::finalize_npu()", "build_libtorch_npu.py"),
           std::tuple("old_abi", "_GLIBCXX_USE_CXX11_ABI=0", "build torch_npu or pelago anew"),
           std::tuple("other_libtorch", "c10::of_another_version()", "build pelago against"),
           std::tuple("no_device", "registers no device", "build_libtorch_npu.py"),
       }) {
    const Ended ended = run_open_devices(npu_case, "npu:0");
    CAPTURE(ended.words);
    CHECK(ended.exit_code == kExitFailed);
    CHECK(has(ended.words, what));
    CHECK(has(ended.words, remedy));
    CHECK(has(ended.words, "npu"));
    // A plug-in's own words may come before ours.
    CHECK(std::ranges::count(ended.words, '\n') == (std::string(npu_case) == "silent" ? 2 : 1));
  }
}

TEST_CASE("a vendor's plug-in that is not here is named with what to install") {
  for (const auto& [device, library, package] :
       {std::tuple("musa:1", "libmusa_python.so", "torch_musa"),
        std::tuple("gcu", "libtorch_gcu.so", "torch_gcu")}) {
    const Ended ended = run_open_devices("good", device);
    CAPTURE(ended.words);
    CHECK(ended.exit_code == kExitFailed);
    CHECK(has(ended.words, library));
    CHECK(has(ended.words, package));
  }
}

TEST_CASE("a device's number beyond those there is wrong usage") {
  const Ended ended = run_open_devices("good", "npu:3");
  CHECK(ended.exit_code == kExitUsage);
  CHECK(has(ended.words, "1 such devices"));
}

TEST_CASE("two vendors in one process are refused, whoever comes first") {
  for (const char* devices : {"npu:0 mlu:0", "mlu:0 emulated:a100", "emulated:a100 npu:0"}) {
    const Ended ended = run_open_devices("good", devices);
    CAPTURE(ended.words);
    CHECK(ended.exit_code == kExitFailed);
    CHECK(has(ended.words, "one process drives one vendor"));
  }
}

TEST_CASE("every vendor says how it is got, seen and spoken to") {
  std::set<std::string> plugin_devices;
  for (const Vendor& vendor : all_vendors()) {
    CAPTURE(vendor.name);
    CHECK(!vendor.how_to_get.empty());
    CHECK(!vendor.tool.empty());
    CHECK(!vendor.nodes.empty());
    CHECK(vendor.is_plugin() == (vendor.torch_device != "cuda"));
    CHECK((vendor.is_plugin() || vendor.read_properties != nullptr));
    if (vendor.is_plugin()) CHECK(plugin_devices.insert(vendor.torch_device).second);
    if (!vendor.collective.empty()) CHECK(native::find_library(vendor.collective).files.size() > 0);
  }
  CHECK(all_vendors().back().tool == "nvidia-smi");  // other chips answer to it too
}

TEST_CASE("devices of one vendor know their collectives, others have the host's") {
  CHECK(native_collective_of("npu:3") == "hccl");
  CHECK(native_collective_of("emulated:huawei-910b2") == "emuccl");
  CHECK(!native_collective_of("cuda:0").empty());
  CHECK(native_collective_of("cpu").empty());
}

TEST_CASE("the catalogue's vendors that libtorch reaches have a folder, with its device") {
  const Catalogue catalogue = Catalogue::built_in();
  for (const Vendor& vendor : all_vendors()) {
    CAPTURE(vendor.name);
    CHECK(std::ranges::any_of(catalogue.chips(), [&](const Chip& chip) {
      return chip.vendor == vendor.name && chip.torch_device == vendor.torch_device;
    }));
  }
}

/// An empty folder, removed at the end.
class Scratch {
 public:
  Scratch() : path_(fs::temp_directory_path() / fmt::format("pelago-vendors-{}", ::getpid())) {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  ~Scratch() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

TEST_CASE("a vendor shows by its tool on PATH or a file of its driver") {
  const Scratch scratch;
  const Vendor* vendor = find_plugin_vendor("npu");
  REQUIRE(vendor != nullptr);
  Vendor here = *vendor;
  here.nodes = {(scratch.path() / "davinci").string()};
  const auto variables = [&](const std::string& name) {
    return name == "PATH" ? "/nowhere:" + scratch.path().string() : "";
  };
  CHECK(!find_sign(here, variables));
  std::ofstream(scratch.path() / "npu-smi");
  CHECK(find_sign(here, variables) == scratch.path() / "npu-smi");
  std::ofstream(scratch.path() / "davinci");
  CHECK(find_sign(here, variables) == scratch.path() / "davinci");
}

TEST_CASE("a vendor's own variable wins over the usual place") {
  const Vendor* vendor = find_plugin_vendor("mlu");
  REQUIRE(vendor != nullptr);
  const auto usual = library_folders(*vendor, [](const std::string&) { return ""; });
  CHECK(usual.front() == "/usr/local/neuware/lib64");
  const auto moved = library_folders(
      *vendor, [](const std::string& name) { return name == "NEUWARE_HOME" ? "/opt/nw" : ""; });
  CHECK(moved.front() == "/opt/nw/lib64");
}

TEST_CASE("doctor names the plug-in of a fleet's device, the places searched and how to get it") {
  const checks::Findings findings = checks::vendors({.fleet = {"cpu", "npu:0", "musa:1"}});
  const auto find = [&](const std::string& name) {
    const auto found = std::ranges::find(findings, name, &Check::name);
    REQUIRE(found != findings.end());
    return *found;
  };
  for (const auto& [device, library, place, remedy] :
       {std::tuple("npu", "libtorch_npu.so", "/usr/local/Ascend", "CANN"),
        std::tuple("musa", "libmusa_python.so", "/usr/local/musa/lib", "torch_musa")}) {
    const Check check = find(device);
    CAPTURE(check.text);
    CHECK(check.level == Check::kWarn);  // they may be in another machine of the fleet
    CHECK(has(check.text, library));
    CHECK(has(check.text, place));
    CHECK(has(check.remedy, remedy));
  }
}

TEST_CASE("a fleet's device that is here without its plug-in is a failure") {
  const Vendor* const vendor = find_plugin_vendor("npu");
  REQUIRE(vendor != nullptr);
  CHECK(checks::vendor(*vendor, "npu-smi is here", /*is_wanted=*/true).level == Check::kFail);
  CHECK(checks::vendor(*vendor, "npu-smi is here", /*is_wanted=*/false).level == Check::kWarn);
}

TEST_CASE("a driver's device name finds its chip in the catalogue") {
  const Catalogue catalogue = Catalogue::built_in();
  const auto id_of = [&](const char* torch_device, const std::string& name, double gib) {
    const Chip* chip = match_chip(
        catalogue,
        torch_device,
        {.name = name, .memory_bytes = static_cast<int64_t>(gib * 0x1p30), .compute_major = 0});
    return chip == nullptr ? "none" : chip->id;
  };
  CHECK(id_of("cuda", "NVIDIA A100-SXM4-80GB", 79.2) == "nvidia-a100-80g-sxm");
  CHECK(id_of("cuda", "NVIDIA A100-PCIE-40GB", 39.4) == "nvidia-a100-40g-pcie");
  CHECK(id_of("cuda", "NVIDIA H100 80GB HBM3", 79.1) == "nvidia-h100-sxm");
  CHECK(id_of("cuda", "NVIDIA H20", 95.6) == "nvidia-h20");
  CHECK(id_of("cuda", "NVIDIA GeForce RTX 4090", 23.6) == "nvidia-rtx4090");
  CHECK(id_of("cuda", "MetaX C500", 64) == "metax-c500");
  CHECK(id_of("npu", "Ascend910B2", 60) == "huawei-910b2");
  CHECK(id_of("npu", "Ascend 910A", 32) == "huawei-910a");
  CHECK(id_of("mlu", "MLU370-X8", 46) == "cambricon-mlu370-x8");
  CHECK(id_of("musa", "MTT S4000", 48) == "mthreads-s4000");
  CHECK(id_of("cuda", "Ascend910B2", 60) == "none");
  CHECK(id_of("cuda", "Voodoo 2", 0.01) == "none");
}

}  // namespace
}  // namespace pelago::chips
