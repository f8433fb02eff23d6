// What a launcher needs to know about the device it runs on. Plain C++: the operators' glue includes this.
#pragma once

namespace ik::cuda {

struct Context {
  void* stream;  // a cudaStream_t; null is the default stream
  int sm;        // compute capability: 80, 86, 89, 90, ...
  int multiprocessors;
  bool allow_tf32;  // float32 products may use TF32
};

}  // namespace ik::cuda
