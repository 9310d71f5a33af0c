// torch_npu for programs without Python (Ascend/pytorch, build_libtorch_npu.py). The library names
// libtorch's slot "npu" when it is loaded, but its lazy initialisation is left out of that build
// (NPUHooksInterface.cpp, BUILD_LIBTORCH): the program must call init_npu, which returns nothing
// and only prints when it fails, and finalize_npu before it ends. Both are found by their mangled
// names, so that no header of the vendor is needed.
#include "chips/ascend/ascend.h"

#include <dlfcn.h>

#include "base/error.h"
#include "chips/vendor/plugin.h"

namespace pelago::chips {
namespace {

// torch_npu::init_npu(const std::string&), with the new and with the old C++ ABI.
constexpr char kInit[] =
    "_ZN9torch_npu8init_npuERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE";
constexpr char kInitOldAbi[] = "_ZN9torch_npu8init_npuERKSs";
constexpr char kFinalize[] = "_ZN9torch_npu12finalize_npuEv";
constexpr char kRemedy[] =
    "this is no torch_npu for C++ programs: build one with build_libtorch_npu.py of Ascend/pytorch";

void initialise(const Plugin& plugin, const std::string& device) {
  if (plugin.try_find(kInit) == nullptr && plugin.try_find(kInitOldAbi) != nullptr) {
    fail(
        "{}: {} was built with the old C++ ABI (_GLIBCXX_USE_CXX11_ABI=0) and this program with "
        "the "
        "new one; build torch_npu or pelago anew, so that both have the same",
        device,
        plugin.file().string());
  }
  void (*init_npu)(const std::string&) = nullptr;
  void (*finalize_npu)() = nullptr;
  plugin.find(init_npu, kInit, kRemedy);
  plugin.find(finalize_npu, kFinalize, kRemedy);  // now, rather than at the end of a long run
  init_npu(device);
}

void finish(const Plugin& plugin) {
  void (*finalize_npu)() = nullptr;
  plugin.find(finalize_npu, kFinalize, kRemedy);
  finalize_npu();
}

/// What the catalogue calls a SoC (NpuVariables.cpp of torch_npu): the first generation has no
/// letter B and no number of a second die.
std::string chip_name(const std::string& soc) {
  if (soc.starts_with("Ascend910_93")) return "Ascend 910C";
  if (soc.starts_with("Ascend910") && !soc.starts_with("Ascend910B")) return "Ascend 910A";
  return soc;
}

DeviceProperties read_properties(int) {
  DeviceProperties properties;
  void* const runtime = dlopen("libascendcl.so", RTLD_NOW);  // stays open: the plug-in uses it
  if (runtime == nullptr) return properties;
  const auto get_name = reinterpret_cast<const char* (*)()>(dlsym(runtime, "aclrtGetSocName"));
  const auto get_memory =
      reinterpret_cast<int (*)(int, size_t*, size_t*)>(dlsym(runtime, "aclrtGetMemInfo"));
  if (get_name != nullptr && get_name() != nullptr) properties.name = chip_name(get_name());
  constexpr int kHbm = 1;  // ACL_HBM_MEM
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  if (get_memory != nullptr && get_memory(kHbm, &free_bytes, &total_bytes) == 0) {
    properties.memory_bytes = static_cast<int64_t>(total_bytes);
  }
  return properties;
}

}  // namespace

Vendor ascend() {
  return {
      .name = "Huawei",
      .torch_device = "npu",
      .libraries = {"libtorch_npu.so"},
      .places = {{.variable = "TORCH_NPU_INSTALL_PREFIX", .subfolder = "lib"},
                 {.variable = "ASCEND_HOME_PATH",
                  .prefix = "/usr/local/Ascend/ascend-toolkit/latest"}},
      .how_to_get =
          "build torch_npu for this libtorch with build_libtorch_npu.py (Ascend/pytorch), "
          "set TORCH_NPU_INSTALL_PREFIX to its folder libtorch_npu, and source the "
          "set_env.sh of CANN",
      .initialise = &initialise,
      .finish = &finish,
      .collective = "hccl",
      .tool = "npu-smi",
      .nodes = {"/dev/davinci_manager"},
      // Without the first, HCCL wants a file that lists every host. The second lets it add in a
      // fixed order, the third lets an overflow end as inf, which the check before a step looks
      // for.
      .environment = {{"HCCL_WHITELIST_DISABLE", "1"},
                      {"HCCL_DETERMINISTIC", "true"},
                      {"INF_NAN_MODE_ENABLE", "1"}},
      .quirks = {"init_npu only prints when it fails; pelago tries a first tensor to find out.",
                 "The first generation (910A, 910 Pro) has no bf16 and clips overflows instead of "
                 "making them inf.",
                 "torch_npu, CANN and libtorch must be of versions that belong together "
                 "(COMPATIBILITY.en.md of Ascend/pytorch), and of one C++ ABI."},
      .read_properties = &read_properties,
  };
}

}  // namespace pelago::chips
