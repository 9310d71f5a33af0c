// What pelago uses of libtorch, in one place that is compiled once (PCH). torch/torch.h would bring
// modules, optimizers and data loaders as well: twice the memory and time in every file.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/cuda.h>
#include <torch/library.h>
#include <torch/types.h>
#include <torch/utils.h>
