// Opens the devices named on the command line one after the other and keeps them open: one process
// can load one plug-in, so each case of vendors_test.cpp is a process of its own.
#include <cstdio>
#include <memory>
#include <vector>

#include "base/error.h"
#include "chips/checks/known_answer.h"
#include "chips/device.h"
#include "chips/torch.h"

int main(int argc, char** argv) {
  const pelago::chips::Catalogue catalogue = pelago::chips::Catalogue::built_in();
  std::vector<std::unique_ptr<pelago::chips::Device>> devices;
  try {
    for (int i = 1; i < argc; ++i) {
      devices.push_back(pelago::chips::open_device(argv[i], catalogue));
      pelago::chips::Device& device = *devices.back();
      const auto answers = pelago::chips::KnownAnswerTest(device).run();
      device.synchronize();
      std::printf("open %s trains in %s, known answers: %s\n",
                  device.name().c_str(),
                  c10::toString(device.training_dtype()),
                  pelago::chips::first_fault(answers).c_str());
    }
  } catch (const pelago::Failure& failure) {
    std::printf("%s\n", failure.what());
    return failure.exit_code();
  }
  return 0;
}
