// Kernels with one planted defect each, and the same kernels without it.
#pragma once
#include <string>
#include <vector>

#include "cuda/context.h"

namespace ik::cuda {

struct Arguments {
  const float* x;  // [256]
  float* y;        // [256], every element is written once
  float* rows;     // [4][8] with a row stride of 16
  float* scratch;  // [512]
  float* updated;  // [256] where it is given, holds values and every element is written once
};

struct DefectCase {
  const char* name;
  void (*launch)(bool defect, const Arguments& arguments, const Context& context);
};

std::vector<DefectCase> memory_defects();
std::vector<DefectCase> barrier_defects();
std::vector<DefectCase> copy_defects();
std::vector<DefectCase> tensor_defects();

}  // namespace ik::cuda

#define IK_DEFECT(kernel, cluster, blocks, threads)                                                              \
  DefectCase {                                                                                                   \
    #kernel, [](bool defect, const Arguments& arguments, const Context& context) {                               \
      IK_LAUNCH_CLUSTER(defect ? kernel<true> : kernel<false>, cluster, dim3(blocks), dim3(threads), 0, context, \
                        arguments);                                                                              \
    }                                                                                                            \
  }
