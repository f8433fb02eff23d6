// A C interface to the cases for a GPU, called through ctypes.
#include <exception>

#include "conformance.h"

// Null, or what went wrong.
extern "C" const char* ik_conformance_run(const char* name, const int* numbers, int count, const void* input,
                                          void* output, int sm, int multiprocessors) {
  static std::string message;
  try {
    const ik::conformance::Request request = {
        name, std::vector<int>(numbers, numbers + count), input, output, {nullptr, sm, multiprocessors, false}};
    if (ik::conformance::run(request)) return nullptr;
#ifndef IK_WITHOUT_SM90
    if (ik::conformance::run_sm90(request)) return nullptr;
#endif
    message = std::string("no case ") + name;
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
